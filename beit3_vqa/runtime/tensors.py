"""What a tensor must be like before it is used."""

from typing import Any

import torch
from torch import Tensor


def is_plain(value: Any) -> bool:
    """Whether it is a dense tensor of real floating-point numbers, each with memory of its own.

    A file of a kilobyte can hold a tensor of a trillion numbers that are all the same one. Types that share a byte
    among numbers (4-bit floats) can't be copied to others.
    """
    if not (isinstance(value, Tensor) and value.is_floating_point() and value.layout is torch.strided):
        return False
    if str(value.dtype).startswith("torch.float4"):
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def all_finite(value: Tensor) -> bool:
    """Return whether a plain tensor holds neither NaN nor infinity; torch can't say it of 8-bit floats as they are."""
    return bool((value.float() if value.element_size() == 1 else value).isfinite().all())
