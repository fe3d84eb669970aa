"""--max_hours: a run ends in time, with its schedule at its end, and goes on bit for bit by the plan that it kept."""

import json
import re

import pytest
import torch

from beit3_vqa.cli.main import main
from beit3_vqa.engine import time_budget, trainer
from beit3_vqa.engine.checkpoint.save import Saver
from beit3_vqa.engine.evaluator import evaluate_split
from beit3_vqa.engine.loop import train_epoch
from beit3_vqa.errors import InputError
from beit3_vqa.runtime import distributed
from tests.faults.kills import differences
from tests.helpers.commands import finetune
from tests.helpers.processes import ended, start, torchrun

STEP, VALIDATION, SAVE = 10.0, 20.0, 5.0  # seconds of the clock below
# 30 steps an epoch, 180 in all: 180 * 10 + 6 * 25 seconds. A warm-up of one epoch.
FLAGS = ["--batch_size", "1", "--epochs", "6", "--drop_path", "0.2", "--warmup_epochs", "1", "--no_async_save"]


class Clock:
    """A clock that only steps, validations and saves move on."""

    def __init__(self):
        self.seconds, self.step, self.rates = 0.0, STEP, []
        self.at_step = lambda step: None

    def train_epoch(self, run, batches, schedule, after_step, **begin):
        def tick(report):
            self.seconds += self.step
            self.rates.append((report.step, report.lr))
            after_step(report)
            self.at_step(report.step)

        train_epoch(run, batches, schedule, tick, **begin)

    def evaluate_split(self, *of):
        self.seconds += VALIDATION
        return evaluate_split(*of)

    def saving(self, save):
        def saved(*of):
            self.seconds += SAVE
            return save(*of)

        return saved


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time_budget, "now", lambda: clock.seconds)
    monkeypatch.setattr(trainer, "train_epoch", clock.train_epoch)
    monkeypatch.setattr(trainer, "evaluate_split", clock.evaluate_split)
    # While the state is collected, so that what is kept of the time has it.
    monkeypatch.setattr(Saver, "_weights", clock.saving(Saver._weights))
    return clock


def hours(seconds):
    return ["--max_hours", str(seconds / 3600)]


def newest(out):
    paths = [path for path in out.glob("checkpoint-*.pth") if "best" not in path.name]
    return max(paths, key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.slow
def test_a_run_ends_in_time_and_its_schedule_with_it(scpc, tmp_path, clock, capsys):
    out = tmp_path / "out"
    assert main(finetune(scpc, out, *FLAGS, *hours(900))) == 0
    said = capsys.readouterr().out
    assert 0.9 * 900 < clock.seconds <= 900
    last = clock.rates[-1][0]
    assert 60 < last < 90
    assert f"training is to end after {last / 30:.2f} of 6 epochs, at step {last}" in said
    done = f"{last / 30:.2f} of 6 epochs are done, as planned for --max_hours 0.25, in 14:"
    assert f"stopped early: {done}" in said
    rates = dict(clock.rates)
    assert max(rates.values()) == pytest.approx(5e-4, rel=0.05)
    assert rates[last] < 5e-6  # where all epochs would have had 5e-4
    assert all(rates[step] > rates[step + 1] for step in range(65, last))
    # The last weights were validated and saved, inside an epoch.
    content = torch.load(newest(out))
    assert newest(out).name == f"checkpoint-2-step{last - 60}.pth"
    assert content["inside_epoch"]["validated"] == content["inside_epoch"]["examples"] == last - 60
    lines = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [None, None, last]
    assert (out / "checkpoint-best.pth").exists()
    assert content["time"]["seconds"] == pytest.approx(clock.seconds, abs=SAVE)

    # The same command says that it is over; more time goes on, on the longer cosine.
    assert main(finetune(scpc, out, *FLAGS, *hours(900))) == 0
    assert "nothing left to train: " in capsys.readouterr().out
    clock.rates.clear()
    assert main(finetune(scpc, out, *FLAGS, *hours(1500))) == 0
    assert torch.load(newest(out))["time"]["seconds"] <= 1500
    assert clock.rates[0][0] == last + 1
    assert clock.rates[0][1] > 1e-4
    assert clock.rates[-1][1] < 1e-5
    assert 110 < clock.rates[-1][0] < 150


@pytest.mark.parametrize("how", ["error", "kill"])
@pytest.mark.slow
def test_a_run_broken_off_keeps_to_its_plan_bitwise(scpc, tmp_path, clock, how, capsys):
    straight, out = tmp_path / "straight", tmp_path / "out"
    assert main(finetune(scpc, straight, *FLAGS, *hours(900))) == 0
    last = clock.rates[-1][0]
    clock.seconds = 0.0

    moments = [25, 45]

    def broken(step):
        if moments and step == moments[0]:
            del moments[0]
            clock.seconds -= SAVE if how == "error" else 0  # it is saved once more than the straight one
            raise InputError("the images are gone") if how == "error" else KeyboardInterrupt

    clock.at_step = broken
    code = 2 if how == "error" else 130
    assert main(finetune(scpc, out, *FLAGS, *hours(900))) == code
    assert newest(out).name == ("checkpoint-0-step25.pth" if how == "error" else "checkpoint-0-step16.pth")
    assert torch.load(newest(out))["time"]["last_step"] > 0  # the plan was saved at once
    assert main(finetune(scpc, out, *FLAGS, *hours(900))) == code
    assert main(finetune(scpc, out, *FLAGS, *hours(900))) == 0
    assert clock.rates[-1][0] == last
    assert newest(out).name == newest(straight).name
    for name in (newest(straight).name, "checkpoint-best.pth", "checkpoint-1.pth"):
        ours, theirs = (torch.load(folder / name) for folder in (out, straight))
        for content in (ours, theirs):
            del content["args"], content["time"]
        assert differences(theirs, ours) == [], name


@pytest.mark.slow
def test_a_run_that_becomes_slower_plans_anew(scpc, tmp_path, clock):
    def slower(step):
        clock.step = 15.0 if step >= 17 else STEP

    clock.at_step = slower
    assert main(finetune(scpc, tmp_path / "out", *FLAGS, *hours(900))) == 0
    assert clock.seconds <= 900
    step, rate = clock.rates[-1]
    assert 54 < step < 64
    assert rate < 2e-5


@pytest.mark.slow
def test_a_run_that_becomes_slower_than_any_plan_stops_at_the_end_of_its_time(scpc, tmp_path, clock, capsys):
    def stuck(step):
        clock.step = 100.0 if step >= 70 else STEP

    clock.at_step = stuck
    out = tmp_path / "out"
    assert main(finetune(scpc, out, *FLAGS, *hours(900))) == 0
    assert "stopped early: the time of --max_hours 0.25 is used up" in capsys.readouterr().out
    assert clock.seconds <= 900 + 100 + SAVE
    step = clock.rates[-1][0]
    assert newest(out).name == f"checkpoint-2-step{step - 60}.pth"
    assert main(finetune(scpc, out, *FLAGS, *hours(900))) == 0
    assert "nothing left to train: the time of" in capsys.readouterr().out
    clock.step = STEP
    clock.at_step = lambda step: None
    assert main(finetune(scpc, out, *FLAGS, *hours(1500))) == 0
    assert clock.rates[-1][0] > step


@pytest.mark.slow
def test_enough_time_changes_nothing(scpc, tmp_path, clock, capsys):
    flags = [*FLAGS[:2], "--epochs", "2", *FLAGS[4:]]
    assert main(finetune(scpc, tmp_path / "with", *flags, *hours(90000))) == 0
    assert "there is time for all 2 epochs" in capsys.readouterr().out
    assert main(finetune(scpc, tmp_path / "without", *flags)) == 0
    for name in ("checkpoint-1.pth", "checkpoint-best.pth"):
        ours, theirs = (torch.load(tmp_path / folder / name) for folder in ("with", "without"))
        del ours["args"], theirs["args"], ours["time"]
        assert differences(theirs, ours) == []


@pytest.mark.slow
def test_validations_inside_epochs_count(scpc, tmp_path, clock):
    assert main(finetune(scpc, tmp_path / "out", *FLAGS, *hours(900), "--eval_steps", "5")) == 0
    assert 0.85 * 900 < clock.seconds <= 900
    assert clock.rates[-1][0] < 62


@pytest.mark.slow
def test_a_dry_run_says_how_far_the_time_goes(scpc, tmp_path, capsys):
    assert main(finetune(scpc, tmp_path / "out", *FLAGS, "--dry_run", "--max_hours", "100")) == 0
    assert "--max_hours 100 goes as far as about 6.0 of 6 epochs (step 180 of 180)" in capsys.readouterr().out
    assert main(finetune(scpc, tmp_path / "out", *FLAGS, "--dry_run", "--max_hours", "1e-9")) == 0
    assert "--max_hours 1e-09 goes as far as about 0.0 of 6 epochs (step 0 of 180)" in capsys.readouterr().out


def test_a_run_without_time_ends_at_once_and_names_what_it_saved(scpc, tmp_path, capsys):
    assert main(finetune(scpc, tmp_path / "out", *FLAGS, "--max_hours", "1e-9")) == 0
    assert "nothing left to train: the time of --max_hours 1e-09 is used up" in capsys.readouterr().out


@pytest.mark.slow
def test_a_real_run_ends_in_time(scpc, tmp_path, capsys):
    """By the machine's own clock: an epoch takes a moment, and there are thousands of them."""
    out, seconds = tmp_path / "out", 15
    flags = ["--epochs", "5000", "--keep_checkpoints", "1"]
    assert main(finetune(scpc, out, *flags, *hours(seconds))) == 0
    said = capsys.readouterr().out
    assert re.search(r"stopped early: ([\d.]+ of 5,000 epochs are done, as planned|the time of --max_hours)", said)
    assert seconds / 3 < torch.load(newest(out))["time"]["seconds"] < seconds + 10  # machines stall
    assert (out / "checkpoint-best.pth").exists()
    assert main(finetune(scpc, out, *flags, *hours(seconds))) == 0
    assert "nothing left to train" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_end_together(scpc, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    flags = ["--epochs", "5000", "--keep_checkpoints", "1", "--batch_size", "1", *hours(25)]
    command = ["run_beit3_finetuning.py", *finetune(scpc, out, *flags)[1:]]
    code, said = ended(start(command, log, *torchrun(2)), log)
    assert code == 0, said
    assert said.count("stopped early: ") == 1
    assert torch.load(newest(out))["processes"] == 2


@pytest.mark.slow
def test_waiting_for_the_thread_that_writes_is_no_part_of_a_step(scpc, tmp_path, clock, monkeypatch):
    run_on_main = distributed.run_on_main

    def wait(choose):
        clock.seconds += 30 if getattr(choose, "__name__", "") == "result" else 0
        return run_on_main(choose)

    monkeypatch.setattr(distributed, "run_on_main", wait)
    out = tmp_path / "out"
    assert main(finetune(scpc, out, *FLAGS, "--async_save", *hours(1500))) == 0
    time = torch.load(newest(out))["time"]
    assert time["step"] == pytest.approx(STEP)
    assert time["save"] == 30
    assert 0.8 * 1500 < clock.seconds <= 1500
