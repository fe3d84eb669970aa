"""From a raw data set to a prepared folder: a file for each format, and a line for it in `FORMATS`.

The module of a format has two names: `Arguments`, its own options, and `read(arguments, options)`, which returns the
rows and every problem that it met. What all formats share (images, ids, splits, tokenizer, files, summary) is in
writer.py. Tables are read in data/table_files.py; encodings, CSV and JSON in data/tables.py.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib import import_module
from typing import Any, Protocol, cast

from beit3_vqa.errors import InputError, nearest
from beit3_vqa.preparation.summary import Summary
from beit3_vqa.preparation.unpack import unpacked_images
from beit3_vqa.preparation.writer import Prepared, PrepareOptions, write_prepared
from beit3_vqa.runtime.fields import Options

# Format -> file, which is imported when its format is asked for.
FORMATS: dict[str, str] = {
    "a_okvqa": "a_okvqa",
    "choices": "choices_csv",
    "coco": "coco",
    "dacon_json": "dacon_json",
    "easy_vqa": "easy_vqa",
    "flickr30k": "flickr30k",
    "imagenet": "imagenet",
    "nlvr2": "nlvr2",
    "nocaps": "nocaps",
    "table": "table",
    "visual7w": "visual7w",
    "vqa_choices": "vqa_choices",
    "vqav2": "vqav2",
}


class Format(Protocol):
    """The names that the module of a format has."""

    __doc__: str | None
    Arguments: type[Options]

    def read(self, arguments: Any, options: PrepareOptions) -> Prepared:
        """Read the files that `arguments` name, collecting problems instead of stopping at the first."""


def find_format(name: str) -> Format:
    """Return the module of a format; InputError with the known names and the nearest if there is none."""
    if name not in FORMATS:
        raise InputError(f"there is no format {name!r}, only {', '.join(sorted(FORMATS))}.{nearest(name, FORMATS)}")
    return cast(Format, import_module(f"{__name__}.{FORMATS[name]}"))


def prepare(format_name: str, values: Mapping[str, object], options: PrepareOptions) -> Summary:
    """Read a data set and write its prepared folder, or only check it if `options.check` is set.

    Args:
        format_name: a key of `FORMATS`.
        values: the format's own arguments by name; None for one that wasn't given.
        options: what all formats share.

    Raises:
        InputError: every problem of rows, images and options at once; then nothing is written.
    """
    module = find_format(format_name)
    known = {field.name: field for field in fields(module.Arguments)}
    for name in values:
        if name not in known:
            raise InputError(f"prepare {format_name} has no --{name}.{nearest(name, known)}")
    given = {name: value for name, value in values.items() if value is not None}
    for name, field in known.items():
        value = given.get(name, "")
        if field.default is MISSING and isinstance(value, str) and not value:
            raise InputError(f"prepare {format_name} needs --{name}: {field.metadata['help']}")
    arguments = module.Arguments(**given)
    with unpacked_images(options) as options:
        return write_prepared(module.read(arguments, options), options)
