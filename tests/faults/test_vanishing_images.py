"""Images vanish in the middle of an epoch: what was trained is saved, and goes on once they are back."""

import shutil

import pytest
import torch

from beit3_vqa.cli.main import main
from beit3_vqa.engine import trainer
from beit3_vqa.engine.loop import train_epoch
from tests.faults.kills import differences
from tests.helpers.commands import finetune
from tests.helpers.processes import ended, long_run, start, torchrun, wait_until


@pytest.mark.parametrize(
    ("vanish_after", "flags", "steps_done"),
    [
        (1, ["--update_freq", "2", "--drop_path", "0.5", "--model_ema"], 1),  # in the middle of the second step
        (10, ["--skip_bad_images", "1"], 10),  # as the split is about to be validated
    ],
)
def test_images_that_vanish_end_the_run_which_is_saved_and_goes_on_to_the_same_weights(
    scpc, tmp_path, monkeypatch, capsys, vanish_after, flags, steps_done
):
    images, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    shutil.copytree(scpc / "images", images)
    command = ["--image_root", str(images), "--epochs", "1", "--batch_size", "3", *flags]
    assert main(finetune(scpc, tmp_path / "undisturbed", *command)) == 0

    def vanishing(run, batches, schedule, after_step, **begin):
        def vanish(report):
            after_step(report)
            if report.step == vanish_after:
                images.rename(elsewhere)

        train_epoch(run, batches, schedule, vanish, **begin)

    monkeypatch.setattr(trainer, "train_epoch", vanishing)
    assert main(finetune(scpc, tmp_path / "out", *command)) == 2
    monkeypatch.undo()
    said = capsys.readouterr().err
    saved = tmp_path / "out" / f"checkpoint-0-step{steps_done}.pth"
    assert "doesn't exist" in said
    assert f"saved {saved}; the same command goes on from there" in said
    elsewhere.rename(images)
    assert main(finetune(scpc, tmp_path / "out", *command)) == 0
    ours, theirs = (torch.load(tmp_path / name / "checkpoint-0.pth") for name in ("out", "undisturbed"))
    for content in (ours, theirs):
        content["args"] = None
    # Rates are set before each step; with none left they aren't.
    assert [name for name in differences(theirs, ours) if not name.endswith(".lr")] == []


@pytest.mark.slow
def test_images_that_vanish_for_two_processes_end_both_and_the_run_goes_on_to_the_same_weights(scpc, tmp_path):
    """One of them misses an image first; the other, which has its batch, must not wait for it.

    They vanish in the first epoch: later each process remembers these few images.
    """
    images, elsewhere, log = tmp_path / "images", tmp_path / "elsewhere", tmp_path / "log"
    shutil.copytree(scpc / "images", images)

    def run(name):
        flags = ["--image_root", str(images), "--epochs", "2", "--batch_size", "1"]
        return start(["run_beit3_finetuning.py", *long_run(scpc, tmp_path / name, *flags)[1:]], log, *torchrun(2))

    process = run("out")
    wait_until(lambda: "epoch 0/2" in log.read_text(), process)
    images.rename(elsewhere)
    code, said = ended(process, log)
    assert code == 1
    saved = list((tmp_path / "out").glob("checkpoint-0-step*.pth"))
    assert len(saved) == 1
    assert said.count("doesn't exist") == 1  # the main process speaks for both
    assert f"saved {saved[0]}; the same command goes on from there" in said
    elsewhere.rename(images)
    for name in ("out", "undisturbed"):
        code, said = ended(run(name), log)
        assert code == 0, said
        assert (str(saved[0]) in said) == (name == "out")
    ours, theirs = (torch.load(tmp_path / name / "checkpoint-1.pth") for name in ("out", "undisturbed"))
    for content in (ours, theirs):
        content["args"] = None
    assert differences(theirs, ours) == []


def test_nothing_is_saved_if_images_vanish_before_the_first_step(scpc, tmp_path, monkeypatch, capsys):
    """Else the command with the right --image_root would go on with it."""
    images = tmp_path / "images"
    shutil.copytree(scpc / "images", images)

    def vanishing(*arguments, **begin):
        shutil.rmtree(images)
        train_epoch(*arguments, **begin)

    monkeypatch.setattr(trainer, "train_epoch", vanishing)
    assert main(finetune(scpc, tmp_path / "out", "--image_root", str(images), "--epochs", "1")) == 2
    assert "goes on from there" not in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.pth"))
