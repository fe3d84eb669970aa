"""SIGTERM and SIGINT (Ctrl-C): noted, so that the step is finished and saved before the process ends.

Colab, SLURM, spot machines and torchrun send SIGTERM some time before they kill.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import torch

from beit3_vqa.errors import RunEnded
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.files import remove_temporaries

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds within which signals are one request: torchrun sends a Ctrl-C on that the terminal has sent already.
_ONE_REQUEST = 1.0


class Stopped(RunEnded):
    """A signal asked the run to stop, and it has.

    Args:
        number: of the signal.
        left: what it leaves behind, for the user.
    """

    def __init__(self, number: int, left: str = ""):
        super().__init__(left)
        self.number = number
        self.exit_code = 128 + number  # as shells have it: 143 for SIGTERM, 130 for SIGINT
        self.title = f"stopped by {signal.Signals(number).name}"


class StopSignals:
    """A context in which the first signal is only noted; a second SIGINT ends the process at once.

    Outside the main thread, where Python lets nobody handle signals, they do what they did.
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal that came, 0: none
        self._came = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            if number == signal.SIGINT and time.monotonic() - self._came > _ONE_REQUEST:
                remove_temporaries()
                os._exit(128 + number)
            return
        self.number, self._came = number, time.monotonic()
        # Not print: the signal may have come in the middle of one.
        name = signal.Signals(number).name
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{name}: finishing the step{again}\n".encode())


class SyncedStop:
    """Whether a signal has come to any of the processes: each is told at the same call, so that all stop together.

    Args:
        signals: of this process.
        device: whose processes talk; a GPU is asked every few calls only, since asking waits for it.
    """

    def __init__(self, signals: StopSignals, device: torch.device):
        self.signals, self.device = signals, device
        self._interval = 10 if device.type == "cuda" and distributed.world_size() > 1 else 1
        self._calls = 0

    def __call__(self) -> int:
        """The signal's number; 0: none has come."""
        self._calls += 1
        return 0 if self._calls % self._interval else distributed.all_reduce_max(self.signals.number, self.device)


def leave_signals_to_the_parent(_worker: int = 0) -> None:
    """In a data loader's worker: Ctrl-C and a job's SIGTERM reach every process, and the parent decides what happens.

    A second SIGTERM ends the worker all the same: that is how the loader and multiprocessing get rid of one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
