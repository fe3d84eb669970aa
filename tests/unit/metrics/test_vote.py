"""One function decides a vote, for ensembles, for the models of `serve` and for `--tta`: to the last bit as before."""

import math

from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.data.types import Prediction
from beit3_vqa.metrics.robustness import averaged
from beit3_vqa.metrics.vote import equal_weights, hard, soft

PROBABILITIES = st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=6)


def answer_of(values):
    shares = dict(zip("ABCD", values, strict=True))
    return Prediction("1", "What?", max(shares, key=shares.__getitem__), shares, truth="A", score=0.0)


@given(PROBABILITIES)
def test_plain_mean_is_the_exact_sum_divided_once(rows):
    answers = [answer_of(row) for row in rows]
    answer, means = soft(answers)
    expected = {name: math.fsum(row[i] for row in rows) / len(rows) for i, name in enumerate("ABCD")}
    assert means == expected
    assert answer == max("ABCD", key=expected.__getitem__)  # of equal ones the first
    if len(rows) > 1:
        one = averaged(answers)
        assert (one.answer, one.probabilities, one.score) == (answer, means, float(answer == "A"))
    if len(rows) <= 2:  # one or two models: a sum of two floats has one rounding, whichever way
        assert means == {name: sum(row[i] for row in rows) / len(rows) for i, name in enumerate("ABCD")}


@given(PROBABILITIES)
def test_weighted_mean_is_the_exact_sum_of_products(rows):
    weights = equal_weights(len(rows))
    _, means = soft([answer_of(row) for row in rows], weights)
    pairs = list(zip(weights, rows, strict=True))
    assert means == {name: math.fsum(w * row[i] for w, row in pairs) for i, name in enumerate("ABCD")}


def test_ties_go_to_the_answer_that_comes_first():
    tied = [answer_of([0.1, 0.4, 0.4, 0.1])]
    assert soft(tied)[0] == "B"
    assert hard([answer_of([0.0, 0.4, 0.6, 0.0]), answer_of([0.0, 0.6, 0.4, 0.0])])[0] == "B"
