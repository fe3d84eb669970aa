"""The one kind of error that a user should ever see, and how text from data is made safe to print."""

import re
import reprlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

SHOWN_PROBLEMS = 20
MAX_PROBLEMS = 10_000  # after so many it must be another kind of file, and the rest isn't read
MAX_LINE = 2000  # characters of a line in a message
MAX_VALUE = 100  # characters of a value in a message
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring = 2, 80
# What makes a terminal do something else than show a character: C0 but for tab and newline, DEL, C1, and the marks
# that turn the direction of the text around them, so that a name reads as another one.
CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069]")


def visible(text: str) -> str:
    """Escape control characters (as `\\x1b`, `\\u202e`), which could steer a terminal; keep tabs and newlines."""
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def one_line(text: str) -> str:
    """Write newlines as escapes too, so that an id or a name from data can't look like a line of ours."""
    return visible(text).replace("\n", "\\n")


def short(value: object) -> str:
    """Return the `repr` of anything a file may hold, however large, deep or circular, in `MAX_VALUE` characters."""
    try:
        return one_line(_REPR.repr(value))[:MAX_VALUE]
    except Exception:  # an integer of more digits than Python converts
        return f"another {type(value).__name__}"


class InputError(Exception):
    """Something the user gave (a file, a row, a flag) can't be used.

    The message names the file, row and column if there is one, and says what to do. The command line prints
    it as one `error: ...` and exits with code 2; everything else that is raised is a bug of ours. What it quotes
    from data can neither steer a terminal nor flood it: control characters become escapes, long lines are cut.

    Attributes:
        said_elsewhere: True if another process of the run prints it.
    """

    said_elsewhere = False

    def __init__(self, message: str):
        super().__init__("\n".join(map(_shortened, visible(message).split("\n"))))

    @classmethod
    def of_problems(cls, title: str, problems: Sequence[str], advice: str = "") -> "InputError":
        """Make one error for many bad rows: it lists the first `SHOWN_PROBLEMS` and counts the rest."""
        lines = [title, *(f"  {one_line(problem)}" for problem in problems[:SHOWN_PROBLEMS])]
        if len(problems) > SHOWN_PROBLEMS:
            lines.append(f"  ... and {len(problems) - SHOWN_PROBLEMS} more")
        if advice:
            lines.append(advice)
        return cls("\n".join(lines))


class ImageError(InputError):
    """An image file can't be read; `--skip_bad_images` lets a run go on without it.

    Attributes:
        path: the file.
    """

    def __init__(self, message: str, path: str = ""):
        super().__init__(message)
        self.path = path


def _shortened(line: str) -> str:
    """Cut the middle out of a line that is too long: the advice stands at the end."""
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE * 3 // 4]} ... {line[-MAX_LINE // 4 :]}"


def first_line(error: Exception) -> str:
    """Return the first line of another library's error, cut to 200 characters; its type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def plural(number: int, noun: str) -> str:
    """Return a number and what is counted, such as "1 epoch" or "9,673 questions"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the known word that is closest to `word`; empty if none other is close."""
    others = [other for other in known if other != word]
    # difflib's time grows with the square of the length.
    found = get_close_matches(word, others, n=1, cutoff=0.5) if len(word) <= MAX_LINE else []
    return f" Did you mean {found[0]!r}?" if found else ""


class NotFiniteError(InputError):
    """A model's outputs hold NaN or infinity, so there is no answer in them."""


class RunEnded(Exception):  # noqa: N818 - its subclasses are named after what happened
    """Something other than the user's input ended a run before its time.

    Attributes:
        exit_code: exit code of the command line.
        title: the word before the message there, as in "error: ..."
    """

    exit_code = 1
    title = "error"
