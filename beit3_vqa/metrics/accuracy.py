"""The short set: cheap enough for every validation, small enough for a line of log.txt."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from beit3_vqa.metrics.question_words import question_word
from beit3_vqa.schema import Prediction

LOSS_DIGITS = 5


def accuracy_metrics(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Accuracies in percent over the predictions whose truth is known; empty where none is.

    Keys: `questions`, `accuracy`; `loss`, the mean over those that have one; `weighted_accuracy` where rows have
    weights; `accuracy_by_question_word` with the count of each; `answers` and `truths`, how often each was given.
    """
    known = [p for p in predictions if p.score is not None]
    if not known:
        return {}
    metrics: dict[str, Any] = {"questions": len(known), "accuracy": percent(known)}
    losses = [p.loss for p in known if p.loss is not None]
    if losses:
        # Batches of another size round otherwise; these digits stay.
        metrics["loss"] = round(math.fsum(losses) / len(losses), LOSS_DIGITS)
    if any(p.weight is not None for p in known):
        metrics["weighted_accuracy"] = percent(known, weighted=True)
    by_word: dict[str, list[Prediction]] = {}
    for prediction in known:
        by_word.setdefault(question_word(prediction.question), []).append(prediction)
    metrics["accuracy_by_question_word"] = {
        word: {"questions": len(group), "accuracy": percent(group)} for word, group in sorted(by_word.items())
    }
    metrics["answers"] = _histogram(p.answer for p in known)
    metrics["truths"] = _histogram(p.truth for p in known if p.truth is not None)
    return metrics


def percent(predictions: Sequence[Prediction], weighted: bool = False) -> float:
    """Mean score of predictions whose truth is known, in percent; `weighted` by the rows' weights, 1 without one."""
    weights = [1.0 if p.weight is None or not weighted else p.weight for p in predictions]
    scored = sum(weight * (p.score or 0.0) for p, weight in zip(predictions, weights, strict=True))
    return 100.0 * scored / sum(weights) if sum(weights) else 0.0


def _histogram(answers: Any) -> dict[str, int]:
    return dict(sorted(Counter(answers).items()))
