"""Let idle OpenMP threads spin while they wait for work, but not while another process wants their core.

A thread that spins takes a core from whoever has work. Beside another process, a step then waits for a thread that
isn't running: each of two trainings on two cores ran at a seventh to a fourteenth of the speed of one alone. If threads
always sleep early, a training that is alone loses about two fifths of its speed. So a thread of ours measures
how long this process waits for cores, and changes how long its idle threads spin. `python -m benchmarks.contention`
measures what each way gains and costs.
"""

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

# Whoever sets one of these has decided how idle threads wait.
VARIABLES: tuple[str, ...] = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")
PERIOD = 0.25  # seconds between two measurements
CROWDED = 0.3  # seconds that all threads together wait for a core in a second; from here on, others want the cores
CALM = 0.15  # the same; below it, nobody wants them
CALM_SECONDS = 2.0  # that it must last before threads spin again
_SHARE = 1 << 16  # elements for each thread: enough for torch to split the work among all of them
_MOST_POOLS = 4  # more are needed if few of many cores are used, where others find room anyway
_TASKS = Path("/proc/self/task")

_started = threading.Lock()  # taken once, and kept


class SpinWatch(threading.Thread):
    """A daemon thread that makes idle threads sleep early while this process waits for cores.

    GNU's OpenMP spins 300,000 turns, some milliseconds, but only 100 once it manages more threads than there are cores
    (GOMP_SPINCOUNT in libgomp's manual). More pools of threads, which do nothing, bring it there without a change in
    how many threads compute, and so in any result. One pool is enough if all cores are used.
    """

    def __init__(self) -> None:
        super().__init__(name="spin watch", daemon=True)
        self._end_of_pools: threading.Event | None = None

    @property
    def sleeps_early(self) -> bool:
        """Return whether idle threads sleep early at the moment."""
        return self._end_of_pools is not None

    def run(self) -> None:
        """Measure every `PERIOD` seconds, as long as the process lives."""
        waited, now, calm = waited_for_cores(), time.monotonic(), 0.0
        while True:
            time.sleep(PERIOD)
            before, waited = waited, waited_for_cores()
            last, now = now, time.monotonic()  # which may be much later, on a crowded machine or after a suspension
            share = (waited - before) / (now - last)
            calm = 0.0 if share >= CALM else calm + now - last
            # Before torch is loaded nothing spins, and this thread shouldn't be the one that loads it.
            if share >= CROWDED and "torch" in sys.modules:
                self.sleep_early()
            elif calm >= CALM_SECONDS:
                self.spin()

    def sleep_early(self) -> None:
        """Start as many more pools of threads as it takes for OpenMP to spin less."""
        import torch

        threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
        pools = -(-(cores - threads + 1) // (threads - 1)) if threads > 1 else _MOST_POOLS + 1  # each adds threads - 1
        if self._end_of_pools is not None or pools > _MOST_POOLS:
            return
        end = threading.Event()
        with suppress(RuntimeError):  # no more threads may be started
            for _ in range(max(1, pools)):
                threading.Thread(target=_hold_pool, args=(threads, end), name="idle pool", daemon=True).start()
        self._end_of_pools = end

    def spin(self) -> None:
        """End the pools that do nothing."""
        if self._end_of_pools is not None:
            self._end_of_pools.set()
            self._end_of_pools = None


def _hold_pool(threads: int, end: threading.Event) -> None:
    """Make OpenMP start a pool of threads for this thread; the pool lives until this thread ends."""
    import torch

    torch.ones(threads * _SHARE).exp_()
    end.wait()


def waited_for_cores() -> float:
    """Return for how many seconds the threads of this process, ready to run, have waited for a core; Linux only."""
    waited = 0
    with suppress(OSError):  # no more files may be opened
        for task in _TASKS.iterdir():
            with suppress(OSError, ValueError, IndexError):  # it ended meanwhile
                waited += int((task / "schedstat").read_text().split()[1])
    return waited / 1e9


def watch_spinning() -> None:
    """Start this process's `SpinWatch`, once, unless the environment says how idle threads wait.

    Only Linux says how long threads wait for cores, and not in every container. Elsewhere nothing changes: the OpenMP
    of Intel and LLVM (macOS, Windows) spins in a way that offers the core to others.
    """
    if _watched() and _started.acquire(blocking=False):
        SpinWatch().start()


def _watched() -> bool:
    return not any(name in os.environ for name in VARIABLES) and (_TASKS / str(os.getpid()) / "schedstat").is_file()


def spinning_in_words() -> str:
    """Describe how idle threads wait: the variables that are set, or what the watch does."""
    said = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    return " ".join(said) or ("until others want the cores" if _watched() else "as the library does by default")
