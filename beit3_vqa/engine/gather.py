"""A gather over the processes that gradients go back through."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from beit3_vqa.engine import distributed
from beit3_vqa.engine.distributed import share


def shares(together: int) -> list[int]:
    """How many of `together` examples each process has, by rank."""
    size = distributed.size()
    return [end - begin for begin, end in (share(together, rank, size) for rank in range(size))]


def gather_rows(x: Tensor, together: int) -> Tensor:
    """The rows of every process, by rank, the same in each; each must call it, and go backward through it.

    Args:
        x: this process's rows, of which the first `shares(together)[rank]` count; the rest have no part.
        together: rows that count, over all processes.

    Returns:
        (together, ...), whose gradient comes back to `x` summed over all processes.
    """
    return x[:together] if distributed.size() == 1 else _Gather.apply(x, shares(together))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        own = counts[distributed.rank()]
        ctx.place, ctx.shape = (sum(counts[: distributed.rank()]), own), x.shape
        padded = x.new_zeros(max(counts), *x.shape[1:])  # a collective wants equal shapes
        padded[:own] = x[:own]
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        begin, own = ctx.place
        ours = total.new_zeros(ctx.shape)
        ours[:own] = total[begin : begin + own]
        return ours, None
