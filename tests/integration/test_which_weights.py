"""Which weights, and which options, a run or an evaluation takes from a checkpoint; and that it says so."""

import json

import pytest
import torch

from beit3_vqa.cli.main import main
from tests.helpers.commands import finetune

FLAGS = ["--epochs", "1", "--warmup_epochs", "0", "--lr", "1e-3", "--layer_decay", "1"]
STAY = ["--lr", "0", "--min_lr", "0", "--layer_decay", "1"]


@pytest.fixture(scope="module")
def averaged(scpc, tmp_path_factory):
    """A run of one epoch with a moving average, whose weights are others than the average."""
    out = tmp_path_factory.mktemp("averaged") / "out"
    flags = ["--model_ema", "--model_ema_decay", "0.5", "--label_smoothing", "0.3"]
    assert main(finetune(scpc, out, *FLAGS, *flags)) == 0
    return out


def head(path, key="model"):
    return torch.load(path)[key]["head.3.weight"]


def test_resume_weights_only_takes_the_asked_weights(scpc, averaged, tmp_path, capsys):
    best = averaged / "checkpoint-best.pth"
    assert not torch.equal(head(best), head(best, "model_ema"))
    resume = ["--resume", str(best), "--resume_weights_only", "--epochs", "2", *STAY]
    assert main(finetune(scpc, tmp_path / "out", *resume, "--model_key", "model_ema")) == 0
    assert torch.equal(head(tmp_path / "out" / "checkpoint-1.pth"), head(best, "model_ema"))
    assert main(finetune(scpc, tmp_path / "none", *resume, "--model_key", "nothing")) == 2
    assert "--model_key nothing isn't in it" in capsys.readouterr().err


def test_finetune_says_that_it_took_the_weights_and_not_their_average(scpc, averaged, tmp_path, capsys):
    best = averaged / "checkpoint-best.pth"
    assert main(finetune(scpc, tmp_path / "out", "--finetune", str(best), "--epochs", "1", *STAY)) == 0
    assert "its weights were taken; --model_key model_ema takes their average" in capsys.readouterr().out
    assert torch.equal(head(tmp_path / "out" / "checkpoint-0.pth"), head(best))


def test_adapters_go_on_with_the_scale_that_they_were_trained_with(scpc, trained, tmp_path, capsys):
    start, lora = ["--finetune", str(trained / "checkpoint-best.pth")], ["--lora_rank", "4"]
    assert main(finetune(scpc, tmp_path / "first", *FLAGS, *start, *lora, "--lora_alpha", "64")) == 0
    more = [*FLAGS, "--finetune", str(tmp_path / "first" / "checkpoint-best.pth"), *lora]
    assert main(finetune(scpc, tmp_path / "second", *more)) == 2
    assert "trained with --lora_alpha 64, and this run has 8: give --lora_alpha 64" in capsys.readouterr().err
    assert main(finetune(scpc, tmp_path / "second", *more, "--lora_alpha", "64")) == 0


def test_an_evaluation_measures_as_the_training_did(scpc, averaged, tmp_path):
    """With its label smoothing, which the loss depends on."""
    evaluate = ["--eval", "--resume", str(averaged / "checkpoint-best.pth"), "--split", "val"]
    logged = json.loads((averaged / "log.txt").read_text())["val_loss"]
    for flags, same in (([], True), (["--label_smoothing", "0"], False)):
        assert main(finetune(scpc, tmp_path / "eval", *evaluate, *flags)) == 0
        loss = json.loads((tmp_path / "eval" / "metrics_val.json").read_text())["loss"]
        assert (loss == pytest.approx(logged, abs=1e-4)) == same


def test_a_temperature_of_other_weights_is_not_kept(scpc, averaged, tmp_path, capsys):
    evaluate = ["--eval", "--resume", str(averaged / "checkpoint-best.pth"), "--split", "val"]
    assert main(finetune(scpc, tmp_path / "e", *evaluate, "--temperature", "fit", "--model_key", "model")) == 0
    assert "isn't kept: it is that of --model_key model" in capsys.readouterr().out
    assert "temperature" not in json.loads((averaged / "checkpoint-best.json").read_text())
    assert main(finetune(scpc, tmp_path / "e", *evaluate, "--temperature", "fit")) == 0
    assert "kept in" in capsys.readouterr().out
    assert main(finetune(scpc, tmp_path / "e", *evaluate, "--model_key", "model")) == 0
    assert "kept beside" not in capsys.readouterr().out


def test_options_without_their_switch_are_told(scpc, tmp_path, capsys):
    idle = {"model_ema_decay": "0.9", "lora_alpha": "16", "hard_ratio": "5", "teacher_weight": "0.9"}
    idle |= {"checkpoint_every": "2", "plateau_factor": "0.2"}
    flags = [word for name, value in idle.items() for word in (f"--{name}", value)]
    assert main(finetune(scpc, tmp_path / "out", "--epochs", "1", "--dry_run", *flags)) == 0
    said = capsys.readouterr().out
    for name in idle:
        assert f"--{name} has no effect without --" in said
