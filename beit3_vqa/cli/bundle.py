"""`beit3-vqa bundle`: a zip for code contests, which answers a hidden table offline."""

from typing import Any

from beit3_vqa.apps.bundle.options import BundleOptions
from beit3_vqa.cli.flags import command_with_evaluation

# Options of finetune's --eval that the checkpoints are evaluated with.
EVALUATION: tuple[str, ...] = ("data_path", "image_root", "answer2label", "split", "num_workers")
EVALUATION += ("sentencepiece_model", "pretrained", "device", "precision", "trust_checkpoint")
DESCRIPTION = """\
Writes a zip for contests whose organisers run your code on hidden questions: script.py, the models in model/, this
package in packages/, the versions of the others in requirements.txt, and README.md, which says how many parameters
and bytes the models have, and the licence and date of the weights as you state them.

    python script.py --table test.csv --image_root images --output submission.csv

needs no network. The probabilities of several models are averaged, as `ensemble` does.

Before the zip is written it runs once by itself, in a new environment without network, on --split of --data_path or on
--table. Its answers must be those that the checkpoints give here, else there is no zip. The environment is new but for
torch and the other libraries, which are the installed ones.
"""


def run(options: BundleOptions, evaluation: dict[str, Any]) -> int:
    """Run the command and return its exit code."""
    from beit3_vqa.apps.bundle.run import bundle

    bundle(options, evaluation)
    return 0


HELP = "pack models and an offline script for code contests"
add = command_with_evaluation(BundleOptions, EVALUATION, "bundle", HELP, run, DESCRIPTION)
