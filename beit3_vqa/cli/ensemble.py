"""`beit3-vqa ensemble`: several models' predictions as one submission."""

import argparse
from pathlib import Path
from typing import Any

from beit3_vqa.cli.flags import add_option

# Options of finetune's --eval that a checkpoint among the members is evaluated with.
EVALUATION: tuple[str, ...] = ("data_path", "image_root", "answer2label", "split", "eval_batch_size", "num_workers")
EVALUATION += ("skip_bad_images", "sentencepiece_model", "pretrained", "device", "precision", "tta", "trust_checkpoint")
DESCRIPTION = """\
Joins the answers of several models, of any families, folds and epochs, to one submission.csv, with predictions.json
and its .info.json beside it.

Members are files of predictions (.json), checkpoints, or run folders, of which checkpoint-best.pth is taken.
Checkpoints are evaluated one after the other on one device, anew in every call; their results go to a folder beside
--output (submission_members), and the predictions.json there can be given in a checkpoint's place the next time.

The parameters of all models are added up and may not exceed --max_params, else nothing runs. Models that are loaded one
after the other count, too. Two files of predictions count once only where both say that they are of a checkpoint with
the same SHA-256, such as one model's answers with and without test-time augmentation.

Votes: `hard`, the answer of most members, ties to the higher mean probability; `soft`, the highest mean probability;
`weighted`, the same with weights fitted on validation predictions by maximum likelihood. What the weights are worth is
estimated by cross validation: each question is judged by weights fitted without it, nor others about its image.
Open-ended predictions hold the likeliest five answers; soft and weighted count an answer that isn't held as 0.
"""


def add(commands: Any, build: bool) -> None:
    """Adds the command to the parser; its options only if it is to be built."""
    parser = commands.add_parser(
        "ensemble", help="join several models' answers to one submission", description=DESCRIPTION
    )
    if not build:
        return
    from beit3_vqa.config.config import option_fields

    parser.set_defaults(function=run)
    parser.add_argument("members", nargs="+", metavar="MEMBER", help="predictions (.json), checkpoint, or run folder")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="the submission, such as e/submission.csv"
    )
    parser.add_argument("--vote", default="soft", help="hard, soft or weighted (default: soft)")
    parser.add_argument(
        "--max_params", type=float, default=3e9, help="of all models together (default: 3e9, as in SCPC)"
    )
    parser.add_argument(
        "--greedy", action="store_true", help="choose members by forward selection on validation, within --max_params"
    )
    parser.add_argument(
        "--val",
        nargs="+",
        default=[],
        metavar="FILE",
        help="validation predictions of the members that are predictions, "
        "in their order (default: predictions_val.json beside each)",
    )
    parser.add_argument(
        "--params",
        action="append",
        default=[],
        metavar="FILE=N",
        help="parameters of a member whose file doesn't say them",
    )
    parser.add_argument("--seed", type=int, default=0, help="of folds and bootstrap (default: 0)")
    group = parser.add_argument_group("evaluation", "for members that are checkpoints, as in `finetune --eval`")
    for _, field, kind in option_fields():
        if field.name in EVALUATION:
            add_option(group, field, kind)


def run(parsed: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from beit3_vqa.apps.ensemble.run import EnsembleOptions, ensemble
    from beit3_vqa.errors import InputError

    if parsed.seed < 0:
        raise InputError(f"--seed {parsed.seed}: must be at least 0.")
    evaluation = {name: value for name, value in vars(parsed).items() if name in EVALUATION}
    names = ("members", "output", "vote", "max_params", "greedy", "val", "params", "seed")
    given = {name: getattr(parsed, name) for name in names}
    ensemble(EnsembleOptions(**given, split=evaluation.get("split", "test"), evaluation=evaluation))
    return 0
