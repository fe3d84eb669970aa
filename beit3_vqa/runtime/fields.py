"""Options as dataclass fields: each holds its flag's help and bounds, and its value is checked against them."""

import contextlib
import dataclasses
import operator
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from beit3_vqa.errors import InputError, nearest, short

_HOLDS = {"at least": operator.ge, "more than": operator.gt, "at most": operator.le, "less than": operator.lt}


def option(
    default: object,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    metavar: str = "",
    positional: bool = False,
    repeated: bool = False,
) -> Any:
    """Make a dataclass field that is also a command-line flag; typed `Any`, as `dataclasses.field` must be.

    Args:
        default: the value if none is given; `dataclasses.MISSING` makes the flag required.
        help: text for `--help`, which adds default, unit and choices.
        unit: unit of a number, for `--help`.
        low, above: the smallest number it may be, or one that it must be larger than.
        high, below: the largest number it may be, or one that it must be smaller than.
        choices: the only values that are allowed; of a tuple, each of its values.
        aliases: other names of the flag.
        metavar: name of the value in `--help`; empty: its type.
        positional: True if the value stands on the command line without a flag.
        repeated: True if the flag of a tuple is given once for each value, not once for all.
    """
    bounds = {words: bound for words, bound in zip(_HOLDS, (low, above, high, below), strict=True) if bound is not None}
    metadata: dict[str, object] = {"help": help, "unit": unit, "bounds": bounds, "choices": choices, "aliases": aliases}
    metadata |= {"metavar": metavar, "positional": positional, "repeated": repeated}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """Options that belong together: a dataclass of `option` fields.

    Raises:
        InputError: a value is out of bounds or none of the choices.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    """Raise InputError, naming the flag, unless the value is allowed."""
    choices, bounds, words = field.metadata["choices"], field.metadata["bounds"], get_words(field.type)
    if value is None or value in words:
        return
    for each in (value if isinstance(value, tuple) else (value,)) if choices else ():
        if each not in choices:
            raise InputError(
                f"--{field.name} {each}: must be one of {', '.join(choices)}.{nearest(str(each), choices)}"
            )
    if not all(_HOLDS[says](value, bound) for says, bound in bounds.items()):
        interval = " and ".join(f"{says} {bound:,.0f}" for says, bound in bounds.items())
        raise InputError(f"--{field.name} {_short(value)}: must be {', or '.join((interval, *words))}.")


def get_scalar(kind: Any) -> type:
    """Return the type of one value: int for `int | None`, `int | Literal["auto"]` and `tuple[int, ...]`."""
    kinds: Iterator[type] = (
        k for k in typing.get_args(kind) or (kind,) if k is not type(None) and not typing.get_args(k)
    )
    return next(kinds)


def get_words(kind: object) -> tuple[str, ...]:
    """Return the words that are allowed instead of a number: `auto` for `int | Literal["auto"]`."""
    literals = (k for k in typing.get_args(kind) if typing.get_origin(k) is typing.Literal)
    return tuple(word for k in literals for word in typing.get_args(k))


def takes_several(kind: object) -> bool:
    """Return whether an option may have several values: `tuple[float, ...]`, `str | tuple[str, ...]`."""
    return any(typing.get_origin(k) is tuple for k in (kind, *typing.get_args(kind)))


def one_or_several(values: Sequence[Any], kind: object) -> Any:
    """Return values as a tuple; a single one as itself if the option takes it so (`str | tuple[str, ...]`)."""
    return values[0] if len(values) == 1 and typing.get_origin(kind) is not tuple else tuple(values)


def typed(value: object, kind: Any, where: str) -> Any:
    """Return a JSON value as the option's type `kind`: lists become tuples, integers floats if that is wanted.

    Raises:
        InputError: it has another type; the message begins with `where`.
    """
    accepted = typing.get_args(kind) or (kind,)
    several = ("a list of str",) if takes_several(kind) else ()
    expected = " or ".join((get_scalar(kind).__name__, *get_words(kind), *several))
    if typing.get_origin(kind) is tuple:
        expected = f"a list of {get_scalar(kind).__name__}"
        with contextlib.suppress(OverflowError):
            if isinstance(value, (list, tuple)) and all(type(v) in (int, float) for v in value):
                return tuple(float(v) for v in value)
    elif several and isinstance(value, (list, tuple)) and value and all(type(v) is str for v in value):
        return one_or_several(value, kind)
    elif (value is None and type(None) in accepted) or value in get_words(kind):
        return value
    elif float in accepted and isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    elif any(type(value) is a for a in accepted):
        return value
    raise InputError(f"{where} can't be {short(value)}; expected {expected}.")


def from_python(values: Mapping[str, object], kinds: Mapping[str, object], call: str) -> dict[str, Any]:
    """Return keywords of a call as values of the options of these names; paths become text, numpy's numbers Python's.

    Args:
        values: name -> value.
        kinds: name -> type of each option.
        call: name of the call, for messages.

    Raises:
        InputError: no option has the name, or not this type.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in kinds:
            raise InputError(f"{call} has no keyword {name!r}.{nearest(name, kinds)}")
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        elif isinstance(value, (list, tuple)):
            value = [os.fspath(each) if isinstance(each, os.PathLike) else each for each in value]
        elif hasattr(value, "item"):
            value = value.item()
        found[name] = typed(value, kinds[name], f"{call}: {name}")
    return found


def _short(value: float) -> str:
    """Return the number for a message; if it has hundreds of digits, only how many bits it has."""
    return str(value) if isinstance(value, float) or abs(value) < 10**30 else f"with {value.bit_length()} bits"
