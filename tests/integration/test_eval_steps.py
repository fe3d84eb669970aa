"""--eval_steps: validations inside an epoch choose the best checkpoint, stop a run, and disturb nothing."""

import json
import math

import pytest
import torch

from beit3_vqa.cli.main import main
from beit3_vqa.engine import trainer
from beit3_vqa.engine.checkpoint.io import random_state
from beit3_vqa.engine.evaluator import evaluate_split
from beit3_vqa.engine.optim import PlateauSchedule
from beit3_vqa.errors import InputError
from tests.faults.kills import differences
from tests.helpers.commands import finetune
from tests.helpers.processes import ended, start, torchrun
from tests.helpers.scores import let_validations_score

# 30 rows make 5 steps of 6: validations after steps 2 and 4, and at the end.
FLAGS = ["--batch_size", "3", "--update_freq", "2", "--drop_path", "0.2", "--model_ema", "--model_ema_decay", "0.9"]
EVERY_TWO = [*FLAGS, "--eval_steps", "2"]


@pytest.fixture
def scored(monkeypatch):
    """Let validations have scores that are known beforehand; the list has the scores still to come."""
    return let_validations_score(monkeypatch, [])


def read_log(out):
    lines = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "examples_per_second"} for line in lines]


def places(out):
    return [(line["epoch"], line.get("share", 1)) for line in read_log(out)]


def read(path):
    content = torch.load(path)
    content["args"] = None
    return content


def same(one, two, *names):
    for name in names:
        assert differences(read(one / name), read(two / name)) == [], name
    assert read_log(one) == read_log(two)


def test_validations_inside_epochs_change_no_weight(scpc, tmp_path):
    assert main(finetune(scpc, tmp_path / "with", "--epochs", "2", *EVERY_TWO)) == 0
    assert main(finetune(scpc, tmp_path / "without", "--epochs", "2", *FLAGS)) == 0
    ours, theirs = (read(tmp_path / name / "checkpoint-1.pth") for name in ("with", "without"))
    for key in ("model", "model_ema", "optimizer", "random_state"):
        assert differences(theirs[key], ours[key]) == [], key
    assert places(tmp_path / "with") == [(0, 0.4), (0, 0.8), (0, 1), (1, 0.4), (1, 0.8), (1, 1)]
    inside = read_log(tmp_path / "with")[3]
    assert {"epoch", "share", "step", "val_accuracy", "val_loss"} <= set(inside)
    assert inside["step"] == 7
    ends = [line for line in read_log(tmp_path / "with") if "share" not in line]
    assert ends == read_log(tmp_path / "without")


def test_the_best_checkpoint_may_be_from_inside_an_epoch(scpc, tmp_path, scored, capsys):
    out = tmp_path / "out"
    scored += [30.0, 20.0, 10.0, 40.0, 60.0, 50.0]
    assert main(finetune(scpc, out, "--epochs", "2", *EVERY_TWO)) == 0
    assert "epoch 1, step 4: val accuracy 60.00 (best 60.00, epoch 1)" in capsys.readouterr().out
    best = torch.load(out / "checkpoint-best.pth")
    assert (best["best_score"], best["best_epoch"], best["epoch"]) == (60.0, 1, 0)
    assert (best["inside_epoch"]["steps"], best["inside_epoch"]["validated"]) == (4, 24)
    about = json.loads((out / "checkpoint-best.json").read_text())
    assert (about["epoch"], about["steps_in_epoch"], about["score"]) == (1, 4, 60.0)
    assert torch.load(out / "checkpoint-1.pth")["best_score"] == 60.0

    # It has no optimizer to go on with. Its weights alone go on from their place in the epoch.
    resume = finetune(scpc, tmp_path / "on", "--resume", str(out / "checkpoint-best.pth"), "--epochs", "2", *EVERY_TWO)
    assert main(resume) == 2
    assert "checkpoint-best.pth is for evaluation" in capsys.readouterr().err
    scored += [70.0]
    assert main([*resume, "--resume_weights_only"]) == 0
    assert "1 epoch and 24 of 30 examples of the next done, 1 to go" in capsys.readouterr().out
    assert places(tmp_path / "on") == [(1, 1)]
    evaluate = finetune(scpc, out, "--eval", "--split", "val", "--resume", str(out / "checkpoint-best.pth"))
    assert main(evaluate) == 0


@pytest.mark.slow
def test_patience_counts_and_stops_inside_an_epoch(scpc, tmp_path, scored, capsys):
    out = tmp_path / "out"
    scored += [30.0, 50.0, 40.0, 50.0]
    command = finetune(scpc, out, "--epochs", "3", *EVERY_TWO)
    assert main([*command, "--patience", "2"]) == 0
    why = "2 validations in a row without a better score than 50.00 of epoch 0; raise --patience for more"
    assert f"stopped early: {why}" in capsys.readouterr().out
    assert places(out) == [(0, 0.4), (0, 0.8), (0, 1), (1, 0.4)]
    stopped = torch.load(out / "checkpoint-1-step2.pth")
    assert (stopped["waited"], stopped["inside_epoch"]["validated"]) == (2, 12)
    assert main([*command, "--patience", "2"]) == 0
    assert f"nothing left to train: {why}" in capsys.readouterr().out

    # Waiting longer ends as a run that waited so long from the beginning.
    later = [45.0, 40.0, 60.0, 50.0, 40.0]
    scored += later
    assert main([*command, "--patience", "9"]) == 0
    scored += [30.0, 50.0, 40.0, 50.0, *later]
    assert main([*finetune(scpc, tmp_path / "straight", "--epochs", "3", *EVERY_TWO), "--patience", "9"]) == 0
    same(out, tmp_path / "straight", "checkpoint-0.pth", "checkpoint-1.pth", "checkpoint-2.pth", "checkpoint-best.pth")


@pytest.mark.parametrize("moment", range(1, 7))
@pytest.mark.slow
def test_a_run_broken_off_in_any_validation_resumes_bitwise(scpc, tmp_path, monkeypatch, moment):
    """Each validation once, in its place; the fourth is the first of the second epoch."""
    straight, out = tmp_path / "straight", tmp_path / "out"
    assert main(finetune(scpc, straight, "--epochs", "2", *EVERY_TWO)) == 0
    met = []

    def vanishing(*of):
        met.append(random_state())
        if len(met) == moment:
            raise InputError("the images are gone")
        return evaluate_split(*of)

    monkeypatch.setattr(trainer, "evaluate_split", vanishing)
    assert main(finetune(scpc, out, "--epochs", "2", *EVERY_TWO)) == 2
    monkeypatch.undo()
    assert main(finetune(scpc, out, "--epochs", "2", *EVERY_TWO)) == 0
    same(out, straight, "checkpoint-0.pth", "checkpoint-1.pth", "checkpoint-best.pth")


@pytest.mark.slow
def test_the_line_of_a_validation_that_was_not_saved_is_written_anew(scpc, tmp_path, monkeypatch):
    straight, out = tmp_path / "straight", tmp_path / "out"
    assert main(finetune(scpc, straight, "--epochs", "1", *EVERY_TWO)) == 0

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_show_score", killed)  # log.txt and the best checkpoint are written
    assert main(finetune(scpc, out, "--epochs", "1", *EVERY_TWO, "--save_steps", "1")) == 130
    monkeypatch.undo()
    assert places(out) == [(0, 0.4)]
    assert [path.name for path in out.glob("*step*.pth")] == ["checkpoint-0-step1.pth"]
    assert main(finetune(scpc, out, "--epochs", "1", *EVERY_TWO)) == 0
    same(out, straight, "checkpoint-0.pth", "checkpoint-best.pth")


@pytest.mark.slow
def test_a_plateau_follows_validations_inside_epochs(scpc, tmp_path, monkeypatch):
    rates = []

    def note(schedule, step):
        rates.append((step, len(schedule.losses)))
        return 1e-4

    monkeypatch.setattr(PlateauSchedule, "__call__", note)
    flags = ["--sched", "plateau", "--warmup_epochs", "0"]
    assert main(finetune(scpc, tmp_path / "out", "--epochs", "2", *EVERY_TWO, *flags)) == 0
    assert rates == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 3), (6, 3), (7, 4), (8, 4), (9, 5)]
    losses = torch.load(tmp_path / "out" / "checkpoint-1.pth")["val_losses"]
    assert losses == [line["val_loss"] for line in read_log(tmp_path / "out")]
    assert all(map(math.isfinite, losses))


@pytest.mark.slow
def test_other_epochs_and_batches_keep_the_validations_so_far(scpc, tmp_path, scored):
    """Steps of 3 examples in place of 6: the share of the epoch counts, not the number of steps."""
    out = tmp_path / "out"
    scored += [30.0, 40.0, 35.0]
    flags = ["--batch_size", "6", "--eval_steps", "2", "--patience", "1"]
    assert main(finetune(scpc, out, "--epochs", "2", *flags)) == 0
    assert places(out) == [(0, 0.4), (0, 0.8), (0, 1)]
    scored += [50.0, 60.0]
    again = ["--batch_size", "3", "--eval_steps", "8", "--patience", "3"]
    assert main(finetune(scpc, out, "--epochs", "2", *again)) == 0
    assert places(out) == [(0, 0.4), (0, 0.8), (0, 1), (1, 0.8), (1, 1)]


@pytest.mark.slow
def test_the_report_draws_validations_inside_epochs(scpc, tmp_path):
    from beit3_vqa.apps.report.curves import read_curves

    assert main(finetune(scpc, tmp_path / "out", "--epochs", "2", *EVERY_TWO)) == 0
    epochs = read_curves(tmp_path / "out")["epochs"]
    assert [x for x, _ in epochs["score"]] == pytest.approx([-0.6, -0.2, 0, 0.4, 0.8, 1])
    assert [x for x, _ in epochs["train_loss"]] == [0, 1]


@pytest.mark.slow
def test_two_processes_validate_inside_an_epoch(scpc, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    flags = ["--epochs", "9", "--batch_size", "3", "--eval_steps", "2", "--patience", "3", "--lr", "0", "--min_lr", "0"]
    command = ["run_beit3_finetuning.py", *finetune(scpc, out, *flags)[1:]]
    code, said = ended(start(command, log, *torchrun(2)), log)
    assert code == 0, said
    assert said.count("stopped early: 3 validations in a row") == 1
    assert places(out) == [(0, 0.4), (0, 0.8), (0, 1), (1, 0.4)]
    assert torch.load(out / "checkpoint-1-step2.pth")["processes"] == 2
