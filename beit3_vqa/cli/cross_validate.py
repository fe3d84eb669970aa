"""`beit3-vqa cross_validate`: every fold of `prepare --folds K`, with the options of finetune."""

import argparse

from beit3_vqa.cli.finetune import add_options, options_from
from beit3_vqa.cli.flags import command


def run(parsed: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    given = options_from(parsed)
    from beit3_vqa.apps.cross_validation import cross_validate

    cross_validate(given)
    return 0


add = command("cross_validate", "train every fold of `prepare --folds K`; mean and deviation", add_options, run)
