"""One number that makes a model's probabilities mean what they say, without changing an answer.

A temperature T divides the logits: of probabilities p it makes p^(1/T) over their sum. Above 1 it makes a model less
sure, below 1 surer.

Source: Guo et al. 2017, On calibration of modern neural networks.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit3_vqa.schema import Prediction

LOWEST, HIGHEST = 0.05, 20.0
_DIGITS = 3
_NLL_DIGITS = 5
_STEPS = 60  # golden sections: they leave a 10^-12th of the interval
_FLAT = 1e-12  # nats that are rounding
_SMALLEST = 1e-30  # of a probability that was rounded to 0


def fit_temperature(predictions: Sequence[Prediction]) -> float | None:
    """Find the temperature under which the truths are likeliest, to 3 decimals; None if no row has what that needs.

    It is 1 if no other is better, as where every option is equally likely; `LOWEST` if every truth is the likeliest, so
    that the questions set no bound.

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
    return round(found, _DIGITS)


def mean_nll(predictions: Sequence[Prediction], temperature: float = 1.0) -> float | None:
    """Mean negative log-likelihood of the truths at a temperature, in nats; None where `fit_temperature` is None."""
    log_probabilities, truths = _table(predictions)
    return round(_nll(log_probabilities, truths, temperature), _NLL_DIGITS) if len(truths) else None


def tempered(prediction: Prediction, temperature: float) -> Prediction:
    """The prediction with its probabilities at another temperature, its answer as it is."""
    if temperature == 1.0:
        return prediction
    names = list(prediction.probabilities)
    shares = temper(np.array([[prediction.probabilities[name] for name in names]]), temperature)[0]
    return dataclasses.replace(prediction, probabilities=dict(zip(names, map(float, shares), strict=True)))


def temper(probabilities: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """Probabilities (N, C) at another temperature, each row summing to 1."""
    return np.exp(_log_softmax(_log(probabilities.astype(np.float64)) / temperature))


def _table(predictions: Sequence[Prediction]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Log-probabilities (N, C), -inf beyond a row's own, and the place of the truth (N,), of rows that have both."""
    known = [p for p in predictions if p.choices and p.truth in p.probabilities]
    widest = max((len(p.probabilities) for p in known), default=0)
    table = np.full((len(known), widest), -np.inf)
    for row, p in zip(table, known, strict=True):
        row[: len(p.probabilities)] = _log(np.array(list(p.probabilities.values())))
    places = [list(p.probabilities).index(p.truth or "") for p in known]
    return table, np.array(places, dtype=np.intp)


def _log(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(np.maximum(probabilities, _SMALLEST))


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _nll(log_probabilities: NDArray[np.float64], truths: NDArray[np.intp], temperature: float) -> float:
    shares = _log_softmax(log_probabilities / temperature)
    return float(-shares[np.arange(len(truths)), truths].mean())
