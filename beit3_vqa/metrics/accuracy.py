"""The short set: cheap enough for every validation, small enough for a line of log.txt."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from beit3_vqa.data.types import Prediction

# Which of Visual7W's seven question words a question asks with, in English and in Korean.

QUESTION_WORDS = ("what", "where", "when", "who", "why", "how", "which")

# Korean stems, to which particles are joined (무엇이, 어디에서). Those of two syllables also count inside a word, since
# many writers leave spaces out; 언제나 (always), 어느새 (already), 누구나 (everybody), 누가복음 and 왜가리 (a heron)
# ask nothing.
_KOREAN = {
    "what": r"무엇|무얼|뭐|뭘|뭔|무슨",
    "where": r"어디",
    "when": r"언제(?!나)",
    "who": r"누구(?!나)|\b누가(?!복음)",
    "why": r"\b왜(?=\W|$|요|죠|냐|인|일|그|이)",
    "how": r"어떻게|얼마|몇",
    "which": r"어느(?!새|덧)|어떤",
}
_WORD = re.compile(
    "|".join(f"(?P<{word}>(?<![a-z]){word}(?![a-z])|{_KOREAN[word]})" for word in QUESTION_WORDS),
)


def question_word(question: str) -> str:
    """The question word that comes first, in English; `other` where there is none.

    Args:
        question: in English or Korean; 무엇 and 뭐 are what, 어떻게 and 몇 how, 어느 and 어떤 which.
    """
    # macOS spells Korean syllables as their letters.
    match = _WORD.search(unicodedata.normalize("NFC", question).lower())
    return match.lastgroup or "other" if match else "other"


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


# What was answered where what was true: the confusion matrix, and whether a model prefers a position.


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
