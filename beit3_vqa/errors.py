"""The one kind of error a user should ever see."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

SHOWN_PROBLEMS = 20


class InputError(Exception):
    """Something the user gave (a file, a row, a flag) can't be used.

    The message names the file, row and column where there is one, and says what to do. The command line prints
    it as one `error: ...` and exits with code 2; everything else that is raised is a bug of ours.
    """

    @classmethod
    def of_problems(cls, title: str, problems: Sequence[str], advice: str = "") -> "InputError":
        """One error for many bad rows: the first `SHOWN_PROBLEMS` of them, then how many more there are."""
        lines = [title, *(f"  {problem}" for problem in problems[:SHOWN_PROBLEMS])]
        if len(problems) > SHOWN_PROBLEMS:
            lines.append(f"  ... and {len(problems) - SHOWN_PROBLEMS} more")
        if advice:
            lines.append(advice)
        return cls("\n".join(lines))


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known word closest to `word`, or an empty string."""
    found = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else ""
