"""--patience: a run stops once its validations no longer find a better score, and goes on if told to wait longer."""

import json

import pytest
import torch

from beit3_vqa.cli.main import main
from tests.faults.kills import differences
from tests.helpers.commands import finetune
from tests.helpers.processes import ended, start, torchrun
from tests.helpers.scores import let_validations_score

SCORES = [30.0, 50.0, 50.0, 40.0, 50.0, 60.0, 10.0, 20.0]  # that of epoch 1 isn't beaten before epoch 5


@pytest.fixture
def scored(monkeypatch):
    """Let validations have scores that are known beforehand; the list has the scores still to come."""
    return let_validations_score(monkeypatch, list(SCORES))


def epochs_logged(out):
    return [json.loads(line)["epoch"] for line in (out / "log.txt").read_text().splitlines()]


def test_training_stops_after_validations_without_a_better_score(scpc, tmp_path, scored, capsys):
    out = tmp_path / "out"
    assert main(finetune(scpc, out, "--epochs", "8", "--patience", "3")) == 0
    said = capsys.readouterr().out
    assert (
        "stopped early: 3 validations in a row without a better score than 50.00 of epoch 1; raise --patience" in said
    )
    assert "trained. Next: " in said
    assert epochs_logged(out) == [0, 1, 2, 3, 4]
    assert torch.load(out / "checkpoint-best.pth")["best_epoch"] == 1
    assert torch.load(out / "checkpoint-4.pth")["waited"] == 3

    # The same command says that it has stopped; one that waits longer goes on.
    before = (out / "checkpoint-4.pth").read_bytes()
    assert main(finetune(scpc, out, "--epochs", "8", "--patience", "3")) == 0
    assert "nothing left to train: 3 validations in a row" in capsys.readouterr().out
    assert (out / "checkpoint-4.pth").read_bytes() == before
    assert epochs_logged(out) == [0, 1, 2, 3, 4]
    assert main(finetune(scpc, out, "--epochs", "8", "--patience", "4")) == 0
    assert "stopped early" not in capsys.readouterr().out
    assert epochs_logged(out) == list(range(8))
    assert torch.load(out / "checkpoint-7.pth")["best_epoch"] == 5


@pytest.mark.slow
def test_the_validations_of_earlier_sessions_count(scpc, tmp_path, scored, capsys):
    out = tmp_path / "out"
    for _ in range(4):
        assert main(finetune(scpc, out, "--epochs", "8", "--patience", "2", "--stop_after_epochs", "1")) == 0
    assert "stopped early: 2 validations in a row" in capsys.readouterr().out
    assert epochs_logged(out) == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_checkpoint_that_did_not_count_yet_counts_epochs(scpc, tmp_path, scored, capsys):
    out = tmp_path / "out"
    assert main(finetune(scpc, out, "--epochs", "8", "--stop_after_epochs", "4")) == 0
    content = torch.load(out / "checkpoint-3.pth")
    assert content.pop("waited") == 2
    torch.save(content, out / "checkpoint-3.pth")
    (out / "checkpoint-3.json").unlink()
    assert main(finetune(scpc, out, "--epochs", "8", "--patience", "3")) == 0
    assert "stopped early: 3 validations in a row" in capsys.readouterr().out
    assert epochs_logged(out) == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_a_run_that_goes_on_in_another_folder_waits_anew(scpc, tmp_path, scored, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    assert main(finetune(scpc, out, "--epochs", "8", "--patience", "3")) == 0
    resume = ["--resume", str(out / "checkpoint-4.pth"), "--patience", "2"]
    assert main(finetune(scpc, other, "--epochs", "8", *resume)) == 0
    assert epochs_logged(other) == [5, 6, 7]
    assert torch.load(other / "checkpoint-7.pth")["best_epoch"] == 5


@pytest.mark.slow
def test_patience_changes_nothing_as_long_as_it_lasts(scpc, tmp_path):
    for name, flags in (("with", ["--patience", "9"]), ("without", [])):
        assert main(finetune(scpc, tmp_path / name, "--epochs", "2", "--drop_path", "0.2", *flags)) == 0
    ours, theirs = (torch.load(tmp_path / name / "checkpoint-1.pth") for name in ("with", "without"))
    for content in (ours, theirs):
        content["args"] = None
    assert differences(theirs, ours) == []


def test_patience_without_a_validation_split_says_so(scpc, tmp_path, capsys):
    prepare = ["prepare", "choices", "--train", str(scpc / "train.csv"), "--image_root", str(scpc / "images")]
    assert main([*prepare, "--data_path", str(tmp_path / "data"), "--folds", "2", "--train_tokenizer", "300"]) == 0
    assert main(finetune(tmp_path, tmp_path / "out", "--epochs", "3", "--patience", "1")) == 0
    assert "--patience has no validation to follow" in capsys.readouterr().out
    assert (tmp_path / "out" / "checkpoint-2.pth").exists()


@pytest.mark.parametrize("value", ["-1", "nan", "1.5"])
def test_patience_is_a_count(value, capsys):
    assert main(["finetune", "--patience", value, "--output_dir", "x"]) == 2
    assert "--patience" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_stop_together(scpc, tmp_path):
    """A learning rate of 0 leaves every score as it was, so that the first one is the best."""
    out, log = tmp_path / "out", tmp_path / "log"
    flags = ["--epochs", "9", "--patience", "2", "--lr", "0", "--min_lr", "0", "--batch_size", "4"]
    command = ["run_beit3_finetuning.py", *finetune(scpc, out, *flags)[1:]]
    code, said = ended(start(command, log, *torchrun(2)), log)
    assert code == 0, said
    assert said.count("stopped early: 2 validations in a row") == 1
    assert epochs_logged(out) == [0, 1, 2]


@pytest.mark.slow
def test_folds_that_stopped_early_are_done(scpc, tmp_path, scored, capsys):
    prepare = ["prepare", "choices", "--train", str(scpc / "train.csv"), "--image_root", str(scpc / "images")]
    assert main([*prepare, "--data_path", str(tmp_path / "data"), "--folds", "2", "--train_tokenizer", "300"]) == 0
    scored[:] = [50.0, 40.0, 60.0, 70.0, 65.0]
    command = ["cross_validate", *finetune(tmp_path, tmp_path / "out", "--epochs", "3", "--patience", "1")[1:]]
    assert main(command) == 0
    results = json.loads((tmp_path / "out" / "cross_validation.json").read_text())
    assert results["folds"] == {"0": [50.0, 40.0], "1": [60.0, 70.0, 65.0]}
    assert [moments["mean"] for moments in results["epochs"]] == [55.0, 55.0]
    assert results["best"]["mean"] == 60.0
