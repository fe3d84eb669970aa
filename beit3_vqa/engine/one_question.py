"""Check a question that is asked by itself, from Python or a command: its text, its options and their number."""

from collections.abc import Sequence
from typing import Any

from beit3_vqa.data.rows import LETTERS
from beit3_vqa.errors import InputError, short


def as_text(value: object, what: str) -> str:
    """Return a question or an option as text; a number as Python shows it.

    Raises:
        InputError: it is missing (None, NaN), or neither text nor number; the message begins with `what`.
    """
    if hasattr(value, "item"):  # a number of numpy or torch
        value = value.item() if getattr(value, "size", 1) == 1 else value
    if isinstance(value, bool):
        return str(value).lower()
    if is_missing(value):
        raise InputError(f"{what} is missing ({value}).")
    if isinstance(value, (str, int, float)):
        return str(value)
    raise InputError(f"{what} is {short(value)}: give text.")


def is_missing(value: object) -> bool:
    """Return whether a value is None, NaN, or pandas' NA or NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and value != value


def as_choices(choices: Any) -> tuple[str, ...]:
    """Return options as texts, from a list, a tuple, a pandas Series or an array; missing ones at the end are left out.

    Raises:
        InputError: they are one text, have no order, or one of them is neither text nor number.
    """
    if choices is None:
        return ()
    if isinstance(choices, (str, bytes, set, frozenset)) or not hasattr(choices, "__iter__"):
        raise InputError(f"the options are {short(choices)}: give a list of texts, one for each option.")
    given = list(choices.values()) if isinstance(choices, dict) else list(choices)
    while given and is_missing(given[-1]):  # a row of a table with fewer options than others
        given.pop()
    return tuple(as_text(one, f"option {_letter(place)}") for place, one in enumerate(given))


def _letter(place: int) -> str:
    return LETTERS[place] if place < len(LETTERS) else str(place + 1)


def check_question(question: str, choices: Sequence[str], option_counts: range) -> None:
    """Raise InputError if the question or an option is empty, or the number of options is wrong.

    Args:
        question: as text.
        choices: its options.
        option_counts: numbers of options that the model takes; empty for an open-ended model.
    """
    if not question.strip():
        raise InputError("the question is empty.")
    if any(not choice.strip() for choice in choices):
        raise InputError(f"of the options none may be empty: {', '.join(map(repr, choices))}.")
    problem = number_problem(len(choices), option_counts)
    if problem:
        raise InputError(f"the model {problem}.")


def number_problem(options: int, option_counts: range) -> str:
    """Return what the model does instead of answering a question with so many options; empty if it answers."""
    if not option_counts:
        return "answers open-ended questions: leave the choices out" if options else ""
    fewest, most = option_counts[0], option_counts[-1]
    wanted = f"{fewest} to {most}" if most > fewest else f"{fewest}"
    if not options:
        return f"answers multiple-choice questions: give {wanted} choices"
    return "" if options in option_counts else f"chooses among {wanted} options; {options} were given"
