"""One option of a run: a dataclass field that knows its flag's help, the values it may have, and how to check them."""

import contextlib
import dataclasses
import typing
from typing import Any

from beit3_vqa.errors import InputError, nearest, short
from beit3_vqa.runtime.files import is_text


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    within: str = "",
    choices: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    words: dict[str, int] | None = None,
) -> Any:
    """A dataclass field that is also a command-line flag.

    Args:
        default: its value where none is given; `dataclasses.MISSING` makes the flag required.
        help: for `--help`, which adds default, unit and choices.
        unit: of a number.
        within: the interval a number must lie in, as in `[0, 1)`: 0 is in it, 1 isn't.
        choices: the only values there are.
        aliases: other names of the flag.
        words: what may be written for a number, and the number that stands for it.
    """
    metadata: dict[str, Any] = {"help": help, "unit": unit, "within": within, "choices": choices, "aliases": aliases}
    metadata["words"] = words or {}
    return dataclasses.field(default=default, metadata=metadata)


def check_option(field: dataclasses.Field, value: Any) -> None:
    """InputError where an option can't have this value, whatever the others are."""
    name, choices, within = f"--{field.name}", field.metadata["choices"], field.metadata["within"]
    if choices and value not in choices:
        raise InputError(f"{name} {value}: must be one of {', '.join(choices)}.{nearest(str(value), choices)}")
    if within and value is not None and not _lies_within(value, within):
        raise InputError(f"{name} {_short(value)}: must be {_words_of(within)}.")
    if isinstance(value, str) and not is_text(value):
        raise InputError(f"{name} {value!r}: isn't text in UTF-8. Is a file or folder named so? Rename it.")


def typed(value: Any, kind: Any, where: str) -> Any:
    """`value` as the option's type; JSON has lists for tuples and integers for floats."""
    accepted = typing.get_args(kind) or (kind,)
    if typing.get_origin(kind) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value):
            return tuple(float(v) for v in value)
    elif value is None and type(None) in accepted:
        return None
    elif float in accepted and isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    elif any(type(value) is a for a in accepted):
        return value
    raise InputError(f"{where} can't be {short(value)}; expected {getattr(kind, '__name__', kind)}.")


def _lies_within(value: float, interval: str) -> bool:
    low, high = _ends(interval)
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)


def _words_of(interval: str) -> str:
    """`(0, 1]` -> `more than 0 and at most 1`."""
    low, high = (f"{end:,.0f}" for end in _ends(interval))
    lower = f"at least {low}" if interval[0] == "[" else f"more than {low}"
    return f"{lower} and " + (f"at most {high}" if interval[-1] == "]" else f"less than {high}")


def _ends(interval: str) -> tuple[float, float]:
    low, high = interval[1:-1].split(",")
    return float(low), float(high)


def _short(value: float) -> str:
    """The number, for a message: of one with hundreds of digits only how many there are."""
    return str(value) if isinstance(value, float) or abs(value) < 10**30 else f"with {value.bit_length()} bits"
