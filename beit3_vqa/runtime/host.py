"""How this process was started, and how its C library hands out memory."""

import ctypes
import os
import platform
import shlex
import sys
from pathlib import Path

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


def typed_command(command: str) -> str:
    """Return the words that run one of our commands, begun as this process was: `beit3-vqa finetune`, for example.

    Args:
        command: name of the command. The script `run_beit3_finetuning.py` knows only `finetune`.
    """
    program = Path(sys.argv[0])
    if program.name == "run_beit3_finetuning.py" and command == "finetune":
        return f"python {shlex.quote(str(program))}"
    if program.name == "__main__.py" and program.parent.name == "beit3_vqa":
        return f"python -m beit3_vqa {command}"
    return f"beit3-vqa {command}"
