"""`beit3-vqa prepare FORMAT`: turn a data set into the index that training reads."""

import argparse

from beit3_vqa.cli.flags import add_options, command, given


def _add_formats(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each raw format, with its own flags and those of all."""
    from beit3_vqa.preparation import FORMATS, find_format
    from beit3_vqa.preparation.writer import PrepareOptions

    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    for name in sorted(FORMATS):
        module = find_format(name)
        title = (module.__doc__ or "").strip().splitlines()[0]
        one = formats.add_parser(name, help=title, description=module.__doc__)
        add_options(one.add_argument_group(f"{name} options"), module.Arguments)
        add_options(one, PrepareOptions)


def run(parsed: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from beit3_vqa.preparation import find_format, prepare
    from beit3_vqa.preparation.writer import PrepareOptions

    values = given(find_format(parsed.format).Arguments, parsed)
    print(prepare(parsed.format, values, PrepareOptions(**given(PrepareOptions, parsed))).text())
    return 0


add = command("prepare", "turn a data set into the index that training reads", _add_formats, run)
