"""The allocator: what changes, where it may not, and by real processes."""

import os
import platform
import subprocess
import sys

import pytest

from beit3_vqa.runtime import host, memory

# Page faults of thirty tensors of 64 MiB, one after the other; up to 32 MiB glibc learns to keep some by itself.
FAULTS = """
import resource, sys, torch
from beit3_vqa.runtime.host import tune_allocator
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


@pytest.mark.slow
@pytest.mark.skipif(not IS_GLIBC, reason="glibc's allocator")
def test_a_tuned_process_faults_its_memory_in_once():
    (done, tuned), (_, plain) = faults("tuned"), faults("plain")
    assert done == "True"
    assert tuned * 4 < plain, (tuned, plain)
    done, off = faults("tuned", BEIT3_VQA_TUNE_ALLOCATOR="0")
    assert done == "False"
    assert tuned * 4 < off


@pytest.mark.parametrize(("system", "libc"), [("Darwin", ""), ("Windows", ""), ("Linux", "musl")])
def test_the_allocator_of_other_systems_is_left_alone(monkeypatch, system, libc):
    monkeypatch.setattr(host.platform, "system", lambda: system)
    monkeypatch.setattr(host.platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(host.ctypes, "CDLL", lambda name: pytest.fail("touched the C library"))
    assert not host.tune_allocator()


@pytest.mark.skipif(platform.system() != "Linux", reason="Linux's /proc")
def test_the_peak_of_memory_is_known_with_and_without_proc(monkeypatch, tmp_path):
    import resource

    before = memory.peak()
    block = b"x" * before  # with what there is, more than there ever was
    assert memory.peak() > before
    del block
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    assert memory.peak() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(
    ("program", "command", "words"),
    [
        ("/home/me/.venv/bin/beit3-vqa", "finetune", "beit3-vqa finetune"),
        ("run_beit3_finetuning.py", "finetune", "python run_beit3_finetuning.py"),
        ("../my code/run_beit3_finetuning.py", "finetune", "python '../my code/run_beit3_finetuning.py'"),
        ("run_beit3_finetuning.py", "ensemble", "beit3-vqa ensemble"),
        ("/site-packages/beit3_vqa/__main__.py", "ensemble", "python -m beit3_vqa ensemble"),
    ],
)
def test_a_command_to_type_next_begins_as_this_process_was_begun(monkeypatch, program, command, words):
    monkeypatch.setattr(sys, "argv", [program])
    assert host.typed_command(command) == words
