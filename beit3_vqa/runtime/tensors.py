"""Checks of tensors that come from files."""

import torch
from torch import Tensor


def is_plain(value: object) -> bool:
    """Return whether it is a dense tensor of real floating-point numbers, each with memory of its own.

    A file of a kilobyte can hold a tensor of a trillion numbers that share the memory of one. 4-bit floats, two to a
    byte, are refused: torch can't convert them.
    """
    if not (isinstance(value, Tensor) and value.is_floating_point() and value.layout is torch.strided):
        return False
    if str(value.dtype).startswith("torch.float4"):
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def all_finite(value: Tensor) -> bool:
    """Return whether a plain tensor holds neither NaN nor infinity."""
    # torch has no isfinite for 8-bit floats.
    return bool((value.float() if value.element_size() == 1 else value).isfinite().all())
