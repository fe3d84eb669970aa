"""`beit3-vqa evaluate`: the former name of `score`, which still runs it."""

import argparse
import sys

from beit3_vqa.cli import score
from beit3_vqa.cli.flags import Commands, add_options, given


def add(commands: Commands, build: bool) -> None:
    """Add the command to the parser, and its flags if it is to be built."""
    model = "To evaluate a model, use `beit3-vqa finetune --eval --resume CHECKPOINT --data_path FOLDER`."
    # Without a help text, `beit3-vqa --help` doesn't list it: nobody new should learn this name.
    parser = commands.add_parser("evaluate", epilog=model)
    if build:
        add_options(parser, score.ScoreOptions)
        parser.set_defaults(function=run)


def run(parsed: argparse.Namespace) -> int:
    """Say the new name, run `score` and return its exit code."""
    print("`beit3-vqa evaluate` is called `beit3-vqa score` now.", file=sys.stderr)
    return score.run(score.ScoreOptions(**given(score.ScoreOptions, parsed)))
