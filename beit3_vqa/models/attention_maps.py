"""Where a model looks: the attention that one query (of [CLS], or of a text's end) gives to every key.

A fused kernel never holds the weights. So hooks take queries and keys as the projections put them out, and the weights
of that one query are computed again. The model's forward pass stays as it is, whichever kernel it takes.

Shapes: B batch, K keys, D width, H heads.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

LAST_LAYERS = 4  # earlier ones attend to neighbours and to edges, whatever is asked


@contextmanager
def caught_outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Yield a list that holds, after the block, what each module put out in it, in the order of `modules`.

    Each module must be called once. A compiled model doesn't call its modules: build it without `--compile`.
    """
    caught: dict[int, Tensor] = {}
    ordered: list[Tensor] = []

    def catch(place: int, module: nn.Module, inputs: object, output: Tensor) -> None:
        caught[place] = output.detach()

    handles = [module.register_forward_hook(partial(catch, place)) for place, module in enumerate(modules)]
    try:
        yield ordered
        ordered += [caught[place] for place in range(len(modules))]
    finally:
        for handle in handles:
            handle.remove()


def query_weights(query: Tensor, keys: Tensor, heads: int, attended: Tensor | None = None) -> Tensor:
    """Return the attention weights of one query, averaged over the heads.

    Args:
        query: (B, D).
        keys: (B, K, D).
        heads: H, which divides D.
        attended: bool (B, K), true where a key may be attended to; None: everywhere.

    Returns:
        float32 (B, K); each row sums to 1.
    """
    q = torch.unflatten(query.float(), -1, (heads, 1, -1))  # (B, H, 1, D / H)
    k = torch.unflatten(keys.float(), -1, (heads, -1)).transpose(1, 2)  # (B, H, K, D / H)
    # The same scale, 1 / sqrt(D / H), as in the model's own attention.
    scores: Tensor = ((q * q.size(-1) ** -0.5) @ k.transpose(-1, -2)).squeeze(2)  # (B, H, K)
    if attended is not None:
        scores = scores.masked_fill(~attended[:, None], float("-inf"))
    return scores.softmax(dim=-1).mean(dim=1)


def mean_weights(queries: Sequence[Tensor], keys: Sequence[Tensor], heads: int, attended: Tensor | None) -> Tensor:
    """Average `query_weights` over the layers, one query (B, D) and keys (B, K, D) for each: float32 (B, K)."""
    each = [query_weights(q, k, heads, attended) for q, k in zip(queries, keys, strict=True)]
    return torch.stack(each).mean(dim=0)


def square(shares: Tensor) -> Tensor:
    """Lay out the shares of a square image's patches: (B, rows * columns) -> (B, rows, columns)."""
    side = round(shares.size(1) ** 0.5)
    return shares.reshape(-1, side, side)
