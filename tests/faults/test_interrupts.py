"""SIGTERM and Ctrl-C: the step is finished and saved, and the same command goes on as if nothing had been."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.faults.kills import differences
from tests.helpers.processes import ENVIRONMENT, ROOT, ended, long_run, start, wait_until


@pytest.fixture(scope="module")
def undisturbed(scpc, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    process = start(long_run(scpc, out, "--eval_batch_size", "1"), out.parent / "log")
    assert ended(process, out.parent / "log")[0] == 0
    return torch.load(out / "checkpoint-3.pth")


MOMENTS = {
    "step": lambda out, log: "epoch 1/4" in log.read_text(),
    "evaluation": lambda out, log: "epoch 1 val" in log.read_text(),
    "save": lambda out, log: "epoch 1/4" in log.read_text() and any(out.glob(".checkpoint-*.tmp")),
}


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGTERM, "step"),
        pytest.param(signal.SIGINT, "step", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "evaluation", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "save", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "save", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_run_stopped_by_a_signal_goes_on_to_the_same_weights(scpc, tmp_path, undisturbed, number, moment):
    out, log = tmp_path / "out", tmp_path / "log"
    command = long_run(scpc, out, "--num_workers", "1", "--eval_batch_size", "1")
    process = start(command, log)
    wait_until(lambda: MOMENTS[moment](out, log), process)
    os.killpg(process.pid, number)  # the loader's workers too, as a terminal and a job's manager do
    code, said = ended(process, log)
    assert code == 128 + number, said
    assert f"stopped by {number.name}: saved {out}" in said
    assert "Traceback" not in said
    assert not list(out.glob(".*.tmp"))
    if moment == "evaluation":  # every step of its epoch is done: a dry run times those of another
        process = start([*command, "--dry_run"], log)
        assert ended(process, log)[0] == 0
    process = start(command, log)
    assert ended(process, log)[0] == 0
    content = torch.load(out / "checkpoint-3.pth")
    for either in (content, undisturbed):
        either["args"] = None
    assert differences(undisturbed, content) == []


HELD = """
import sys, time
from beit3_vqa.runtime.signals import StopSignals
from beit3_vqa.runtime.files import replacing
with StopSignals(), replacing(sys.argv[1]) as file:
    file.write(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_second_ctrl_c_ends_the_run_at_once_and_keeps_the_last_good_file(tmp_path):
    target = tmp_path / "checkpoint-0.pth"
    target.write_bytes(b"the last good one")
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, str(target)], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)  # the same Ctrl-C, handed on by torchrun
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    process.stdout.close()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(target.name, b"the last good one")]


BROKEN = """
import torch
from beit3_vqa.data.loader import BatchLoader
from beit3_vqa.data.types import Example

class Rows:
    def __len__(self):
        return 8
    def __getitem__(self, key):
        return Example(str(key[2]), "", ""), {"x": torch.zeros(1)}

loader = BatchLoader(Rows(), lambda items: {"x": torch.stack([item["x"] for item in items])}, 2, num_workers=2)
for batch in loader.epoch(0):
    raise RuntimeError("out of luck")
"""


def test_an_unforeseen_error_ends_the_process_though_its_traceback_holds_workers():
    """They ignore the one SIGTERM that multiprocessing sends them, so it would wait for ever."""
    done = subprocess.run(
        [sys.executable, "-c", BROKEN], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: out of luck\n")
