"""Raw data set -> prepared folder. One file per format, and a line for it in `FORMATS`.

A format module has two names in it: `Arguments`, its own options, and `read(arguments, options)`, which returns the
rows and every problem it met. What all formats share (images, ids, splits, tokenizer, files, summary) is in writer.py;
how CSV files are read, in data/tables.py.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib import import_module
from typing import Any, Protocol

from beit3_vqa.errors import InputError, nearest
from beit3_vqa.prepare.summary import Summary
from beit3_vqa.prepare.writer import Prepared, PrepareOptions, finish
from beit3_vqa.runtime.fields import Options

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


class Format(Protocol):
    """What a format module offers."""

    __doc__: str | None
    Arguments: type[Options]

    def read(self, arguments: Any, options: PrepareOptions) -> Prepared:
        """Read the files that `arguments` name, collecting problems instead of stopping at the first."""


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
    known = {field.name: field for field in fields(module.Arguments)}
    for name in values:
        if name not in known:
            raise InputError(f"prepare {format_name} has no --{name}.{nearest(name, known)}")
    given = {name: value for name, value in values.items() if value is not None}
    for name, field in known.items():
        if field.default is MISSING and not given.get(name):
            raise InputError(f"prepare {format_name} needs --{name}: {field.metadata['help']}")
    return finish(module.read(module.Arguments(**given), options), options)
