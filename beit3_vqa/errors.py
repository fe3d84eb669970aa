"""The one kind of error a user should ever see, and text from data made fit to be seen."""

import re
import reprlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

SHOWN_PROBLEMS = 20
MAX_PROBLEMS = 10_000  # in one file, after which the rest of it isn't read: it is another kind of file
MAX_LINE = 2000  # characters of a line in a message
MAX_VALUE = 100  # characters of a value in a message
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring = 2, 80
# What makes a terminal do something else than show a character: C0 but for tab and newline, DEL, C1, and the marks
# that turn the direction of the text around them, so that a name reads as another one.
CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069]")


def visible(text: str) -> str:
    """`text` with control characters as escapes (`\\x1b`, `\\u202e`), for terminals; tabs and newlines stay."""
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def one_line(text: str) -> str:
    """`visible`, newlines as escapes too: an id or name from data then can't look like a line of ours."""
    return visible(text).replace("\n", "\\n")


def short(value: object) -> str:
    """`repr` of whatever a file may hold, cut to `MAX_VALUE` characters, however large, deep or circular it is."""
    try:
        return one_line(_REPR.repr(value))[:MAX_VALUE]
    except Exception:  # an integer of more digits than Python converts
        return f"another {type(value).__name__}"


class InputError(Exception):
    """Something the user gave (a file, a row, a flag) can't be used.

    The message names the file, row and column where there is one, and says what to do. The command line prints
    it as one `error: ...` and exits with code 2; everything else that is raised is a bug of ours. What it quotes
    from data can neither steer a terminal nor flood it: control characters become escapes, long lines are cut.

    Attributes:
        said_elsewhere: whether another process of the run prints it.
    """

    said_elsewhere = False

    def __init__(self, message: str):
        super().__init__("\n".join(map(_shortened, visible(message).split("\n"))))

    @classmethod
    def of_problems(cls, title: str, problems: Sequence[str], advice: str = "") -> "InputError":
        """One error for many bad rows: the first `SHOWN_PROBLEMS` of them, then how many more there are."""
        lines = [title, *(f"  {one_line(problem)}" for problem in problems[:SHOWN_PROBLEMS])]
        if len(problems) > SHOWN_PROBLEMS:
            lines.append(f"  ... and {len(problems) - SHOWN_PROBLEMS} more")
        if advice:
            lines.append(advice)
        return cls("\n".join(lines))


class ImageError(InputError):
    """An image file can't be read, which a run may be told to pass over.

    Attributes:
        path: the file.
    """

    def __init__(self, message: str, path: str = ""):
        super().__init__(message)
        self.path = path


def _shortened(line: str) -> str:
    """The line, or its beginning and its end, where the advice stands."""
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE * 3 // 4]} ... {line[-MAX_LINE // 4 :]}"


def first_line(error: Exception) -> str:
    """What another library's error says first, cut to a line's length; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known word closest to `word`, or an empty string."""
    # Its time grows with the square of the length.
    found = get_close_matches(word, list(known), n=1, cutoff=0.5) if len(word) <= MAX_LINE else []
    return f" Did you mean {found[0]!r}?" if found else ""


class NotFiniteError(InputError):
    """A model's outputs aren't finite numbers, so that there is no answer in them."""


class RunEnded(Exception):  # noqa: N818 - what is derived from it reads as what happened
    """Something other than the user's input ended a run before its time.

    Attributes:
        exit_code: of the command line.
        title: what stands before the message there.
    """

    exit_code = 1
    title = "error"
