"""Raw data set -> prepared folder. One file per format, and a line for it in `FORMATS`.

A format module has two names in it: `ARGUMENTS`, its own flags, and `read(values, options)`, which returns the rows and
every problem it met. What all formats share (images, ids, splits, tokenizer, files, summary) is in writer.py; how CSV
files are read, in data/tables.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from beit3_vqa.errors import InputError, nearest
from beit3_vqa.prepare.summary import Summary
from beit3_vqa.prepare.writer import Prepared, PrepareOptions, finish

# Format -> file, imported when it is asked for.
FORMATS: dict[str, str] = {
    "choices": "choices_csv",
    "coco": "coco",
    "dacon_json": "dacon_json",
    "easy_vqa": "easy_vqa",
    "flickr30k": "flickr30k",
    "imagenet": "imagenet",
    "nlvr2": "nlvr2",
    "nocaps": "nocaps",
    "visual7w": "visual7w",
    "vqav2": "vqav2",
}


@dataclass(frozen=True)
class Argument:
    """A flag of one format, for whoever builds a command line from it.

    Attributes:
        name: as in `values`; the flag is `--name`.
        help: one line, with the unit where there is one.
        required: whether it must be given.
        default: the value where it isn't.
        type: turns the text of the command line into the value.
        choices: the values it may have; empty for any.
    """

    name: str
    help: str
    required: bool = False
    default: Any = ""
    type: type = str
    choices: tuple[str, ...] = ()


class Format(Protocol):
    """What a format module offers."""

    __doc__: str | None
    ARGUMENTS: tuple[Argument, ...]

    def read(self, values: Mapping[str, Any], options: PrepareOptions) -> Prepared:
        """Read the files that `values` name, collecting problems instead of stopping at the first."""


def find_format(name: str) -> Format:
    """The module of a format; InputError names the known ones and the nearest."""
    if name not in FORMATS:
        raise InputError(f"there is no format {name!r}, only {', '.join(sorted(FORMATS))}.{nearest(name, FORMATS)}")
    module: Any = import_module(f"{__name__}.{FORMATS[name]}")
    return module


def prepare(format_name: str, values: Mapping[str, Any], options: PrepareOptions) -> Summary:
    """Read a data set in `format_name` and write its prepared folder, or only check it (`options.check`).

    `values` holds the format's own arguments by name. Raises InputError with every problem of rows, images and
    options at once, and then writes nothing.
    """
    module = find_format(format_name)
    return finish(module.read(_complete(values, module.ARGUMENTS, format_name), options), options)


def _complete(values: Mapping[str, Any], arguments: tuple[Argument, ...], format_name: str) -> dict[str, Any]:
    """`values` checked against the format's arguments, defaults filled in."""
    known = {argument.name: argument for argument in arguments}
    for name in values:
        if name not in known:
            raise InputError(f"prepare {format_name} has no --{name}.{nearest(name, known)}")
    given = {name: value for name, value in values.items() if value is not None}
    for argument in arguments:
        if argument.required and not given.get(argument.name):
            raise InputError(f"prepare {format_name} needs --{argument.name}: {argument.help}")
        if argument.choices and given.get(argument.name, argument.default) not in argument.choices:
            raise InputError(
                f"--{argument.name} must be one of {', '.join(argument.choices)}, not {given[argument.name]!r}"
            )
    return {argument.name: given.get(argument.name, argument.default) for argument in arguments}
