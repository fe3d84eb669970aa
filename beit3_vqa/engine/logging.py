"""What a run shows while it goes: a progress bar or plain lines, TensorBoard, log.txt."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from beit3_vqa.data.predictions import json_text
from beit3_vqa.errors import InputError
from beit3_vqa.runtime import memory
from beit3_vqa.runtime.distributed import is_main
from beit3_vqa.runtime.files import write_text

# Between looks at values that live on a device, each of which makes the host wait for it.
BAR_SECONDS = 2.0


class Progress:
    """A bar on a terminal, a line now and then elsewhere (a notebook's log, a file).

    Args:
        label: what goes on, such as `epoch 3/20`.
        total: examples to come.
        interval: seconds between lines where there is no terminal.
        done: examples of the total that are done already.
    """

    def __init__(self, label: str, total: int, interval: float = 10.0, done: int = 0):
        self.label, self.total, self.interval = label, total, interval
        self.done = self.first = done
        self.started = self.last_line = time.monotonic()
        self.bar = None
        if sys.stderr.isatty() and is_main():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, desc=label, unit="ex", leave=False, dynamic_ncols=True)

    def update(self, examples: int, values: Callable[[], dict[str, str]]) -> None:
        """Counts examples and, if it is time, shows `values()` beside speed and time left."""
        self.done += examples
        if self.bar is not None:
            self.bar.update(examples)
            if time.monotonic() - self.last_line >= BAR_SECONDS:
                self.last_line = time.monotonic()
                self.bar.set_postfix(values(), refresh=False)
        elif time.monotonic() - self.last_line >= self.interval or self.done >= self.total:
            self.last_line = time.monotonic()
            shown = "  ".join(f"{name} {value}" for name, value in values().items())
            left = (self.total - self.done) / max(1e-9, self.speed())
            print(
                f"{self.label}  {self.done}/{self.total}  {self.speed():.0f} ex/s  "
                f"{format_seconds(left)} left  {shown}",
                flush=True,
            )

    def speed(self) -> float:
        """Examples per second so far."""
        return (self.done - self.first) / max(1e-9, time.monotonic() - self.started)

    def close(self) -> None:
        """Takes the bar away."""
        if self.bar is not None:
            self.bar.close()


class RunLog:
    """TensorBoard scalars and log.txt (a JSON line per epoch) of a training run; the main process's alone.

    A disk that is full costs points of a curve, not the run: that is said once, and log.txt is tried again.

    Args:
        output_dir: where log.txt goes.
        log_dir: TensorBoard folder.
        first_epoch: epochs already done: lines of a lost continuation from there on are dropped.
        first_step: optimizer steps already done: events of a lost continuation beyond them are hidden.
    """

    def __init__(self, output_dir: Path, log_dir: Path, first_epoch: int = 0, first_step: int = 0):
        self.path = output_dir / "log.txt"
        self.lines = _epochs_before(first_epoch, self.path) if self.path.exists() else []
        self.writer: Any = None
        self._complained = False
        if is_main():
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(log_dir), purge_step=first_step + 1 if first_step else None)
            if self.path.exists():
                self._write_lines()

    def scalars(self, values: dict[str, float], step: int) -> None:
        """TensorBoard scalars of an optimizer step."""
        with self._complaining():
            for name, value in values.items() if self.writer else ():
                self.writer.add_scalar(name, value, step)

    def epoch(self, values: dict[str, Any]) -> None:
        """A JSON line in log.txt."""
        self.lines.append(json_text(values, allow_nan=True))
        if is_main():
            with self._complaining():
                self._write_lines()
                self.writer.flush()

    def _write_lines(self) -> None:
        write_text(self.path, "".join(f"{line}\n" for line in self.lines))

    @contextmanager
    def _complaining(self) -> Iterator[None]:
        try:
            yield
        except (OSError, InputError) as error:
            if not self._complained:
                print(f"the log can't be written ({error}); training goes on without")
            self._complained = True

    def close(self) -> None:
        """Flushes TensorBoard's events."""
        with self._complaining():
            if self.writer:
                self.writer.close()


def get_scalars(metrics: dict[str, Any], prefix: str) -> dict[str, float]:
    """What of metrics is a curve: all but counts, and the accuracies of groups (`prefix/accuracy_by_.../what`)."""
    found = {f"{prefix}/{name}": value for name, value in metrics.items() if isinstance(value, float)}
    for name, groups in metrics.items():
        if isinstance(groups, dict):
            parts = {
                key: group["accuracy"]
                for key, group in groups.items()
                if isinstance(group, dict) and "accuracy" in group
            }
            found |= {f"{prefix}/{name}/{key}": value for key, value in parts.items()}
    return found


def _epochs_before(first_epoch: int, path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if -1 < _read_epoch(line) < first_epoch]


def _read_epoch(line: str) -> int:
    """The epoch of a line of log.txt; -1 where it was cut off, or isn't ours."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return -1


def format_seconds(seconds: float) -> str:
    """`1:02:03`, or `2:03` under an hour."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def peak_memory(device: torch.device) -> str:
    """Peak memory of this process: the GPU's if it has one, else main memory."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB"
    peak = memory.peak()
    return "unknown" if peak is None else f"{peak / 2**30:.2f} GiB"
