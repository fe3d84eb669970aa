"""Idle threads beside other work: what OpenMP really does, when it is noticed, and what the environment says."""

import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from beit3_vqa.runtime import spinning

CORES = len(os.sched_getaffinity(0)) if platform.system() == "Linux" else 1
pytestmark = pytest.mark.skipif(
    CORES < 2 or not Path("/proc/self/schedstat").is_file(), reason="GNU's OpenMP, on two cores or more, with schedstat"
)
FREE = {name: value for name, value in os.environ.items() if name not in spinning.VARIABLES}
FREE["OMP_NUM_THREADS"] = str(CORES)  # where two threads share a core, torch would take half as many
# The processor's time that fifty pauses of 4 ms cost between parallel regions: idle threads spin in them, or sleep.
PAUSES = """
import time, torch
from beit3_vqa.runtime.spinning import SpinWatch
def cost():
    started = time.process_time()
    for _ in range(50):
        torch.ones(1 << 18).exp_()
        time.sleep(0.004)
    return time.process_time() - started
watch = SpinWatch()
for change in (lambda: None, watch.sleep_early, watch.spin):
    change()
    time.sleep(0.5)
    print(min(cost() for _ in range(3)))
"""
WATCHED = """
import sys, time, torch
from beit3_vqa.runtime import spinning
spinning.CALM_SECONDS = 0.5
watch = spinning.SpinWatch()
watch.start()
def compute_until(early):
    end = time.monotonic() + 60
    while watch.sleeps_early != early and time.monotonic() < end:
        torch.ones(1 << 18).exp_()
    print(watch.sleeps_early, flush=True)
sys.stdin.readline()
compute_until(True)
sys.stdin.readline()
end = time.monotonic() + 60
while watch.sleeps_early and time.monotonic() < end:
    time.sleep(0.1)
print(watch.sleeps_early, flush=True)
"""


def process(code, **environment):
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    return subprocess.Popen(command, env={**FREE, **environment}, stdin=pipe, stdout=pipe, text=True)


def test_idle_openmp_threads_sleep_while_there_is_a_second_pool():
    with process(PAUSES) as running:
        spinning_at_first, early, spinning_again = map(float, running.communicate()[0].split())
    assert early * 3 < spinning_at_first
    assert early * 3 < spinning_again


@pytest.mark.slow
def test_the_watch_notices_when_others_want_the_cores_and_when_they_stop():
    loops = []
    with process(WATCHED) as running, contextlib.ExitStack() as stack:
        for _ in range(2 * CORES):
            loops.append(stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"])))
        stack.callback(lambda: [loop.kill() for loop in loops])
        running.stdin.write("\n")
        running.stdin.flush()
        assert running.stdout.readline() == "True\n"
        for loop in loops:
            loop.kill()
            loop.wait()
        assert running.communicate("\n")[0] == "False\n"


@pytest.mark.parametrize(
    ("environment", "threads", "said"),
    [
        ({}, 1, "until others want the cores"),
        ({"GOMP_SPINCOUNT": "5"}, 0, "GOMP_SPINCOUNT=5"),
        ({"OMP_WAIT_POLICY": "ACTIVE", "KMP_LIBRARY": "x"}, 0, "OMP_WAIT_POLICY=ACTIVE KMP_LIBRARY=x"),
    ],
)
def test_one_watch_is_started_unless_the_environment_decides(environment, threads, said):
    code = """
import threading
from beit3_vqa.runtime.spinning import spinning_in_words, watch_spinning
watch_spinning()
watch_spinning()
print(sum(thread.name == "spin watch" for thread in threading.enumerate()), spinning_in_words())
"""
    with process(code, **environment) as running:
        assert running.communicate()[0] == f"{threads} {said}\n"


def test_no_watch_is_started_without_the_kernels_figures(monkeypatch, tmp_path):
    for name in spinning.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(spinning, "_TASKS", tmp_path)
    monkeypatch.setattr(spinning.SpinWatch, "start", lambda watch: pytest.fail("started"))
    spinning.watch_spinning()
    assert spinning.spinning_in_words() == "as the library does by default"
