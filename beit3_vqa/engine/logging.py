"""Show and log a run while it goes: a progress bar or plain lines, log.txt, curves."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from beit3_vqa.data.predictions import json_text
from beit3_vqa.engine.loggers import Loggers
from beit3_vqa.errors import InputError
from beit3_vqa.runtime import memory
from beit3_vqa.runtime.bar import progress_bar
from beit3_vqa.runtime.distributed import is_main
from beit3_vqa.runtime.files import write_text

logger = logging.getLogger(__name__)

LOG = "log.txt"
VALIDATION = "val_"  # begins the names of a validation's metrics in it
_MAX_EPOCH = 10**12  # largest number of an epoch
BAR_SECONDS = 2.0  # between updates of the bar's values: reading them makes the host wait for the device


class Progress:
    """A bar on a terminal or in a notebook, or a line now and then in a file.

    Args:
        label: begins each line, such as `epoch 3/20`.
        total: number of examples.
        interval: seconds between lines if there is no bar.
        done: examples of the total that are done already.
    """

    def __init__(self, label: str, total: int, interval: float = 10.0, done: int = 0):
        self.label, self.total, self.interval = label, total, interval
        self.done = self.first = done
        self.started = self.last_line = time.monotonic()
        self.bar = None
        if is_main():
            bar = progress_bar(total=total, initial=done, desc=label, unit="ex", leave=False, dynamic_ncols=True)
            self.bar = None if bar.disable else bar

    def update(self, examples: int, values: Callable[[], dict[str, str]]) -> None:
        """Count examples and, if it is time, show `values()` beside speed and time left."""
        self.done += examples
        if self.bar is not None:
            self.bar.update(examples)
            # `values` waits for the device, so it is called now and then only.
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
        """Return the examples per second so far."""
        # The clock may not have moved between the two.
        return (self.done - self.first) / max(1e-9, time.monotonic() - self.started)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Return a context whose time doesn't count in the speed."""
        began = time.monotonic()
        yield
        self.started += time.monotonic() - began

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()


class RunLog:
    """The log of a training run: log.txt (a JSON line per validation), and curves. Only the main process writes it.

    A line is of an epoch, or if it has a `share`, of a validation after that share of the epoch's examples.

    A full disk costs points of a curve, not the run: the error is printed once, and log.txt is tried again.

    Args:
        output_dir: where log.txt goes.
        loggers: where curves go.
        done: epochs already done; the fraction is the share of the next at its last validation. Later lines are
            dropped: what they tell of is trained again.
    """

    def __init__(self, output_dir: Path, loggers: Loggers, done: float = 0):
        self.path, self.loggers = output_dir / LOG, loggers
        kept = [line for line in read_log(self.path) if 0 < _epochs_done(line) <= done]
        self.lines = [json_text(line, allow_nan=True) for line in kept]
        self._complained = False
        # Now, so that log.txt never tells of epochs that are still to come.
        if is_main() and self.path.exists():
            self._write_lines()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.loggers.close(failed=kind is not None)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Write the scalars of an optimizer step to the loggers."""
        self.loggers.scalars(values, step)

    def add(self, values: Mapping[str, object], metrics: Mapping[str, object]) -> None:
        """Add a JSON line to log.txt: where training is and what it was like, then the metrics of the validation."""
        named = {f"{VALIDATION}{name}": value for name, value in metrics.items()}
        self.lines.append(json_text({**values, **named}, allow_nan=True))
        if is_main():
            try:
                self._write_lines()
            except InputError as error:
                if not self._complained:
                    logger.warning(f"the log can't be written ({error}); training goes on without")
                self._complained = True
        self.loggers.flush()

    def _write_lines(self) -> None:
        write_text(self.path, "".join(f"{line}\n" for line in self.lines))


def get_scalars(metrics: dict[str, object], prefix: str) -> dict[str, float]:
    """Return the metrics that loggers draw: floats, and the accuracies of groups (`prefix/NAME/GROUP`)."""
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


def read_log(path: Path, most: int | None = None) -> list[dict[str, Any]]:
    """Return what the lines of log.txt say, but for those that aren't whole: a run that was killed may leave one.

    There are none if log.txt couldn't be written, or can't be read.

    Args:
        path: log.txt.
        most: lines to read; None: all.
    """
    found: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for line in lines[:most]:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and type(values.get("epoch")) is int and abs(values["epoch"]) < _MAX_EPOCH:
            found.append(values)
    return found


def _epochs_done(line: dict[str, Any]) -> float:
    """Return how many epochs were done at a line of log.txt; the fraction is the share of the next."""
    share = line.get("share", 1)
    done: float = line["epoch"] + share if type(share) in (int, float) else 0
    return done


def format_seconds(seconds: float) -> str:
    """Format seconds as `1:02:03`, or as `2:03` under an hour."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def peak_memory(device: torch.device) -> str:
    """Return the peak memory of this process as text: on its GPU if it has one, else in main memory."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB"
    peak = memory.peak()
    return "unknown" if peak is None else f"{peak / 2**30:.2f} GiB"
