"""Weights at which a loss is lowest: as scipy finds them, and with few passes."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from beit3_vqa.apps.soup.learn import learn_weights


def problem(seed, members):
    """A linear classifier's loss by the weights of some classifiers near the one that made the labels."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs, true = normal(200, 6), normal(6, 4)
    labels = (inputs @ true + normal(200, 4)).argmax(dim=1)
    thetas = [true * float(torch.rand(1, generator=generator)) * 0.8 + 0.7 * normal(6, 4) for _ in range(members)]

    def slope(weights):
        theta = sum(weight * one for weight, one in zip(weights, thetas, strict=True)).requires_grad_()
        loss = torch.nn.functional.cross_entropy(inputs @ theta, labels)
        loss.backward()
        return loss.item(), [(theta.grad * one).sum().item() for one in thetas]

    return slope


@pytest.mark.parametrize("members", range(2, 9))
def test_the_loss_is_as_low_as_scipy_finds_it(members):
    for seed in range(3):
        slope = problem(seed, members)
        weights, loss = learn_weights(slope, [1.0] * members, 40)
        theirs = minimize(
            lambda w, slope=slope: slope(w.tolist())[0],
            np.full(members, 1 / members),
            jac=lambda w, slope=slope: np.array(slope(w.tolist())[1]),
            bounds=[(0, 1)] * members,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-12},
        )
        even = slope([1 / members] * members)[0]
        assert theirs.fun - 1e-8 <= loss <= theirs.fun + max(1e-4, 0.001 * (even - theirs.fun))
        assert weights == pytest.approx(theirs.x, abs=0.05)
        assert slope(weights)[0] == loss
        assert min(weights) >= 0
        assert sum(weights) == pytest.approx(1)


def test_a_member_that_the_start_leaves_out_can_come_in():
    slope = problem(0, 3)
    even, _ = learn_weights(slope, [1.0, 1.0, 1.0], 30)
    for start in ([1.0, 0.0, 0.0], [0.0, 0.0, 2.0]):
        weights, _ = learn_weights(slope, start, 30)
        assert weights == pytest.approx(even, abs=0.03)


@pytest.mark.parametrize("passes", [1, 2, 5])
def test_no_more_passes_are_taken_than_may_be(passes):
    slope, seen = problem(3, 8), []

    def counting(weights):
        found = slope(weights)
        seen.append((found[0], weights))
        return found

    weights, loss = learn_weights(counting, [1.0] * 8, passes)
    assert len(seen) == passes
    assert (loss, weights) == min(seen)
