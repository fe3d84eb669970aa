"""Options as flags: a command is a dataclass of options, and a function that takes it and returns the exit code."""

import argparse
import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from beit3_vqa.runtime.fields import Options, scalar_of, words_of

Given = TypeVar("Given", bound=Options)
Adder = Callable[[Any, bool], None]


def command(
    name: str, help: str, add_flags: Callable[[Any], None], run: Callable[[Any], int], description: str | None = None
) -> Adder:
    """Return the function that adds a command to the parser, and its flags if it is to be built.

    Args:
        name: of the command.
        help: a line about it.
        add_flags: takes the command's own parser.
        run: takes the parsed flags and returns the exit code.
        description: more about it.
    """

    def add(commands: Any, build: bool) -> None:
        parser = commands.add_parser(name, help=help, description=description)
        if build:
            add_flags(parser)
            parser.set_defaults(function=run)

    return add


def command_with(options: type[Given], name: str, help: str, run: Callable[[Given], int]) -> Adder:
    """Return the same for a command whose flags are the fields of one dataclass, which `run` takes."""
    return command(
        name, help, lambda parser: add_options(parser, options), lambda parsed: run(options(**given(options, parsed)))
    )


def given(options: type[Options], parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a dataclass that a command line gives."""
    values = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(options) if field.name in parsed}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def add_options(group: Any, options: type[Options]) -> None:
    """Add the flags of a dataclass to a parser or a group of it."""
    for field in dataclasses.fields(options):
        add_option(group, field)


def add_option(group: Any, field: dataclasses.Field, elsewhere: Mapping[str, Any] | None = None) -> None:
    """Add the flag of one field.

    Args:
        group: of the parser.
        field: the option.
        elsewhere: families of models with another default -> that default.
    """
    names = [f"--{name}" for name in (field.name, *field.metadata["aliases"])]
    text = (field.metadata["help"] + _default_and_unit(field, elsewhere or {})).replace("%", "%%")
    more: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
    if field.type is bool:
        group.add_argument(*names, dest=field.name, action="store_true", **more)
        more["help"] = argparse.SUPPRESS
        group.add_argument(*(f"--no_{name[2:]}" for name in names), dest=field.name, action="store_false", **more)
        return
    scalar, words = scalar_of(field.type), words_of(field.type)
    more["type"] = _or_word(scalar, words)
    more["metavar"] = field.metadata["metavar"] or "|".join((scalar.__name__.upper(), *words))
    if typing.get_origin(field.type) is tuple:
        more |= {"action": "append"} if field.metadata["repeated"] else {"nargs": "+"}
    if field.metadata["positional"]:
        group.add_argument(field.name, **more)
    else:
        group.add_argument(*names, dest=field.name, required=field.default is dataclasses.MISSING, **more)


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


def _or_word(scalar: type, words: tuple[str, ...]) -> Callable[[str], Any]:
    """Return what argparse turns a text into a value with: `scalar`, but for the words that stand in its place."""

    def parse(text: str) -> Any:
        return text if text in words else scalar(text)

    parse.__name__ = scalar.__name__  # argparse names it if a value doesn't fit
    return parse
