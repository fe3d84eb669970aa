"""The process a run lives in: how its C library hands out memory, and what its idle threads do."""

import ctypes
import os
import platform
import sys

ALLOCATOR_VARIABLE = "BEIT3_VQA_TUNE_ALLOCATOR"

# glibc's numbers for mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_TOP_PAD_BYTES = 64 * 2**20

# How long an idle OpenMP thread spins before it sleeps: GNU's library counts turns (300,000 by default), Intel's and
# LLVM's milliseconds (200 by default). `python -m benchmarks.contention` measures what they gain and cost; the second
# hasn't been measured yet.
SPIN_LIMITS: dict[str, str] = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
# Who sets one of these has decided; GOMP_SPINCOUNT would override their OMP_WAIT_POLICY.
_SPIN_VARIABLES: tuple[str, ...] = (*SPIN_LIMITS, "OMP_WAIT_POLICY", "KMP_LIBRARY")


def limit_spinning() -> None:
    """Let idle threads sleep early, unless the environment says how long they should spin.

    A thread that spins takes a core from whoever has work. Beside another process, a step then waits for a thread that
    isn't running: each of two trainings on two cores came to a fourteenth of the speed of one alone. OpenMP reads its
    environment when torch is loaded, so nothing is done after that. Processes that are started from here inherit it.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _SPIN_VARIABLES):
        os.environ.update(SPIN_LIMITS)


def spin_limits() -> str:
    """Return what the environment says about spinning, for people: `GOMP_SPINCOUNT=1000 KMP_BLOCKTIME=1`."""
    said = [f"{name}={os.environ[name]}" for name in _SPIN_VARIABLES if name in os.environ]
    return " ".join(said) or "as the library has it, since torch was loaded before"


def tune_allocator() -> bool:
    """Keeps freed memory in this process, instead of giving every large tensor back to the kernel.

    By default glibc maps each large block anew and unmaps it when it's freed, so that a training step on a CPU faults
    in, and has the kernel zero, the same gigabytes again and again. Call it before the first tensor. What it costs: a
    process keeps its peak size.

    Returns:
        whether anything was done: not outside Linux with glibc, nor where BEIT3_VQA_TUNE_ALLOCATOR is 0.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc" or os.environ.get(ALLOCATOR_VARIABLE) == "0":
        return False
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _TOP_PAD_BYTES))
    results = [mallopt(number, value) for number, value in settings]
    return all(results)


def give_back_freed_memory() -> None:
    """Gives the kernel what this process has freed and kept, so that its size says what it uses; Linux with glibc."""
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
