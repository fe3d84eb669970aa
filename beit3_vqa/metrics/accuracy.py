"""Accuracies: a set that is cheap enough for every validation and fits a line of log.txt, and the confusion matrix."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from beit3_vqa.data.question_words import question_word
from beit3_vqa.data.types import Prediction
from beit3_vqa.metrics.types import Metrics, Position

LOSS_DIGITS = 5


def accuracy_metrics(predictions: Sequence[Prediction]) -> Metrics:
    """Return accuracies in percent over the predictions whose truth is known; empty if none is.

    Keys: `questions`, `accuracy`; `loss`, the mean over those that have one; `weighted_accuracy` if rows have weights;
    `accuracy_by_question_word` with the count of each; `answers` and `truths`, how often each occurs.
    """
    known = [p for p in predictions if p.score is not None]
    if not known:
        return {}
    metrics: Metrics = {"questions": len(known), "accuracy": percent(known)}
    losses = [p.loss for p in known if p.loss is not None]
    if losses:
        # With another batch size a loss differs in its last bits; these digits don't.
        metrics["loss"] = round(math.fsum(losses) / len(losses), LOSS_DIGITS)
    if any(p.weight is not None for p in known):
        metrics["weighted_accuracy"] = percent(known, weighted=True)
    metrics["accuracy_by_question_word"] = {
        word: {"questions": len(group), "accuracy": percent(group)} for word, group in by_question_word(known).items()
    }
    metrics["answers"] = _histogram(p.answer for p in known)
    metrics["truths"] = _histogram(p.truth for p in known if p.truth is not None)
    return metrics


def by_question_word(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """Return question word -> the predictions whose question has it first, words in alphabetical order."""
    groups: dict[str, list[Prediction]] = {}
    for p in predictions:
        groups.setdefault(question_word(p.question), []).append(p)
    return dict(sorted(groups.items()))


def percent(predictions: Sequence[Prediction], weighted: bool = False) -> float:
    """Return the mean score in percent; if `weighted`, by the rows' weights, 1 for a row without one."""
    weights = [1.0 if p.weight is None or not weighted else p.weight for p in predictions]
    scored = sum(weight * (p.score or 0.0) for p, weight in zip(predictions, weights, strict=True))
    return 100.0 * scored / sum(weights) if sum(weights) else 0.0


def _histogram(answers: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(answers).items()))


def confusion(predictions: Sequence[Prediction]) -> dict[str, dict[str, int]]:
    """Return truth -> answer -> number of multiple-choice questions, with every option that occurs in both places."""
    known = [p for p in predictions if p.choices and p.truth is not None]
    letters = sorted({letter for p in known for letter in (*p.probabilities, p.answer, p.truth or "")})
    counts = Counter((p.truth, p.answer) for p in known)
    return {truth: {answer: counts[truth, answer] for answer in letters} for truth in letters}


def positions(predictions: Sequence[Prediction]) -> dict[str, Position]:
    """Count for each option of multiple choice how often it was true and how often it was answered.

    A model that prefers a position answers it more often than it is true.

    Returns:
        letter -> `true` and `answered`, numbers of questions; `recall`, the percent answered right of those whose truth
        it is, and `precision`, the percent right of those that it answers; None if there are no such questions.
    """
    matrix = confusion(predictions)
    table: dict[str, Position] = {}
    for letter, row in matrix.items():
        true, answered = sum(row.values()), sum(other[letter] for other in matrix.values())
        table[letter] = {
            "true": true,
            "answered": answered,
            "recall": 100.0 * row[letter] / true if true else None,
            "precision": 100.0 * row[letter] / answered if answered else None,
        }
    return table
