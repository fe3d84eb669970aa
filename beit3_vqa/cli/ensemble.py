"""`beit3-vqa ensemble`: several models' predictions as one submission."""

from typing import Any

from beit3_vqa.apps.ensemble.options import EnsembleOptions
from beit3_vqa.cli.flags import command_with_evaluation

# Options of finetune's --eval that a checkpoint among the members is evaluated with.
EVALUATION: tuple[str, ...] = ("data_path", "image_root", "answer2label", "split", "eval_batch_size", "num_workers")
EVALUATION += ("skip_bad_images", "sentencepiece_model", "pretrained", "device", "precision", "tta", "trust_checkpoint")
DESCRIPTION = """\
Joins the answers of several models, of any families, folds and epochs, to one submission.csv, with predictions.json
and its .info.json beside it.

Members are files of predictions (.json), submissions (ID,answer), checkpoints, or run folders, of which
checkpoint-best.pth is taken. A submission has no probabilities, so with one only the hard vote counts.
Checkpoints are evaluated one after the other on one device, anew in every call; their results go to a folder beside
--output (submission_members), and the predictions.json there can be given in a checkpoint's place the next time.

The parameters of all models are added up and may not exceed --max_params, else nothing runs. Models that are loaded one
after the other count, too. Two files of predictions count once only if both say that they come from a checkpoint with
the same SHA-256, such as one model's answers with and without test-time augmentation.

Votes: `hard`, the answer of most members, ties to the higher mean probability, then to the first member; `soft`, the
highest mean probability;
`weighted`, the same with weights fitted on validation predictions by maximum likelihood. What the weights are worth is
estimated by cross validation: each question is judged by weights fitted without it, nor others about its image.
Open-ended predictions hold the likeliest five answers; soft and weighted count an answer that isn't held as 0.
"""


def run(options: EnsembleOptions, evaluation: dict[str, Any]) -> int:
    """Run the command and return its exit code."""
    from beit3_vqa.apps.ensemble.run import ensemble

    ensemble(options, evaluation)
    return 0


ABOUT = "for members that are checkpoints, as in `finetune --eval`"
HELP = "join several models' answers to one submission"
add = command_with_evaluation(EnsembleOptions, EVALUATION, "ensemble", HELP, run, DESCRIPTION, ABOUT)
