"""Calibration: is a model that says 80% right in 80 of 100, and how accurate are its most confident answers?

Probabilities differ in their last bits with batch size and number of processes. They are rounded before they choose a
bin or a rank, and results are rounded too, so that every run gives the same digits."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from beit3_vqa.data.types import Prediction
from beit3_vqa.metrics.types import Calibration, CoveragePoint, ReliabilityBin

BINS = 15
COVERAGES = (100, 90, 80, 70, 60, 50, 40, 30, 20, 10)
_CONFIDENCE_DIGITS = 5
_DIGITS = 2  # of percentages
_BRIER_DIGITS = 4


def calibration(predictions: Sequence[Prediction], bins: int = BINS) -> Calibration:
    """Compare confidence (the probability of the given answer) with accuracy; empty if one of them isn't known.

    Keys: `ece`, the expected calibration error in percent: |accuracy - confidence| of each of the `bins` of equal
    width, (0, 1/bins], (1/bins, 2/bins], ..., weighted by its questions; `confidence`, its mean in percent;
    `reliability`, the bins that hold questions; `brier`, only for multiple choice, which keeps all probabilities: the
    mean sum of squared differences to the truth's 1 and the others' 0, from 0 to 2.

    Source: Guo et al. 2017, On calibration of modern neural networks; Brier 1950.
    """
    known = _with_confidence(predictions)
    if not known:
        return {}
    members: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for confidence, score in known:
        # A bin holds its upper end, even if the product lands a last bit above it. A confidence of 0 joins the first.
        members[max(0, math.ceil(round(confidence * bins, 9)) - 1)].append((confidence, score))
    reliability: list[ReliabilityBin] = []
    error = 0.0
    for place in sorted(members):
        confidence, accuracy = (fmean(values) for values in zip(*members[place], strict=True))
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
    found: Calibration = {
        "ece": _percent(error / len(known)),
        "bins": bins,
        "confidence": _percent(fmean([confidence for confidence, _ in known])),
    }
    brier = _brier(predictions)
    if brier is not None:
        found["brier"] = brier
    found["reliability"] = reliability
    return found


def accuracy_at_coverage(predictions: Sequence[Prediction]) -> list[CoveragePoint]:
    """Return the accuracy in percent on the most confident 100%, 90%, ... 10% of the questions.

    Questions of equal confidence have no order: if only some of them are taken, each counts with the mean of all. Keys
    of each point: `coverage` in percent, `questions`, `accuracy`, and `confidence`, the lowest that is taken.
    """
    known = _with_confidence(predictions)
    by_confidence: dict[float, list[float]] = defaultdict(list)
    for confidence, score in known:
        by_confidence[confidence].append(score)
    ranked = sorted(by_confidence.items(), reverse=True)
    points: list[CoveragePoint] = []
    for coverage in COVERAGES if known else ():
        left = wanted = max(1, round(len(known) * coverage / 100))
        right, lowest = [], 1.0
        for confidence, scores in ranked:
            if left:
                taken, lowest = min(left, len(scores)), confidence
                right.append(taken * fmean(scores))
                left -= taken
        accuracy = 100.0 * math.fsum(right) / wanted
        points.append({"coverage": coverage, "questions": wanted, "accuracy": accuracy, "confidence": _percent(lowest)})
    return points


def _with_confidence(predictions: Sequence[Prediction]) -> list[tuple[float, float]]:
    """Return (confidence, score) of each prediction with a score; none if an answer comes without probability."""
    known = [p for p in predictions if p.score is not None]
    if any(p.answer not in p.probabilities for p in known):
        return []
    return [(round(p.probabilities[p.answer], _CONFIDENCE_DIGITS), p.score or 0.0) for p in known]


def _brier(predictions: Sequence[Prediction]) -> float | None:
    known = [p for p in predictions if p.truth is not None]
    if not known or any(not p.choices or p.truth not in p.probabilities for p in known):
        return None
    sums = [math.fsum((q - (name == p.truth)) ** 2 for name, q in p.probabilities.items()) for p in known]
    return round(fmean(sums), _BRIER_DIGITS)


def _percent(share: float) -> float:
    return round(100.0 * share, _DIGITS)


# Temperature: one number that calibrates a model's probabilities without changing an answer.
#
# A temperature T divides the logits: of probabilities p it makes p^(1/T) over their sum. Above 1 it makes a model less
# sure, below 1 surer.
#
# Source: Guo et al. 2017, On calibration of modern neural networks.

LOWEST, HIGHEST = 0.05, 20.0
_TEMPERATURE_DIGITS = 3
_NLL_DIGITS = 5
_STEPS = 60  # golden sections: they leave a 10^-12th of the interval
_FLAT = 1e-12  # nats that are rounding
_SMALLEST = 1e-30  # of a probability that was rounded to 0


def fit_temperature(predictions: Sequence[Prediction]) -> float | None:
    """Return the temperature under which the truths are likeliest, to 3 decimals; None if no row has what that needs.

    It is 1 if no other is better, for instance if all options are equally likely. It is `LOWEST` if every truth is the
    likeliest option, since every lower temperature is then better still.

    Args:
        predictions: made at temperature 1, of multiple choice, whose probabilities are all kept.
    """
    log_probabilities, truths = _table(predictions)
    if not len(truths):
        return None

    # The loss is convex in 1/T, so it has one valley over log T too.
    low, high = math.log(LOWEST), math.log(HIGHEST)
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(_STEPS):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if _nll(log_probabilities, truths, math.exp(left)) <= _nll(log_probabilities, truths, math.exp(right)):
            high = right
        else:
            low = left
    found = math.exp((low + high) / 2)
    if _nll(log_probabilities, truths, found) > _nll(log_probabilities, truths, 1.0) - _FLAT:
        return 1.0
    return round(found, _TEMPERATURE_DIGITS)


def mean_nll(predictions: Sequence[Prediction], temperature: float = 1.0) -> float | None:
    """Return the mean negative log-likelihood of the truths in nats; None if `fit_temperature` returns None."""
    log_probabilities, truths = _table(predictions)
    return round(_nll(log_probabilities, truths, temperature), _NLL_DIGITS) if len(truths) else None


def tempered(prediction: Prediction, temperature: float) -> Prediction:
    """Return the prediction with the same answer and with probabilities at another temperature."""
    if temperature == 1.0:
        return prediction
    names = list(prediction.probabilities)
    shares = temper(np.array([[prediction.probabilities[name] for name in names]]), temperature)[0]
    return dataclasses.replace(prediction, probabilities=dict(zip(names, map(float, shares), strict=True)))


def temper(probabilities: NDArray[np.float32] | NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return probabilities (N, C) at another temperature, each row summing to 1."""
    return np.exp(_log_softmax(_log(probabilities.astype(np.float64)) / temperature))


def _table(predictions: Sequence[Prediction]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return log-probabilities (N, C) and the place of the truth (N,), of the rows that have both.

    A row with fewer options than C ends in -inf.
    """
    known = [p for p in predictions if p.choices and p.truth in p.probabilities]
    widest = max((len(p.probabilities) for p in known), default=0)
    table = np.full((len(known), widest), -np.inf)
    for row, p in zip(table, known, strict=True):
        row[: len(p.probabilities)] = _log(np.array(list(p.probabilities.values())))
    places = [list(p.probabilities).index(p.truth or "") for p in known]
    return table, np.array(places, dtype=np.intp)


def _log(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    logs: NDArray[np.float64] = np.log(np.maximum(probabilities, _SMALLEST))
    return logs


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


def _nll(log_probabilities: NDArray[np.float64], truths: NDArray[np.intp], temperature: float) -> float:
    shares = _log_softmax(log_probabilities / temperature)
    return float(-shares[np.arange(len(truths)), truths].mean())
