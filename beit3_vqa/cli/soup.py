"""`beit3-vqa soup`: several checkpoints of one model as one checkpoint."""

import argparse

from beit3_vqa.apps.soup.options import SoupOptions
from beit3_vqa.cli.flags import add_evaluation, add_options, command, given

# Options of finetune's --eval that the checkpoints and their soups are evaluated with.
EVALUATION: tuple[str, ...] = ("data_path", "image_root", "answer2label", "eval_batch_size", "num_workers")
EVALUATION += ("skip_bad_images", "sentencepiece_model", "pretrained", "model_key", "device", "precision")
EVALUATION += ("trust_checkpoint",)
DESCRIPTION = """\
Averages the weights of checkpoints of one model: epochs of a run, or runs that began with the same weights. The result
is one model, which counts once and answers as fast as one, where an ensemble's models all count.

uniform: every checkpoint alike. greedy: from the best on --split to the worst, a checkpoint is kept if the soup doesn't
get worse. learned: the weights with the lowest loss on --split, by gradients; that takes as long as a few epochs of
training on it. all: the three.

Each checkpoint and each soup is evaluated on --split and compared with the best single one by a paired test over
images. The best soup is written to --output_dir/checkpoint-best.pth unless the best single one scores higher.
The table is printed, and kept in soup.json.

Moving averages (model_ema) are taken as --eval takes them; --model_key model takes the plain weights. Adapters are
merged into their layers, so that the soup is a model without adapters. Memory holds two models at most.
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the soup, and those with which its checkpoints are evaluated."""
    add_options(parser, SoupOptions)
    add_evaluation(parser, EVALUATION, "as in `finetune --eval`")


def run(parsed: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    options = SoupOptions(**given(SoupOptions, parsed))
    from beit3_vqa.apps.soup.run import soup

    soup(options, {name: value for name, value in vars(parsed).items() if name in EVALUATION})
    return 0


add = command("soup", "average several checkpoints of one model into one checkpoint", _add_flags, run, DESCRIPTION)
