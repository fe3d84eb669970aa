"""What the models of all folds give together: an answer to every training row, and a vote and a soup on the test split.

Each training row is answered by the one model that wasn't trained on it. Of the test split every model answers all
rows; the vote takes their mean probabilities, and the soup is one model with their mean weights.
"""

import csv
import gc
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from beit3_vqa.apps.ensemble.options import EnsembleOptions
from beit3_vqa.apps.ensemble.run import join
from beit3_vqa.apps.soup.run import WHY_EVEN, average_folds
from beit3_vqa.config.config import GROUP_OF
from beit3_vqa.config.options import AUTO
from beit3_vqa.config.resolve import GivenOptions
from beit3_vqa.data.predictions import (
    predictions_file,
    publish_results,
    read_info,
    read_predictions,
    write_metrics,
    write_predictions,
)
from beit3_vqa.data.rows import LETTERS
from beit3_vqa.data.types import EvalResult, Prediction
from beit3_vqa.engine.api import evaluate
from beit3_vqa.engine.checkpoint.folder import BEST
from beit3_vqa.errors import plural
from beit3_vqa.metrics.label_errors import LABEL_ERRORS_FILE, LabelError, find_label_errors
from beit3_vqa.metrics.summary import full_metrics
from beit3_vqa.runtime.distributed import run_on_main
from beit3_vqa.runtime.files import staged
from beit3_vqa.tasks.base import Task

PREDICTIONS, METRICS = "predictions.json", "metrics.json"
_COLUMNS: tuple[str, ...] = ("rank", "ID", "Question", "answer", "answer_text", "answer_probability")
_COLUMNS += ("preferred", "preferred_text", "preferred_probability", "image")
# Options of a training that its evaluation has too. What the model is, the checkpoint says.
_GROUPS = ("data", "of_task", "compute")
_NAMES: tuple[str, ...] = ("sentencepiece_model", "pretrained", "eval_batch_size", "batch_size", "label_smoothing")
_NAMES += ("task", "seed", "trust_checkpoint", "log_interval")


def use_fold_models(given: GivenOptions, task: Task, folds: Sequence[int]) -> dict[str, object]:
    """Write out-of-fold predictions and likely label errors, and if there is a test split, a vote and a soup on it.

    Args:
        given: options of the folds' trainings, which have ended.
        task: of the data, without a fold.
        folds: their numbers.

    Returns:
        what cross_validation.json says of it.

    Raises:
        InputError: something the user gave doesn't work.
        NotFiniteError: a model's outputs aren't finite.
        ProcessLost: another process ended or can't be reached.
    """
    folder = Path(given["output_dir"])
    options = _evaluation(given)
    results = {fold: _evaluate(options, folder / f"fold-{fold}", "val", fold) for fold in folds}
    about: dict[str, object] = {"out_of_fold": run_on_main(lambda: _write_out_of_fold(folder, task, results))}
    results.clear()
    if "test" not in task.folder.splits():
        return about
    for fold in folds:
        _evaluate(options, folder / f"fold-{fold}", "test")
    about["vote"] = run_on_main(lambda: _vote(folder, folds))
    print(f"\n=== soup of {plural(len(folds), 'fold')}", flush=True)
    average_folds([str(folder / f"fold-{fold}" / BEST) for fold in folds], options.values, folder / "soup")
    gc.collect()  # one model at a time
    soup = _evaluate(options, folder / "soup", "test")
    about["soup"] = run_on_main(lambda: _about_soup(folder, soup.predictions))
    return about


def _evaluation(given: GivenOptions) -> GivenOptions:
    values = {n: v for n, v in given.values.items() if GROUP_OF[n] in _GROUPS or n in _NAMES}
    if values.get("batch_size") == AUTO:  # of the training; how many an evaluation takes isn't known
        del values["batch_size"]
    return GivenOptions(values, given.typed_flags & values.keys())


def _evaluate(options: GivenOptions, folder: Path, split: str, fold: int | None = None) -> EvalResult:
    """Evaluate the best checkpoint in a folder, and write the results there."""
    print(f"\n=== {folder.name}: {split}", flush=True)
    values = {"eval": True, "resume": str(folder / BEST), "output_dir": str(folder), "split": split, "fold": fold}
    result = evaluate(options.also(**values))
    gc.collect()  # one model at a time
    return result


def _write_out_of_fold(folder: Path, task: Task, results: dict[int, EvalResult]) -> dict[str, object]:
    """Write the predictions of every training row that has a fold, in the rows' order, and what they tell."""
    answers = {fold: iter(result.predictions) for fold, result in results.items()}
    fold_of = (row.get("fold") for row in task.folder.rows("train"))
    predictions = [next(answers[fold]) for fold in fold_of if fold is not None]
    one = read_info(predictions_file(folder / f"fold-{next(iter(results))}", "val"))
    assert one is not None
    chance = sum(result.chance * len(result.predictions) for result in results.values()) / len(predictions)
    info = replace(one, split="train", checkpoint="", sha256="", chance=chance)
    metrics = full_metrics(predictions)
    errors = find_label_errors(predictions)
    with staged(folder) as place:
        others = [write_metrics(metrics, place / METRICS), _write_label_errors(errors, place / LABEL_ERRORS_FILE)]
        written = publish_results(info, write_predictions(predictions, place / PREDICTIONS), others, folder)
    interval = metrics["accuracy_interval"]
    print(
        f"\nout of fold, {plural(len(predictions), 'training row')}: accuracy {metrics['accuracy']:.2f} "
        f"({interval['low']:.2f} to {interval['high']:.2f}; a little flattering: each fold's epoch was chosen by it)"
    )
    print(f"answers that are likely wrong in the data: {len(errors):,}")
    if interval["low"] <= chance:
        print(f"the models may be no better than guessing ({chance:.2f}), so that says little of the data")
    print("\n".join(f"wrote {path}" for path in written))
    return {
        "predictions": PREDICTIONS,
        "rows": len(predictions),
        "accuracy": metrics["accuracy"],
        "label_errors": len(errors),
    }


def _write_label_errors(errors: Sequence[LabelError], path: Path) -> Path:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(_COLUMNS)
    for rank, error in enumerate(errors, start=1):
        p = error.prediction
        given = (p.truth or "", _text(p, p.truth or ""), round(error.given, 6))
        preferred = (p.answer, _text(p, p.answer), round(error.preferred, 6))
        writer.writerow((rank, p.id, p.question, *given, *preferred, p.image))
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    return path


def _text(p: Prediction, answer: str) -> str:
    """Return an answer as words: the text of the option that a letter stands for."""
    return dict(zip(LETTERS, p.choices, strict=False)).get(answer, answer)


def _vote(folder: Path, folds: Sequence[int]) -> dict[str, object]:
    """Let the folds' models vote on the test split; return what is told of it."""
    print(f"\n=== vote of {plural(len(folds), 'fold')}", flush=True)
    members = [predictions_file(folder / f"fold-{fold}", "test") for fold in folds]
    info = read_info(members[0])
    assert info is not None
    parameters = info.parameters * len(folds)
    limit = EnsembleOptions.max_params
    join(
        EnsembleOptions(
            members=tuple(map(str, members)),
            output=folder / "vote" / "submission.csv",
            max_params=max(limit, parameters),
        ),
        {},
    )
    print(f"the vote costs {len(folds)} models and {parameters:,} parameters")
    if parameters > limit:
        print(f"that is more than the {limit:,.0f} that SCPC allows: vote with fewer folds, or hand in the soup")
    return {"submission": "vote/submission.csv", "models": len(folds), "parameters": parameters}


def _about_soup(folder: Path, predictions: Sequence[Prediction]) -> dict[str, object]:
    """Tell what the soup costs, and how far it answers as the vote does; return that as plain data."""
    info = read_info(predictions_file(folder / "soup", "test"))
    assert info is not None
    voted = read_predictions(predictions_file(folder / "vote", "test"))
    same = 100 * sum(one.answer == two.answer for one, two in zip(predictions, voted, strict=True)) / len(voted)
    print(f"the soup costs 1 model and {info.parameters:,} parameters; it is uniform, since {WHY_EVEN}")
    print(f"it answers {same:.1f}% of the test questions as the vote does; if that is little, hand in the vote")
    return {
        "submission": "soup/submission.csv",
        "checkpoint": f"soup/{BEST}",
        "models": 1,
        "parameters": info.parameters,
        "method": "uniform",
        "why": WHY_EVEN,
        "same_answer_as_the_vote": same,
    }
