"""On SIGTERM and SIGINT (Ctrl-C), let a run finish its step and save before the process ends.

Colab, SLURM, spot machines and torchrun send SIGTERM some time before they kill.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from beit3_vqa.errors import RunEnded
from beit3_vqa.runtime.files import remove_temporaries

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
Handler = Callable[[int, FrameType | None], object] | int | None
# Seconds within which signals count as one: the terminal sends a Ctrl-C to every process, torchrun sends it again.
_ONE_REQUEST = 1.0


class Stopped(RunEnded):
    """A signal asked the run to stop, and it has.

    Args:
        number: number of the signal.
        left: the message: what the run leaves behind.
    """

    def __init__(self, number: int, left: str = ""):
        super().__init__(left)
        self.number = number
        self.exit_code = 128 + number  # as shells have it: 143 for SIGTERM, 130 for SIGINT
        self.title = f"stopped by {signal.Signals(number).name}"


class StopSignals:
    """A context in which the first signal is only noted; a second SIGINT ends the process at once.

    Python handles signals in the main thread only: in any other thread this changes nothing.
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal that came, 0: none
        self._came = 0.0
        self._before: dict[int, Handler] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal and print what happens now; end the process at a later Ctrl-C."""
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


def leave_signals_to_the_parent(_worker: int = 0) -> None:
    """Ignore SIGINT and the first SIGTERM in a data loader's worker: every process gets them, and the parent decides.

    A second SIGTERM ends the worker: that is how the loader and multiprocessing end one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
