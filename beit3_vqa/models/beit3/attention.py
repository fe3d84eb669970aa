"""Scaled dot-product attention, by the kernel that is quickest on the device at hand.

Shapes: B batch, H heads, Q queries, K keys, D width of a head. A kernel takes q (B, H, Q, D), k and v (B, H, K, D) and
`bias` (B or 1, 1, Q or 1, M), which it adds to the scores of the last M keys: 0 where a query may attend to a key, else
-inf (`as_bias`); None: every query attends to every key. It returns the context (B, H, Q, D).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

# Bytes of weights (B, H, Q, K) up to which `matmul` is taken, without gradients and with them. For the backward pass
# every layer keeps its own: at base 480, batch of 2, that would be 0.4 GiB for no time won.
MATMUL_BYTES, MATMUL_BYTES_KEPT = 256 * 2**20, 32 * 2**20


# On a GPU rows of a bias begin at multiples of so many numbers: attention of cuDNN (32 examples of 941 tokens, on an
# H100) is then nearly as quick as without a mask, instead of taking twice as long.
ALIGNED = 16


def as_bias(attended: Tensor, dtype: torch.dtype, always: int = 0) -> Tensor:
    """Return what a kernel adds to its scores, (B or 1, 1, Q or 1, M).

    Args:
        attended: bool (B or 1, 1, Q or 1, K), true where a query may attend to a key.
        dtype: the queries'.
        always: how many of the keys, from the first on, every query may attend to.
    """
    if not attended.is_cuda:  # kernels of GPUs read a bias for all keys
        attended = attended[..., always:]
    *rows, keys = attended.shape
    unused = -keys % ALIGNED if attended.is_cuda else 0
    bias = torch.zeros(*rows, keys + unused, dtype=dtype, device=attended.device)
    return bias[..., :keys].masked_fill_(~attended, float("-inf"))


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attend by PyTorch's fused kernel, which never holds the attention weights."""
    if bias is not None:
        unmasked = k.size(2) - bias.size(-1)
        bias = F.pad(bias, (unmasked, 0)) if unmasked else bias
        bias = bias.expand(*q.shape[:3], -1)  # a view: nothing is copied
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def matmul(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attend by two matrix products with a softmax between them."""
    # As in torchscale, the scale 1 / sqrt(D) goes on the queries, before the product.
    weights: Tensor = (q * q.size(-1) ** -0.5) @ k.transpose(-1, -2)  # (B, H, Q, K)
    if bias is not None:
        # In place and past autograd: a sum hands its gradient on as it is, and no gradient needs the scores.
        weights.detach()[..., -bias.size(-1) :] += bias
    # Autocast may compute the softmax in float32; the product goes on in the values' type.
    context: Tensor = weights.softmax(dim=-1).to(v.dtype) @ v
    return context


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attend by the kernel that `pick` names for these tensors."""
    weights = q.size(0) * q.size(1) * q.size(2) * k.size(2)
    return KERNELS[pick(q.device, q.dtype, weights)](q, k, v, bias)


def pick(device: torch.device, dtype: torch.dtype, weights: int) -> str:
    """Choose the kernel for `--attention auto`: `matmul` in bf16 on a CPU while its weights are few, else `sdpa`.

    The fused kernel needs far less memory. So it is taken wherever the other wasn't measured to be faster, and that was
    only in bf16 on a CPU (1.15 times, base at 480 pixels on an AMD). While gradients are computed, fewer are "few".

    Args:
        device: the queries'.
        dtype: the queries'.
        weights: number of attention weights, B * H * Q * K.

    Returns:
        A key of `KERNELS`.
    """
    few = weights * dtype.itemsize <= (MATMUL_BYTES_KEPT if torch.is_grad_enabled() else MATMUL_BYTES)
    return "matmul" if device.type == "cpu" and dtype == torch.bfloat16 and few else "sdpa"


KERNELS: dict[str, Attend] = {"sdpa": sdpa, "matmul": matmul}
