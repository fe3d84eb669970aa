"""What was answered where what was true: the confusion matrix, and whether a model prefers a position."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from beit3_vqa.schema import Prediction


def confusion(predictions: Sequence[Prediction]) -> dict[str, dict[str, int]]:
    """Truth -> answer -> questions, of multiple choice: every option that occurs is a row and a column."""
    known = _of_choices(predictions)
    letters = sorted({letter for p in known for letter in (*p.probabilities, p.answer, p.truth or "")})
    counts = Counter((p.truth, p.answer) for p in known)
    return {truth: {answer: counts[truth, answer] for answer in letters} for truth in letters}


def positions(predictions: Sequence[Prediction]) -> dict[str, dict[str, Any]]:
    """For each option of multiple choice, how often it was true and how often it was answered.

    Keys: `true` and `answered`, questions; `recall`, percent right of those where it was true, and `precision`, of
    those where it was answered; None without such questions. A model that prefers a position answers it more often
    than it is true.
    """
    matrix = confusion(predictions)
    table = {}
    for letter, row in matrix.items():
        true, answered = sum(row.values()), sum(other[letter] for other in matrix.values())
        table[letter] = {
            "true": true,
            "answered": answered,
            "recall": 100.0 * row[letter] / true if true else None,
            "precision": 100.0 * row[letter] / answered if answered else None,
        }
    return table


def _of_choices(predictions: Sequence[Prediction]) -> list[Prediction]:
    return [p for p in predictions if p.choices and p.truth is not None]
