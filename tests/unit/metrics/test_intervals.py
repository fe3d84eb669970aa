"""Intervals against closed forms and published values."""

import math
import random

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.data.types import Prediction
from beit3_vqa.metrics.intervals import Z, accuracy_interval, clustered_interval, mean_interval, wilson_interval


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


def about(scores):
    """Scores by image: one list for each."""
    return [
        Prediction(f"{image} {n}", "q", "A", {}, "A", score, image=f"{image}.png")
        for image, some in enumerate(scores)
        for n, score in enumerate(some)
    ]


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60))
def test_with_an_image_for_each_question_the_clustered_interval_is_wilsons(scores):
    wanted = accuracy_interval(scored(*scores))
    for rows in (about([[score] for score in scores]), scored(*scores)):  # an image of its own, or none known
        found = clustered_interval(rows)
        assert (found["low"], found["high"]) == pytest.approx((wanted["low"], wanted["high"]))
        assert found["images"] == len(scores)


def test_questions_that_are_alike_count_as_their_images():
    scores = [1.0] * 12 + [0.0] * 8
    found = clustered_interval(about([[score] * 5 for score in scores]))
    low, high = wilson_interval(12, 20)
    # (images - 1) / images against (questions - 1) / questions: nearly as many as images
    assert found["effective_questions"] == pytest.approx(19 * 100 / 99)
    assert (found["low"], found["high"]) == pytest.approx((100 * low, 100 * high), abs=0.7)
    for share in (0.0, 1.0):
        alike = clustered_interval(about([[share] * 5] * 20))
        low, high = wilson_interval(20 * share, 20)
        assert (alike["low"], alike["high"]) == (100 * low, 100 * high)


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=4), min_size=1, max_size=10))
def test_a_clustered_interval_holds_the_accuracy_and_is_never_smaller(groups):
    rows = about(groups)
    found, plain = clustered_interval(rows), accuracy_interval(rows)
    share = 100 * sum(p.score for p in rows) / len(rows)
    assert 0 <= found["low"] <= share + 1e-9
    assert share - 1e-9 <= found["high"] <= 100
    assert found["high"] - found["low"] >= plain["high"] - plain["low"] - 1e-9
    assert 1 <= found["effective_questions"] <= len(rows)


def test_clustered_intervals_hold_the_true_accuracy_95_times_of_100():
    rng = random.Random(0)
    held = {"clustered": 0, "plain": 0}
    for _ in range(600):
        groups = []
        for _ in range(60):
            easy = rng.random() < 0.7  # an image is easy or hard, for all its questions
            groups.append([float(rng.random() < (0.95 if easy else 0.1)) for _ in range(6)])
        rows, true = about(groups), 100 * (0.7 * 0.95 + 0.3 * 0.1)
        for name, found in (("clustered", clustered_interval(rows)), ("plain", accuracy_interval(rows))):
            held[name] += found["low"] <= true <= found["high"]
    assert 0.92 * 600 <= held["clustered"] <= 0.98 * 600
    assert held["plain"] < 0.8 * 600
