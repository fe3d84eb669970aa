"""Whether a model that says 80% is right in 80 of 100: calibration, and what it is worth to leave questions out.

Probabilities differ in their last bits with batch size and number of processes. They are rounded before they choose a
bin or a rank, and results after, so that every run gives the same digits.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from beit3_vqa.schema import Prediction

BINS = 15
COVERAGES = (100, 90, 80, 70, 60, 50, 40, 30, 20, 10)
_CONFIDENCE_DIGITS = 5
_DIGITS = 2  # of percentages
_BRIER_DIGITS = 4


def calibration(predictions: Sequence[Prediction], bins: int = BINS) -> dict[str, Any]:
    """How confidence (the probability of the given answer) and accuracy go together; empty where one isn't known.

    Keys: `ece`, the expected calibration error in percent: |accuracy - confidence| of each of the `bins` of equal
    width, (0, 1/bins], (1/bins, 2/bins], ..., weighted by its questions; `confidence`, its mean in percent;
    `reliability`, the bins that hold questions; `brier`, for multiple choice alone, where all probabilities are kept:
    the mean sum of squared differences to the truth's 1 and the others' 0, from 0 to 2.

    Source: Guo et al. 2017, On calibration of modern neural networks; Brier 1950.
    """
    known = _with_confidence(predictions)
    if not known:
        return {}
    members: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for confidence, score in known:
        members[max(0, math.ceil(round(confidence * bins, 9)) - 1)].append((confidence, score))
    reliability, error = [], 0.0
    for place in sorted(members):
        confidence, accuracy = (_mean(values) for values in zip(*members[place], strict=True))
        error += len(members[place]) * abs(accuracy - confidence)
        reliability.append(
            {
                "from": round(100.0 * place / bins, _DIGITS),
                "to": round(100.0 * (place + 1) / bins, _DIGITS),
                "questions": len(members[place]),
                "confidence": _percent(confidence),
                "accuracy": _percent(accuracy),
            }
        )
    found: dict[str, Any] = {
        "ece": _percent(error / len(known)),
        "bins": bins,
        "confidence": _percent(_mean([confidence for confidence, _ in known])),
    }
    brier = _brier(predictions)
    if brier is not None:
        found["brier"] = brier
    return {**found, "reliability": reliability}


def accuracy_at_coverage(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """The accuracy in percent on the most confident 100%, 90%, ... 10% of the questions.

    Questions of one confidence come together: where only some of them are taken, they count with their mean. Keys of
    each: `coverage` in percent, `questions`, `accuracy`, and `confidence`, the lowest that is taken.
    """
    known = _with_confidence(predictions)
    by_confidence: dict[float, list[float]] = defaultdict(list)
    for confidence, score in known:
        by_confidence[confidence].append(score)
    ranked = sorted(by_confidence.items(), reverse=True)
    points = []
    for coverage in COVERAGES if known else ():
        left = wanted = max(1, round(len(known) * coverage / 100))
        right, lowest = [], 1.0
        for confidence, scores in ranked:
            if left:
                taken, lowest = min(left, len(scores)), confidence
                right.append(taken * _mean(scores))
                left -= taken
        accuracy = 100.0 * math.fsum(right) / wanted
        points.append({"coverage": coverage, "questions": wanted, "accuracy": accuracy, "confidence": _percent(lowest)})
    return points


def _with_confidence(predictions: Sequence[Prediction]) -> list[tuple[float, float]]:
    """(confidence, score) of what has both; nothing where an answer comes without its probability."""
    known = [p for p in predictions if p.score is not None]
    if any(p.answer not in p.probabilities for p in known):
        return []
    return [(round(p.probabilities[p.answer], _CONFIDENCE_DIGITS), p.score or 0.0) for p in known]


def _brier(predictions: Sequence[Prediction]) -> float | None:
    known = [p for p in predictions if p.truth is not None]
    if not known or any(not p.choices or p.truth not in p.probabilities for p in known):
        return None
    sums = [math.fsum((q - (name == p.truth)) ** 2 for name, q in p.probabilities.items()) for p in known]
    return round(_mean(sums), _BRIER_DIGITS)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _percent(share: float) -> float:
    return round(100.0 * share, _DIGITS)
