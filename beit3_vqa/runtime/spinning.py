"""Idle OpenMP threads: they spin for their next work, but not while another process wants their core.

A thread that spins takes a core from whoever has work. Beside another process, a step then waits for a thread that
isn't running: each of two trainings on two cores came to a tenth of the speed of one alone, and less. Threads that
always sleep early cost a training that is alone a quarter of its speed. `python -m benchmarks.contention` measures
both. So a thread of ours looks how long this process waits for cores, and changes how long its idle threads spin.
"""

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

# Whoever sets one of these has decided how idle threads wait.
VARIABLES: tuple[str, ...] = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")
PERIOD = 0.25  # seconds between two looks
CROWDED = 0.3  # seconds of waiting for a core, over all threads, in a second: others want the cores
CALM = 0.15  # the same, below which nobody does
CALM_SECONDS = 5.0  # that it must last before threads spin again
_PARALLEL = 1 << 18  # elements that torch shares out among its threads
_TASKS = Path("/proc/self/task")

_started = threading.Lock()  # taken once, and kept


class SpinWatch(threading.Thread):
    """Makes idle threads sleep early while this process waits for cores; a daemon.

    GNU's OpenMP spins 300,000 turns, some milliseconds, but only 100 once it manages more threads than there are cores
    (GOMP_SPINCOUNT in libgomp's manual). A second pool of threads, which does nothing, brings it there without a
    change in how many threads compute, and so in any result.
    """

    def __init__(self) -> None:
        super().__init__(name="spin watch", daemon=True)
        self._end_of_pool: threading.Event | None = None

    @property
    def sleeps_early(self) -> bool:
        """Whether idle threads sleep early at the moment."""
        return self._end_of_pool is not None

    def run(self) -> None:
        """Look four times a second, as long as the process lives."""
        waited, calm = waited_for_cores(), 0.0
        while True:
            time.sleep(PERIOD)
            before, waited = waited, waited_for_cores()
            share = (waited - before) / PERIOD
            calm = 0.0 if share >= CALM else calm + PERIOD
            # Before torch is loaded nothing spins, and this thread shouldn't be the one that loads it.
            if share >= CROWDED and "torch" in sys.modules:
                self.sleep_early()
            elif calm >= CALM_SECONDS:
                self.spin()

    def sleep_early(self) -> None:
        """Let OpenMP manage a second pool of threads."""
        if self._end_of_pool is None:
            self._end_of_pool = threading.Event()
            threading.Thread(target=_hold_pool, args=(self._end_of_pool,), name="second pool", daemon=True).start()

    def spin(self) -> None:
        """End the second pool."""
        if self._end_of_pool is not None:
            self._end_of_pool.set()
            self._end_of_pool = None


def _hold_pool(end: threading.Event) -> None:
    """Have OpenMP make a pool of threads for this thread, which it keeps until this thread ends."""
    import torch

    torch.ones(_PARALLEL).exp_()
    end.wait()


def waited_for_cores() -> float:
    """Return the seconds that the threads of this process were ready to run and waited for a core; Linux."""
    waited = 0
    for task in _TASKS.iterdir():
        with suppress(OSError):  # it ended meanwhile
            waited += int((task / "schedstat").read_text().split()[1])
    return waited / 1e9


def watch_spinning() -> None:
    """Start the watch of this process, once; unless the environment says how idle threads wait.

    Only Linux says how long threads wait for cores; some containers don't. There, and with the OpenMP of Intel and LLVM
    (macOS, Windows), whose spinning threads offer their core to others, nothing is changed.
    """
    if _watched() and _started.acquire(blocking=False):
        SpinWatch().start()


def _watched() -> bool:
    return not any(name in os.environ for name in VARIABLES) and (_TASKS / str(os.getpid()) / "schedstat").is_file()


def spinning_in_words() -> str:
    """Return how idle threads wait, for people: what the environment says, or what the watch does."""
    said = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    return " ".join(said) or ("until others want the cores" if _watched() else "as the library has it")
