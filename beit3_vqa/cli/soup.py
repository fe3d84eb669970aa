"""`beit3-vqa soup`: several checkpoints of one model as one checkpoint."""

from typing import Any

from beit3_vqa.apps.soup.options import SoupOptions
from beit3_vqa.cli.flags import command_with_evaluation

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


def run(options: SoupOptions, evaluation: dict[str, Any]) -> int:
    """Run the command and return its exit code."""
    from beit3_vqa.apps.soup.run import soup

    soup(options, evaluation)
    return 0


HELP = "average several checkpoints of one model into one checkpoint"
add = command_with_evaluation(SoupOptions, EVALUATION, "soup", HELP, run, DESCRIPTION)
