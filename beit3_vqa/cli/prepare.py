"""`beit3-vqa prepare FORMAT`: make the index of a data set."""

import argparse
import dataclasses
import typing
from typing import Any

from beit3_vqa.cli.flags import add_option


def add(commands: Any, build: bool) -> None:
    """Adds the command to the parser; its options only if it is to be built."""
    parser = commands.add_parser("prepare", help="make the index of a data set")
    if not build:
        return
    from beit3_vqa.prepare import FORMATS, find_format
    from beit3_vqa.prepare.writer import PrepareOptions

    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    for name in sorted(FORMATS):
        one = formats.add_parser(name, help=_first_line(find_format(name)), description=find_format(name).__doc__)
        one.set_defaults(function=run)
        own = one.add_argument_group(f"{name} options")
        for argument in find_format(name).ARGUMENTS:
            own.add_argument(
                f"--{argument.name}",
                type=argument.type,
                choices=argument.choices or None,
                required=argument.required,
                default=argument.default,
                help=argument.help + (f" (default: {argument.default})" if argument.default != "" else ""),
            )
        for field in dataclasses.fields(PrepareOptions):
            add_option(one, field, typing.get_type_hints(PrepareOptions)[field.name])


def _first_line(module: Any) -> str:
    return (module.__doc__ or "").strip().splitlines()[0]


def run(parsed: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from beit3_vqa.prepare import find_format, prepare
    from beit3_vqa.prepare.writer import PrepareOptions

    given = vars(parsed)
    names = [field.name for field in dataclasses.fields(PrepareOptions)]
    options = PrepareOptions(**{name: given[name] for name in names if name in given})
    values = {argument.name: given[argument.name] for argument in find_format(parsed.format).ARGUMENTS}
    print(prepare(parsed.format, values, options).text())
    return 0
