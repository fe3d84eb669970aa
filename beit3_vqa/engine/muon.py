"""Muon: a matrix inside a layer moves along its momentum made orthogonal, so that all directions learn at one pace.

From scratch that learns far sooner than AdamW (`get_started/experiments.md`). It is for matrices that map features to
features, and for the convolution that maps patches to features; embeddings, norms, biases and the head stay with AdamW.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the size of a step: Liu et al.
2025, "Muon is Scalable for LLM Training" (arXiv:2502.16982).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

BUFFER = "momentum_buffer"  # in the state of a matrix; the name is torch's
# Root mean square of a step, in learning rates. AdamW's steps have 0.2 to 0.4 of them, so one learning rate does for
# both.
STEP_SIZE = 0.4
# Coefficients of the iteration: the steepest at 0, since small singular values are to grow in few rounds. Those above a
# three-hundredth of the norm end between 0.68 and 1.2, not at 1, which makes no difference to learning.
QUINTIC, ROUNDS = (3.4445, -4.775, 2.0315), 5
STACK = 2**22  # numbers in the matrices that are made orthogonal at once: small ones together, large ones alone


class Muon(torch.optim.Optimizer):
    """Muon for the parameter groups whose `muon` is true, AdamW for the others.

    Args:
        groups: parameter groups, each with a bool `muon`; parameters of those where it is true are matrices,
            or convolutions, which are taken for matrices with a row for each filter.
        dtype: in which the products of Muon are computed; bf16 is exact enough.
        adamw: options of AdamW. Its first beta is Muon's momentum, too.
    """

    def __init__(self, groups: list[dict[str, Any]], dtype: torch.dtype, **adamw: Any):
        super().__init__(groups, adamw)
        self.dtype = dtype
        rest = [group for group in self.param_groups if not group["muon"]]
        self.adamw = torch.optim.AdamW(rest, fused=True, **adamw) if rest else None
        self._share()

    def _share(self) -> None:
        """Let AdamW work on this optimizer's own groups and state, so that both are saved and loaded as one."""
        if self.adamw:
            self.adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
            self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load moments and momenta."""
        super().load_state_dict(state_dict)  # it makes new groups and a new state
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        if self.adamw:
            self.adamw.step()
        for group in self.param_groups:
            if group["muon"]:
                for matrices in _stacks([p for p in group["params"] if p.grad is not None]):
                    self._move(matrices, group)

    def _move(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["betas"][0]
        for matrix in matrices:
            if BUFFER not in self.state[matrix]:
                self.state[matrix][BUFFER] = torch.zeros_like(matrix)
        buffers = [self.state[matrix][BUFFER] for matrix in matrices]
        grads = [matrix.grad for matrix in matrices if matrix.grad is not None]  # `step` gave only those that have one
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        # Nesterov's: where the momentum is about to go.
        ahead = [update.flatten(1) for update in torch._foreach_lerp(grads, buffers, momentum)]
        # The products below are of the shorter side, so a tall matrix is turned.
        tall = ahead[0].size(0) > ahead[0].size(1)
        wide = torch.stack([update.T if tall else update for update in ahead])
        steps = orthogonalize(wide, self.dtype).to(matrices[0].dtype)
        torch._foreach_mul_(matrices, 1 - lr * group["weight_decay"])
        # An orthogonal matrix of m x n numbers has a root mean square of 1 / sqrt(max(m, n)).
        size = lr * STEP_SIZE * wide.size(-1) ** 0.5
        steps = (steps.mT if tall else steps).reshape(-1, *matrices[0].shape)
        torch._foreach_add_(matrices, list(steps.unbind()), alpha=-size)


def _stacks(matrices: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield matrices of one shape at a time, as many as `STACK` allows."""
    shapes: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        shapes.setdefault(matrix.shape, []).append(matrix)
    for shape, alike in shapes.items():
        most = max(1, STACK // shape.numel())
        yield from (alike[first : first + most] for first in range(0, len(alike), most))


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Return about the nearest matrices (N, m, n) with orthogonal rows of length 1, m <= n, by Newton and Schulz.

    Args:
        matrices: (N, m, n), of any size but 0.
        dtype: of the products and of what is returned.
    """
    a, b, c = QUINTIC
    # Divided by its norm, no singular value is above 1, from where the iteration converges. Where the squares are too
    # small for float32, the norm comes out as 0, and the matrix is to stay small.
    x: Tensor = (matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12)).to(dtype)
    for _ in range(ROUNDS):
        gram: Tensor = x @ x.mT  # (N, m, m)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
