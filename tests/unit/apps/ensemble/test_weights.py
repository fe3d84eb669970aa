"""Weights of a mixture: against scipy's optimiser, and honest where members are useless."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from beit3_vqa.apps.ensemble.compare import get_groups, truth_probabilities
from beit3_vqa.apps.ensemble.weights import FOLDS, PSEUDO_COUNT, cross_fit_weights, fit_weights, log_loss
from tests.helpers.ensembles import simulated


def by_scipy(probabilities):
    """The maximum of the likelihood, imagined questions included, in another way."""
    members = probabilities.shape[1]

    def loss(marks):
        weights = np.exp(marks - marks.max())
        weights = weights / weights.sum()
        return -(np.log(probabilities @ weights).sum() + PSEUDO_COUNT * np.log(weights).sum())

    marks = minimize(loss, np.zeros(members), options={"gtol": 1e-9}).x
    return np.exp(marks) / np.exp(marks).sum()


@pytest.mark.parametrize("skills", [[1.0, 1.0], [2.0, 1.0, 0.0], [1.5, 1.5, 1.4, 0.2]])
def test_fitted_weights_equal_scipys(skills):
    probabilities = truth_probabilities(simulated(300, skills, seed=1))
    assert fit_weights(probabilities) == pytest.approx(by_scipy(probabilities), abs=1e-4)


def test_a_member_that_guesses_gets_nearly_no_weight():
    probabilities = truth_probabilities(simulated(2000, [2.0, 2.0, 0.0], seed=2))
    weights = fit_weights(probabilities)
    assert weights[2] < 0.02
    assert min(weights[:2]) > 0.4


def test_a_question_whose_truth_nobody_kept_changes_no_weight():
    probabilities = truth_probabilities(simulated(50, [2.0, 1.0], seed=3))
    more = np.concatenate([probabilities, np.zeros((10, 2))])
    assert fit_weights(more) == pytest.approx(fit_weights(probabilities))
    assert fit_weights(np.zeros((5, 3))) == pytest.approx(np.full(3, 1 / 3))
    assert np.isfinite(log_loss(more, fit_weights(more)))


@given(rows=st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), max_size=30))
def test_weights_are_positive_and_sum_to_1(rows):
    weights = fit_weights(np.array(rows).reshape(-1, 3))
    assert (weights > 0).all()
    assert weights.sum() == pytest.approx(1)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    skills=st.lists(st.floats(0, 3), min_size=2, max_size=5),
    count=st.integers(60, 400),
)
def test_cross_validated_weights_are_never_much_worse_than_equal_ones(seed, skills, count):
    """A fit of M - 1 numbers to N questions may lose about (M - 1) / N nats to the best; twenty times that is a bug."""
    questions = simulated(count, skills, seed)
    probabilities = truth_probabilities(questions)
    held_out = log_loss(probabilities, cross_fit_weights(probabilities, get_groups(questions), seed=0))
    equal = log_loss(probabilities, np.full(len(skills), 1 / len(skills)))
    assert held_out <= equal + 20 * (len(skills) - 1) / count


def test_no_question_is_judged_by_weights_that_saw_its_image():
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(size=(60, 2))
    groups = [f"image {number // 4}" for number in range(60)]
    weights = cross_fit_weights(probabilities, groups, seed=0)
    assert 1 < len(np.unique(weights[:, 0])) <= FOLDS
    for image in set(groups):
        own = np.array([group == image for group in groups])
        changed = probabilities.copy()
        changed[own] = rng.uniform(size=(own.sum(), 2))
        assert (cross_fit_weights(changed, groups, seed=0)[own] == weights[own]).all()
        assert not (cross_fit_weights(changed, groups, seed=0) == weights).all()


def test_log_loss_of_fitted_weights_is_flattering_and_cross_fitted_is_not():
    """Members that only guess, few questions: the fit flatters itself, the cross-validated one doesn't."""
    flattered, honest = [], []
    for seed in range(20):
        questions = simulated(25, [0.0] * 6, seed)
        probabilities = truth_probabilities(questions)
        equal = log_loss(probabilities, np.full(6, 1 / 6))
        flattered.append(log_loss(probabilities, fit_weights(probabilities)) - equal)
        honest.append(log_loss(probabilities, cross_fit_weights(probabilities, get_groups(questions), seed)) - equal)
    assert np.mean(flattered) < 0 < np.mean(honest)
