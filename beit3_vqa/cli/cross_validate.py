"""`beit3-vqa cross_validate`: a training for every fold of `prepare --folds K`, with the options of finetune."""

import argparse

from beit3_vqa.cli.finetune import add_options, options_from
from beit3_vqa.cli.flags import command


def run(parsed: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    given = options_from(parsed)
    from beit3_vqa.apps.cross_validation import cross_validate

    cross_validate(given)
    return 0


add = command(
    "cross_validate", "train on every fold of `prepare --folds K`; answer every row, vote and average", add_options, run
)
