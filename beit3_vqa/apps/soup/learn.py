"""Learn the weights of a soup's members: those on the simplex at which the loss on a split is lowest.

The loss is a function of K numbers only. Its gradient is that of one backward pass, multiplied with each member's
weights: dL/dw_k = <dL/dtheta, theta_k>. L-BFGS (Liu and Nocedal 1989) goes down it with few passes. The weights are a
softmax of K free numbers, so that they are never negative and sum to 1.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

# Weights -> the loss, and its derivative by each of them.
Slope = Callable[[list[float]], tuple[float, list[float]]]
EVEN = 0.1  # part of the start that is even: a weight of 0 has no slope
STILL = 1e-6  # change of the loss or of a free number, or largest slope, at which the search is over; in the unit below


class _EnoughError(Exception):
    """As many passes were taken as may be."""


def learn_weights(slope: Slope, start: Sequence[float], passes: int) -> tuple[list[float], float]:
    """Return the weights with the lowest loss that were met, and that loss.

    Args:
        slope: called once for each pass.
        start: (K,) weights to begin near.
        passes: how often `slope` may be called, at least once.
    """
    even = torch.full((len(start),), 1 / len(start), dtype=torch.float64)
    begin = torch.tensor(start, dtype=torch.float64)
    free = ((1 - EVEN) * begin / begin.sum() + EVEN * even).log().requires_grad_()
    met: list[tuple[float, list[float]]] = []

    def measure() -> tuple[float, Tensor]:
        """Return the loss and its derivative by the free numbers; count the pass."""
        if len(met) == passes:
            raise _EnoughError
        weights = free.softmax(dim=0)
        values = weights.tolist()
        loss, slopes = slope(values)
        met.append((loss, values))
        (gradient,) = torch.autograd.grad(weights, free, torch.tensor(slopes, dtype=torch.float64))
        return loss, gradient

    first = [measure()]
    # L-BFGS begins with a step as long as the gradient. In this unit that is 1, a factor of at most e for a weight.
    unit = max(float(first[0][1].abs().sum()), STILL)

    def closure() -> Tensor:
        loss, gradient = first.pop() if first else measure()
        free.grad = gradient / unit
        return torch.tensor(loss / unit, dtype=torch.float64)

    optimizer = torch.optim.LBFGS(
        [free],
        max_iter=passes,
        max_eval=passes,
        tolerance_grad=STILL,
        tolerance_change=STILL,
        line_search_fn="strong_wolfe",
    )
    with suppress(_EnoughError):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    loss, weights = min(met)
    return weights, loss
