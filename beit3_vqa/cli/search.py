"""`beit3-vqa search`: train many times with options that Optuna proposes, and keep the best."""

import argparse

from beit3_vqa.apps.search.options import SearchOptions
from beit3_vqa.cli import finetune
from beit3_vqa.cli.flags import add_options, command, given

DESCRIPTION = """\
Trains with options that Optuna proposes, each trial in a folder of its own (--output_dir/trial-K), and prints which
were best. --space is a JSON file with any of the options below:

    {"lr": {"low": 1e-5, "high": 1e-3, "log": true}, "drop_path": [0.0, 0.1], "epochs": {"low": 1, "high": 3}}

After each validation a trial is ended if its score is below the median of the trials before it at the same point, once
five have ended. A trial whose options are refused, or that diverges or needs too much memory, counts as failed.

The same command goes on until --trials have ended in sum, and a second one beside it helps. A trial whose process was
killed goes on from its last checkpoint.
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the search, and those of its trainings."""
    add_options(parser, SearchOptions)
    finetune.add_options(parser, without=frozenset({"max_hours"}))


def run(parsed: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    options = SearchOptions(**given(SearchOptions, parsed))
    vars(parsed).pop("max_hours", None)  # of the search, not of a training
    common = finetune.options_from(parsed)
    from beit3_vqa.apps.search.run import search

    search(options, common, parsed.config or "")
    return 0


add = command("search", "train many times, and find the best options with Optuna", _add_flags, run, DESCRIPTION)
