"""The allocator: what changes, where it may not, and by real processes."""

import os
import platform
import subprocess
import sys

import pytest

from beit3_vqa.engine import host

# Page faults of thirty tensors of 64 MiB, one after the other; up to 32 MiB glibc learns to keep some by itself.
FAULTS = """
import resource, sys, torch
from beit3_vqa.engine.host import tune_allocator
print(tune_allocator() if sys.argv[1] == "tuned" else "as it was")
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
IS_GLIBC = platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"


def faults(how, **environment):
    command, environment = [sys.executable, "-c", FAULTS, how], {**os.environ, **environment}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    done, count = result.stdout.split("\n")[:2]
    return done, int(count)


@pytest.mark.skipif(not IS_GLIBC, reason="glibc's allocator")
def test_a_tuned_process_faults_its_memory_in_once():
    (done, tuned), (_, plain) = faults("tuned"), faults("plain")
    assert done == "True"
    assert tuned * 4 < plain, (tuned, plain)
    done, off = faults("tuned", BEIT3_VQA_TUNE_ALLOCATOR="0")
    assert done == "False"
    assert tuned * 4 < off


@pytest.mark.parametrize(("system", "libc"), [("Darwin", ""), ("Windows", ""), ("Linux", "musl")])
def test_other_systems_are_left_alone(monkeypatch, system, libc):
    monkeypatch.setattr(host.platform, "system", lambda: system)
    monkeypatch.setattr(host.platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(host.ctypes, "CDLL", lambda name: pytest.fail("touched the C library"))
    assert not host.tune_allocator()


# What a process finds in its environment after a command line has run, and whether it loaded torch for that.
COMMAND_LINE = """
import os, sys
from beit3_vqa.cli import main
sys.argv[1] == "torch first" and __import__("torch")
main(["models"])
print([os.environ.get(name) for name in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")])
"""


@pytest.mark.parametrize(
    ("environment", "how", "found"),
    [
        ({}, "", ["1000", "1", None]),
        ({"GOMP_SPINCOUNT": "5"}, "", ["5", None, None]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "", [None, None, "ACTIVE"]),
        ({}, "torch first", [None, None, None]),  # OpenMP has read its environment
    ],
)
def test_idle_threads_sleep_early_unless_the_environment_says_otherwise(environment, how, found):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "KMP_", "OMP_WAIT"))}
    command = [sys.executable, "-c", COMMAND_LINE, how]
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(found)


@pytest.mark.skipif(platform.system() != "Linux", reason="GNU's OpenMP")
def test_openmp_reads_the_limit_before_torch_is_loaded():
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "KMP_", "OMP_WAIT"))}
    roads = ("", "import beit3_vqa; beit3_vqa.load", "from beit3_vqa.cli import main; main(['models'])")
    said = []
    for road in roads:
        done = subprocess.run(
            [sys.executable, "-c", f"{road}\nimport torch"],
            env={**clean, "OMP_DISPLAY_ENV": "VERBOSE"},  # GNU's OpenMP then tells on stderr what it read
            capture_output=True,
            text=True,
            check=True,
        )
        said.append(next(line.split("'")[1] for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line))
    assert said == ["300000", host.SPIN_LIMITS["GOMP_SPINCOUNT"], host.SPIN_LIMITS["GOMP_SPINCOUNT"]]
