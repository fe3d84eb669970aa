"""Everything at once, for the end of an evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

from beit3_vqa.metrics.accuracy import accuracy_metrics
from beit3_vqa.metrics.baselines import baselines
from beit3_vqa.metrics.calibration import accuracy_at_coverage, calibration
from beit3_vqa.metrics.intervals import accuracy_interval
from beit3_vqa.metrics.positions import confusion, positions
from beit3_vqa.metrics.question_words import question_word
from beit3_vqa.schema import Prediction


def full_metrics(
    predictions: Sequence[Prediction], training_answers: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """`accuracy_metrics` and more over the predictions whose truth is known; empty where none is.

    Keys beyond those: `accuracy_interval` and `interval_by_question_word`; `calibration`; `accuracy_at_coverage`;
    `baselines`; for multiple choice `confusion` and `positions`. Each is explained at the function of its name.

    Args:
        predictions: of a split.
        training_answers: see `baselines`.
    """
    known = [p for p in predictions if p.score is not None]
    if not known:
        return {}
    metrics = accuracy_metrics(known)
    metrics["accuracy_interval"] = accuracy_interval(known)
    by_word: dict[str, list[Prediction]] = {}
    for p in known:
        by_word.setdefault(question_word(p.question), []).append(p)
    metrics["interval_by_question_word"] = {word: accuracy_interval(by_word[word]) for word in sorted(by_word)}
    found = {
        "calibration": calibration(known),
        "accuracy_at_coverage": accuracy_at_coverage(known),
        "positions": positions(known),
        "confusion": confusion(known),
        "baselines": baselines(known, training_answers),
    }
    return metrics | {name: value for name, value in found.items() if value}
