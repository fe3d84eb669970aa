"""Measure the memory that a computation takes at its peak and that is free, and copy tensors to main memory."""

import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from beit3_vqa.runtime.host import give_back_freed_memory

T = TypeVar("T")

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets VmHWM to what is resident now
_CGROUPS = (  # files of a container's limit and use, in bytes: cgroup version 2, then version 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class NotEnoughMemory(Exception):  # noqa: N818 - named after what happened
    """The computation didn't fit."""


def can_measure(device: torch.device) -> bool:
    """Return whether `measure_peak` and `free` work for this device: CUDA GPUs, and the CPU on Linux."""
    return device.type == "cuda" or (device.type == "cpu" and _CLEAR.exists())


def measure_peak(compute: Callable[[], object], device: torch.device) -> int:
    """Return the peak of memory in use during `compute()`, in bytes, with what was in use before.

    Raises:
        NotEnoughMemory: it doesn't fit on the GPU.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        give_back_freed_memory()
        _CLEAR.write_text(_RESET_PEAK)
    try:
        compute()
    except torch.OutOfMemoryError as error:
        raise NotEnoughMemory from error
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else _status("VmHWM")


def in_use(device: torch.device) -> int:
    """Return the bytes that this process uses now."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    gc.collect()
    give_back_freed_memory()
    return _status("VmRSS")


def free(device: torch.device) -> int:
    """Return the bytes that this process could still take; a container's limit counts."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = [_kibibytes(Path("/proc/meminfo"), "MemAvailable")]
    for limit, used in _CGROUPS:
        with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
            available.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, min(available))


def has_room_for(count: int) -> bool:
    """Return whether main memory has so many bytes left, and what this process gave back since its peak.

    True where that can't be known.
    """
    cpu = torch.device("cpu")
    return not can_measure(cpu) or count + max(0, _status("VmHWM") - _status("VmRSS")) <= free(cpu)


def count_bytes(value: object) -> int:
    """Return the bytes of the tensors in nested dicts, lists and tuples; one in several places counts once."""
    return sum(tensor.nbytes for tensor in _tensors(value).values())


def copy_to_main(value: T) -> T:
    """Return a copy of nested dicts, lists and tuples, with all tensors in main memory.

    A tensor that stands in several places is copied once.
    """
    copies = {key: tensor.detach().to("cpu", copy=True) for key, tensor in _tensors(value).items()}
    copy: T = _with_tensors(value, copies)
    return copy


def _with_tensors(value: Any, copies: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return copies[id(value)]
    if isinstance(value, dict):
        return {name: _with_tensors(part, copies) for name, part in value.items()}
    return type(value)(_with_tensors(part, copies) for part in value) if isinstance(value, (list, tuple)) else value


def _tensors(value: object) -> dict[int, Tensor]:
    """Return the tensors inside a value by their `id`."""
    if isinstance(value, Tensor):
        return {id(value): value}
    if not isinstance(value, (dict, list, tuple)):
        return {}
    parts = value.values() if isinstance(value, dict) else value
    return {key: tensor for part in parts for key, tensor in _tensors(part).items()}


def peak() -> int | None:
    """Return the peak of this process's main memory in bytes; None if the system doesn't say."""
    with suppress(OSError, StopIteration):  # Linux; getrusage counts what the parent had before exec, too
        return _status("VmHWM")
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(name: str) -> int:
    return _kibibytes(_STATUS, name)


def _kibibytes(path: Path, name: str) -> int:
    """Return the bytes on the line `NAME:   1234 kB`; StopIteration if there is none."""
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024
