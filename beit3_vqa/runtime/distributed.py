"""This process's place among those that torchrun started, and the ways in which they exchange values.

W processes share each batch: `--batch_size` is per process, so that a step has W times as many examples. With one
process everything here is local and free.
"""

import copy
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from beit3_vqa.errors import InputError, RunEnded, first_line

T = TypeVar("T")
_HEARTBEAT = 1.0  # seconds between signs of life while one process works and the others wait


class ProcessLost(RunEnded):
    """Another process of the run has ended or can't be reached."""

    exit_code = 4


def rank() -> int:
    """Return the number of this process, 0 to `world_size() - 1`; process 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, W."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this process is the one that writes and prints."""
    return rank() == 0


def shard_range(count: int, of_rank: int, of_size: int) -> tuple[int, int]:
    """Return where the part of a process begins and ends among `count` examples; parts differ by one at most."""
    return of_rank * count // of_size, (of_rank + 1) * count // of_size


def local_size(count: int) -> int:
    """Return how many of `count` examples are this process's."""
    begin, end = shard_range(count, rank(), world_size())
    return end - begin


def refuse_several(problem: str) -> None:
    """Raise InputError with the problem if torchrun started several processes."""
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise InputError(problem)


@contextmanager
def processes(device: torch.device, timeout: float) -> Iterator[None]:
    """Connect the processes that torchrun started for the time of the context; only the main one prints.

    Args:
        device: of this process. Tensors on GPUs are exchanged with nccl, numbers and objects with gloo, so that asking
            the others something never waits for a GPU.
        timeout: seconds that a process waits for another.

    Raises:
        ProcessLost: another process ended or can't be reached.
        InputError: torchrun's variables are missing or can't be right.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    # Alone, or inside a context that has connected them: cross validation keeps one around all of its folds.
    if (count.isdecimal() and int(count) <= 1) or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # nccl uses the current device for what has none of its own
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        _connect(backend, timedelta(seconds=timeout))
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"the processes didn't find each other ({first_line(error)}); start them with torchrun."
        ) from error
    try:
        with open(os.devnull, "w") as nowhere, nullcontext() if is_main() else redirect_stdout(nowhere):  # noqa: PTH123
            yield
    except RuntimeError as error:
        if not _is_of_another(error):
            raise
        raise ProcessLost(
            f"process {rank()} of {world_size()} lost contact with another process ({first_line(error)}). The "
            "checkpoints are as they were; the same command goes on from the last."
        ) from error
    finally:
        # After an error the others may be gone: closing the group would wait for them.
        if sys.exc_info()[0] is None:
            dist.destroy_process_group()


def _connect(backend: str, timeout: timedelta) -> None:
    """Join the process group that torchrun's variables describe.

    When torchrun starts the processes again it keeps its store, with the addresses of those that ended. So each start
    has names of its own there. On several machines torchrun counts restarts on each by itself; there the user has its
    store made anew (TORCH_DISABLE_SHARE_RDZV_TCP_STORE, see get_started/several_gpus.md).

    Source: https://github.com/pytorch/pytorch/issues/135712.
    """
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size):
        store = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def _is_of_another(error: RuntimeError) -> bool:
    text = str(error).lower()
    # The errors of gloo and nccl are RuntimeErrors like any other; only their text tells them apart.
    hints = ("connection", "timed out", "timeout", "gloo", "nccl", "peer", "socket", "allreduce", "allgather")
    return isinstance(error, dist.DistError) or any(hint in text for hint in hints)


def all_reduce_max(flag: int) -> int:
    """Return the largest of the processes' numbers; each must call it."""
    if world_size() == 1:
        return flag
    # On the CPU, so that gloo carries it and no process waits for its GPU.
    value = torch.tensor(flag)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def all_reduce_sum(value: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over the processes, in place, and return it; each must call it."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def all_gather(value: T) -> list[T]:
    """Return the values of all processes, by rank; each must call it with a value that can be pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def raise_together(error: InputError | None) -> None:
    """Raise in every process the error that one of them has, if any has one; each must call this.

    A process that raised its own alone would leave the others waiting for it. Only the main one prints the error. It
    is a copy: an error and a frame of its own traceback would hold each other, and with the frame a data loader.
    """
    if all_reduce_max(int(error is not None)):
        first = next(found for found in all_gather(error) if found)
        first.said_elsewhere = not is_main()
        raise copy.copy(first)


def run_on_main(choose: Callable[[], T]) -> T:
    """Call a function in the main process and return its result in every process; each must call this.

    The others wait for as long as it takes: a signal every second keeps `--dist_timeout` from ending them.

    Raises:
        InputError: the function raised it; it is raised in every process, and only the main one prints it.
        RuntimeError: the function raised another error.
    """
    if world_size() == 1:
        return choose()
    outcome: list[Any] = [None, None]
    if is_main():
        # In a thread, so that this one can go on giving signs of life. A daemon: if another process is lost meanwhile,
        # this one ends without waiting for it.
        thread = threading.Thread(target=_note_outcome, args=(choose, outcome), daemon=True)
        thread.start()
    done = False
    while not done:
        if is_main():
            thread.join(_HEARTBEAT)
        done = bool(all_reduce_max(int(is_main() and not thread.is_alive())))
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        outcome[1].said_elsewhere = not is_main()
        raise outcome[1]
    chosen: T = outcome[0]
    return chosen


def _note_outcome(choose: Callable[[], T], outcome: list[Any]) -> None:
    try:
        outcome[0] = choose()
    except InputError as error:
        outcome[1] = error
    except Exception:  # its traceback as text: the error is raised anew in every process
        outcome[1] = RuntimeError(f"the main process failed:\n{traceback.format_exc()}")


def local_device(kind: str) -> torch.device:
    """Return this process's device of a kind: each process of a machine has a GPU of its own."""
    local = os.environ.get("LOCAL_RANK")
    return (
        torch.device(kind, int(local))
        if kind == "cuda" and local is not None and local.isdecimal()
        else torch.device(kind)
    )


def shard_sizes(global_batch: int) -> list[int]:
    """Return how many of `global_batch` examples each process has, by rank."""
    size = world_size()
    return [end - begin for begin, end in (shard_range(global_batch, place, size) for place in range(size))]


def gather_rows(x: Tensor, global_batch: int) -> Tensor:
    """Gather the rows of every process, by rank; each must call it, and go backward through it.

    Args:
        x: (N, ...), this process's rows, of which the first `shard_sizes(global_batch)[rank]` are taken.
        global_batch: number of rows that are taken over all processes.

    Returns:
        (global_batch, ...), the same in every process; its gradient, summed over all processes, comes back to `x`.
    """
    return x[:global_batch] if world_size() == 1 else _Gather.apply(x, shard_sizes(global_batch))


class _Gather(torch.autograd.Function):
    """A gather over the processes that gradients go back through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        own = counts[rank()]
        # Where this process's rows begin in the result, and how many they are.
        ctx.place, ctx.shape = (sum(counts[: rank()]), own), x.shape
        padded = x.new_zeros(max(counts), *x.shape[1:])  # a collective wants equal shapes
        padded[:own] = x[:own]
        # One (most, ...) from each process, of which the first rows are its own.
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        # A loss of each process was made of all rows, so their gradients add up. A clone: all_reduce writes in place.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        begin, own = ctx.place
        # Rows beyond this process's part weren't gathered, and get no gradient.
        ours = total.new_zeros(ctx.shape)
        ours[:own] = total[begin : begin + own]
        return ours, None
