"""Scaled dot-product attention, by whichever way is quickest on the device at hand.

Shapes: q (B, H, Q, D), k and v (B, H, K, D), context (B, H, Q, D): B batch, H heads, Q queries, K keys, D width of a
head. `attended` is bool (B or 1, 1, Q or 1, K), true where a key may be attended to, or None where that is every key.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

# Bytes of weights (B, H, Q, K) up to which `matmul` is taken: they are kept for the backward pass, in every layer.
MATMUL_BYTES = 256 * 2**20


def sdpa(q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None) -> Tensor:
    """PyTorch's fused kernel; it never holds the attention weights."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attended)


def matmul(q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None) -> Tensor:
    """Two matrix products with a softmax between them."""
    weights = (q * q.size(-1) ** -0.5) @ k.transpose(-1, -2)
    if attended is not None:
        weights = weights.masked_fill(~attended, float("-inf"))
    return weights.softmax(dim=-1).to(v.dtype) @ v


def attend(q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None) -> Tensor:
    """The kernel that `pick` names for these tensors."""
    weights = q.size(0) * q.size(1) * q.size(2) * k.size(2)
    return KERNELS[pick(q.device, q.dtype, weights)](q, k, v, attended)


def pick(device: torch.device, dtype: torch.dtype, weights: int) -> str:
    """What `auto` takes: `matmul` in bf16 on a CPU while its weights are few, else `sdpa`.

    The fused kernel needs far less memory, so it is the one to take wherever the other hasn't been seen to be faster:
    that was in bf16 on a CPU (1.15 times, base at 480 pixels).

    Args:
        device: of the queries.
        dtype: of the queries.
        weights: number of attention weights, B * H * Q * K.
    """
    few = weights * dtype.itemsize <= MATMUL_BYTES
    return "matmul" if device.type == "cpu" and dtype == torch.bfloat16 and few else "sdpa"


KERNELS: dict[str, Attend] = {"sdpa": sdpa, "matmul": matmul}
