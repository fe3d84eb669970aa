"""Dataclass fields as command-line flags."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any


def add_option(group: Any, field: dataclasses.Field, kind: Any, elsewhere: Mapping[str, Any] | None = None) -> None:
    """A flag for a field that `option_field.option` made.

    Args:
        group: of the parser.
        field: the option.
        kind: its resolved type.
        elsewhere: families of models with another default -> that default.
    """
    names = [f"--{name}" for name in (field.name, *field.metadata["aliases"])]
    text = field.metadata["help"] + _default_and_unit(field, elsewhere or {})
    if kind is bool:
        group.add_argument(*names, dest=field.name, action="store_true", default=argparse.SUPPRESS, help=text)
        off: dict[str, Any] = {"action": "store_false", "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        group.add_argument(*(f"--no_{name[2:]}" for name in names), dest=field.name, **off)
        return
    words, scalar = field.metadata["words"], _scalar_type(kind)
    options: dict[str, Any] = {"type": _or_word(scalar, words), "metavar": "|".join([scalar.__name__.upper(), *words])}
    options["required"] = field.default is dataclasses.MISSING
    if typing.get_origin(kind) is tuple:
        options["nargs"] = "+"
    group.add_argument(*names, dest=field.name, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **options)


def _default_and_unit(field: dataclasses.Field, elsewhere: Mapping[str, Any]) -> str:
    shown = []
    if field.metadata["choices"]:
        shown.append("one of " + ", ".join(field.metadata["choices"]))
    if field.metadata["unit"]:
        shown.append(f"unit: {field.metadata['unit']}")
    if isinstance(field.default, bool):
        shown.append(f"default: on; --no_{field.name}" if field.default else "default: off")
    elif field.default not in (None, dataclasses.MISSING) and "default:" not in field.metadata["help"]:
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        shown.append(f"default: {default if default != '' else 'none'}")
    shown += [f"with {family}: {default}" for family, default in elsewhere.items()]
    return f" ({'; '.join(shown)})" if shown else ""


def _scalar_type(kind: Any) -> type:
    """int of `int | None`, float of `tuple[float, ...]`."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is tuple:
        return next(k for k in typing.get_args(kind) if k is not type(None))
    return kind


def _or_word(kind: type, words: Mapping[str, int]) -> Callable[[str], Any]:
    """`kind`, for argparse, that also takes words that stand for numbers."""
    if not words:
        return kind

    def parse(text: str) -> Any:
        if text in words:
            return words[text]
        number = kind(text)
        if number in words.values():
            raise argparse.ArgumentTypeError(f"{text}: write a larger number, or {' or '.join(words)}")
        return number

    parse.__name__ = kind.__name__  # argparse names it when a value doesn't fit
    return parse
