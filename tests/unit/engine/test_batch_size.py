"""`--batch_size auto`: as many examples in a pass as fit, the same step whatever that is."""

import json
import subprocess
import sys

import pytest
import torch

from beit3_vqa.cli.main import main
from beit3_vqa.data.predictions import read_predictions
from beit3_vqa.runtime import memory
from tests.helpers.commands import TINY

CPU = torch.device("cpu")
GIB = 2**30


def test_measured_peak_is_what_the_step_allocates():
    """Whatever was there, and freed, before: here twice as much, which a tuned allocator keeps."""
    torch.ones(128 * 2**20).sum()
    before = memory.in_use(CPU)
    peak = memory.measure_peak(lambda: torch.ones(64 * 2**20).sum(), CPU)
    assert 0.8 * 256 * 2**20 < peak - before < 1.5 * 256 * 2**20
    assert 0 < memory.free(CPU) < 2**50


def train(scpc, out, *flags):
    return main(
        ["finetune", *TINY, "--data_path", str(scpc / "data"), "--output_dir", str(out), "--epochs", "1", *flags]
    )


def config(out):
    return json.loads((out / "config.json").read_text())["optim"]


def test_auto_batch_size_in_little_memory_trains_to_the_same_weights(scpc, tmp_path, monkeypatch, capsys):
    """Memory for few: the step's mean is over the same examples, so the weights are the same up to rounding."""
    drop = ["--drop_path", "0"]
    assert train(scpc, tmp_path / "whole", "--batch_size", "8", *drop) == 0
    a_gib_for_each_example(monkeypatch, 4.5 * GIB)
    assert train(scpc, tmp_path / "auto", "--batch_size", "auto", "--effective_batch_size", "8", *drop) == 0
    assert "--batch_size auto: 4 fit; batches of 4, 2 a step" in capsys.readouterr().out
    assert (config(tmp_path / "auto")["batch_size"], config(tmp_path / "auto")["update_freq"]) == (4, 2)
    whole, auto = (torch.load(tmp_path / name / "checkpoint-0.pth")["model"] for name in ("whole", "auto"))
    for name, weight in whole.items():
        torch.testing.assert_close(auto[name], weight, rtol=1e-4, atol=1e-5, msg=name)


def a_gib_for_each_example(monkeypatch, room):
    peaks = iter((GIB, 2 * GIB, 4 * GIB))
    monkeypatch.setattr(memory, "measure_peak", lambda compute, device: (compute(), next(peaks))[1])
    monkeypatch.setattr(memory, "in_use", lambda device: 0)
    monkeypatch.setattr(memory, "free", lambda device: room / 0.85)


def test_an_evaluation_of_auto_has_as_many_examples_in_a_pass_as_fit_and_the_same_answers(
    scpc, trained, tmp_path, monkeypatch, capsys
):
    found = {}
    for size in ("4", "auto"):
        if size == "auto":
            a_gib_for_each_example(monkeypatch, 11.5 * GIB)  # no gradients, no moments
        command = ["finetune", "--eval", "--task", "vqacustom", "--resume", str(trained / "checkpoint-best.pth")]
        command += ["--data_path", str(scpc / "data"), "--output_dir", str(tmp_path / size), "--precision", "fp32"]
        assert main([*command, "--eval_batch_size", size, "--device", "cpu", "--split", "val"]) == 0
        found[size] = read_predictions(tmp_path / size / "predictions_val.json")
    assert "--eval_batch_size auto: batches of 11" in capsys.readouterr().out
    for one, other in zip(found["4"], found["auto"], strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-5)


def test_a_training_writes_down_the_evaluations_batch_that_was_found(scpc, tmp_path, monkeypatch, capsys):
    a_gib_for_each_example(monkeypatch, 6.5 * GIB)
    assert train(scpc, tmp_path / "out", "--eval_batch_size", "auto", "--batch_size", "5") == 0
    assert "--eval_batch_size auto: batches of 6" in capsys.readouterr().out
    assert (config(tmp_path / "out")["eval_batch_size"], config(tmp_path / "out")["batch_size"]) == (6, 5)


@pytest.mark.slow
def test_auto_batch_size_is_64_if_memory_suffices(scpc, tmp_path, capsys):
    assert train(scpc, tmp_path / "out", "--batch_size", "auto") == 0
    assert "batches of 64, 1 a step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size", "0"], "--batch_size 0: must be at least 1 and at most 1,000,000, or auto."),
        (["--batch_size", "some"], "invalid int or auto value: 'some'"),
        (["--batch_size", "3", "--effective_batch_size", "8"], "can't be made of batches of 3"),
        (
            ["--batch_size", "4", "--effective_batch_size", "8", "--update_freq", "2"],
            "set the same thing; give one of them",
        ),
    ],
)
def test_contradicting_batch_sizes_are_refused_before_anything_is_written(scpc, tmp_path, capsys, flags, message):
    assert train(scpc, tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_effective_batch_size_decides_the_forward_passes_of_a_step(scpc, tmp_path):
    assert train(scpc, tmp_path / "out", "--batch_size", "4", "--effective_batch_size", "12") == 0
    assert config(tmp_path / "out")["update_freq"] == 3
    # What was found is written down beside what was asked for; the file can be given back all the same.
    assert train(scpc, tmp_path / "again", "--config", str(tmp_path / "out" / "config.json")) == 0
    assert config(tmp_path / "again") == config(tmp_path / "out")


@pytest.mark.slow
def test_auto_batch_size_is_1_if_two_examples_run_out_of_memory(scpc, tmp_path, monkeypatch, capsys):
    """As on a GPU, where a step that doesn't fit is an error that can be caught."""
    tried = iter((GIB, None))

    def measure_peak(compute, device):
        peak = next(tried)
        if peak is None:
            raise memory.NotEnoughMemory
        compute()
        return peak

    monkeypatch.setattr(memory, "measure_peak", measure_peak)
    assert train(scpc, tmp_path / "out", "--batch_size", "auto", "--effective_batch_size", "4") == 0
    assert "--batch_size auto: 1 fit; batches of 1, 4 a step" in capsys.readouterr().out


def memory_for_the_weights_alone(monkeypatch):
    answers = iter([2**40])
    monkeypatch.setattr(memory, "free", lambda device: next(answers, -(2**40)))


def test_memory_for_less_than_one_example_is_an_error(scpc, tmp_path, monkeypatch, capsys):
    memory_for_the_weights_alone(monkeypatch)
    assert train(scpc, tmp_path / "out", "--batch_size", "auto") == 2
    assert "not one example fits" in capsys.readouterr().err


LIMIT = 2 * GIB
CHOSEN = f"""
import sys
from beit3_vqa.engine import batch_size
from beit3_vqa.engine.build import build, make_task
from beit3_vqa.runtime import memory
from beit3_vqa.config.resolve import GivenOptions, resolve

memory.free = lambda device, free=memory.free: min(free(device), {LIMIT} - memory.in_use(device))
model = {{"model": "beit3_tiny_patch8_64", "vocab_size": 300, "device": "cpu", "precision": "fp32"}}
given = {{**model, "data_path": sys.argv[1], "batch_size": "auto", "effective_batch_size": 2**16}}
config = resolve(GivenOptions(given))
components = batch_size.with_batch_size(build(config, make_task(config)))
chosen = components.step_size.batch_size
samples = batch_size._longest(components.task.dataset("train", components.processor, training=True), 64)
print(chosen, batch_size._peak(components, samples, chosen))
"""


@pytest.mark.slow
def test_auto_batch_size_stays_below_a_real_memory_limit(scpc):
    """A step with the number chosen stays under what was said to be there, and uses a good part of it."""
    command = [sys.executable, "-c", CHOSEN, str(scpc / "data")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    chosen, peak = map(int, said.split())
    assert chosen > 16
    assert LIMIT / 4 < peak < LIMIT


@pytest.mark.slow
def test_dry_run_refuses_a_batch_that_does_not_fit(scpc, tmp_path, monkeypatch, capsys):
    # A share of what is in use is kept free too, and other tests have made this process large.
    monkeypatch.setattr(memory, "free", lambda device: memory.in_use(device) // 10 + 64 * 2**20)
    big = ["--model", "beit3_tiny_patch8_64", "--dry_run", "--batch_size"]
    assert train(scpc, tmp_path / "out", *big, "4096") == 2
    captured = capsys.readouterr()
    assert "--dry_run: batches of 4096 would take about " in captured.err
    fitting = int(captured.err.split("Batches of ")[1].split(" fit")[0])
    assert 0 < fitting < 4096
    assert "step 1" not in captured.out
    assert train(scpc, tmp_path / "out", *big, str(max(1, fitting // 2))) == 0  # what is in use has changed a little
    assert "step 1" in capsys.readouterr().out
    memory_for_the_weights_alone(monkeypatch)
    assert train(scpc, tmp_path / "out", *big, "1") == 2
    assert "Not one example fits" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


PREDICTED = f"""
import sys
from beit3_vqa.engine import batch_size
from beit3_vqa.engine.build import build, make_task
from beit3_vqa.config.resolve import GivenOptions, resolve

model = {{"model": "beit3_base_patch16_224", "vocab_size": 300, "device": "cpu", "precision": "fp32"}}
components = build(config := resolve(GivenOptions({{**model, "data_path": sys.argv[1]}})), make_task(config))
with batch_size._tried(components, {(count := 8)}, 0.9) as tried:
    start = tried.start
    print(start, tried.peak({count}), batch_size._peak(components, tried.samples, {count}))
"""


@pytest.mark.slow
def test_predicted_memory_of_a_step_is_close_to_the_measured_one(scpc):
    """Of a real size: what a tiny model's operators keep beside its activations is a fifth of all."""
    command = [sys.executable, "-c", PREDICTED, str(scpc / "data")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    start, predicted, peak = map(float, said.split())
    assert peak - start > 2**27
    assert abs(predicted - peak) < 0.2 * (peak - start)
