"""How the C library of this process hands out memory."""

import ctypes
import os
import platform

ALLOCATOR_VARIABLE = "BEIT3_VQA_TUNE_ALLOCATOR"

# glibc's numbers for mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_TOP_PAD_BYTES = 64 * 2**20


def tune_allocator() -> bool:
    """Keep freed memory in this process, instead of giving every large tensor back to the kernel.

    By default glibc maps each large block anew and unmaps it when it's freed, so that a training step on a CPU faults
    in, and has the kernel zero, the same gigabytes again and again. The price: a process keeps its peak size. Call
    this before the first tensor is made.

    Returns:
        whether anything was done: nothing without Linux and glibc, or if BEIT3_VQA_TUNE_ALLOCATOR is 0.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc" or os.environ.get(ALLOCATOR_VARIABLE) == "0":
        return False
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _TOP_PAD_BYTES))
    results = [mallopt(number, value) for number, value in settings]
    return all(results)


def give_back_freed_memory() -> None:
    """Return freed memory to the kernel, so that the process's size is what it uses; Linux with glibc only."""
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
