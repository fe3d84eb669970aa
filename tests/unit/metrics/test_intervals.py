"""Intervals against closed forms and published values."""

import math
import random

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.data.types import Prediction
from beit3_vqa.metrics import accuracy_interval, mean_interval, wilson_interval
from beit3_vqa.metrics.intervals import Z


def scored(*scores):
    return [Prediction(str(i), "q", "A", {"A": 1.0}, "A", score) for i, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("right", "questions", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17: method 3 (score), table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_equals_published_values(right, questions, low, high):
    assert wilson_interval(right, questions) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_are_where_the_score_test_turns(counts):
    right, questions = counts
    share = right / questions
    low, high = wilson_interval(right, questions)
    assert 0 <= low <= share <= high <= 1
    for end in {low, high} - {0.0, 1.0}:  # |share - p| = z sqrt(p (1 - p) / n) there
        assert abs(share - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / questions), rel=1e-5, abs=1e-9)


def test_mean_interval_equals_hand_computed_values():
    # mean 0.5, sample variance (0.25 + 0.25 + 0 + 0) / 3 = 1/6, standard error sqrt(1/24)
    half = 1.959963984540054 / math.sqrt(24)
    assert mean_interval([0.0, 1.0, 0.5, 0.5]) == pytest.approx((0.5 - half, 0.5 + half))
    assert mean_interval([0.3]) == (0.0, 1.0)
    assert mean_interval([0.9, 1.0, 0.3])[1] == 1.0
    assert mean_interval([-1.0, 1.0], -1.0, 1.0) == (-1.0, 1.0)


@pytest.mark.parametrize("count", [2, 3, 10, 100])
def test_interval_of_equal_values_is_wider_than_zero(count):
    for right in (0.0, 1.0):
        theirs = scipy.stats.binomtest(int(right) * count, count).proportion_ci(method="exact")
        assert mean_interval([right] * count) == pytest.approx((theirs.low, theirs.high))
    low, high = mean_interval([0.0] * count, -1.0, 1.0)
    assert -1 < low == -high < 0
    low, high = mean_interval([0.3] * count)
    assert 0 < low < 0.3 < high < 1


def test_wilson_interval_covers_the_truth_in_95_percent_of_samples():
    rng = random.Random(0)
    held = 0
    for _ in range(2000):
        right = sum(rng.random() < 0.78 for _ in range(60))
        low, high = wilson_interval(right, 60)
        held += low <= 0.78 <= high
    assert held / 2000 == pytest.approx(0.95, abs=0.02)


def test_accuracy_interval_names_its_method():
    assert accuracy_interval(scored(0.0, 1.0, 1.0))["method"] == "wilson"
    found = accuracy_interval(scored(0.0, 0.3, 1.0))
    assert found["method"] == "normal"
    assert found["level"] == 95
    assert 0 <= found["low"] < 100 * 1.3 / 3 < found["high"] <= 100
