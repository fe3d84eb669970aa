"""`beit3-vqa cross_validate`: every fold of `prepare --folds K`, with the options of finetune."""

import argparse
from typing import Any

from beit3_vqa.cli.finetune import add_options, config_from


def add(commands: Any, build: bool) -> None:
    """Adds the command to the parser; its options only if it is to be built."""
    parser = commands.add_parser("cross_validate", help="train every fold of `prepare --folds K`; mean and deviation")
    if build:
        parser.set_defaults(function=run)
        add_options(parser)


def run(parsed: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    config = config_from(parsed)
    from beit3_vqa.apps.cross_validation import cross_validate

    cross_validate(config)
    return 0
