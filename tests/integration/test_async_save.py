"""--async_save: training goes on while a thread writes a checkpoint, and the file is the one of its step."""

import json
import threading
import time

import pytest
import torch

from beit3_vqa.cli.main import main
from beit3_vqa.engine import trainer
from beit3_vqa.engine.checkpoint import save
from beit3_vqa.engine.checkpoint.folder import epoch_file
from beit3_vqa.engine.checkpoint.io import save_checkpoint
from beit3_vqa.engine.checkpoint.save import Saver
from beit3_vqa.engine.loop import train_epoch
from beit3_vqa.errors import InputError
from beit3_vqa.runtime import memory
from tests.faults.kills import differences
from tests.helpers.commands import finetune
from tests.helpers.processes import ended, start, torchrun
from tests.helpers.scores import let_validations_score

# 30 rows make 10 steps.
FLAGS = ["--batch_size", "3", "--drop_path", "0.2", "--model_ema"]


def read(path):
    content = torch.load(path)
    content["args"] = None
    return content


def written_when_saved(monkeypatch):
    """Return a list to which each epoch's save adds whether its file is there when training goes on."""
    written, save_epoch = [], Saver.save_epoch

    def slow(*of):
        time.sleep(0.3)
        save_checkpoint(*of)

    def note(saver, *of):
        save_epoch(saver, *of)
        written.append(epoch_file(saver.folder, saver.state.epoch - 1).exists())

    monkeypatch.setattr(save, "save_checkpoint", slow)
    monkeypatch.setattr(Saver, "save_epoch", note)
    return written


def test_steps_are_done_while_a_checkpoint_is_written_and_it_holds_none_of_them(scpc, tmp_path, monkeypatch):
    flags = [*FLAGS, "--epochs", "1", "--save_steps", "3", "--keep_checkpoints", "0"]
    assert main(finetune(scpc, tmp_path / "waits", *flags, "--no_async_save")) == 0
    later = threading.Event()

    def train(run, batches, schedule, after_step, **begin):
        def then(report):
            after_step(report)
            if report.step % 3 == 2:
                later.set()

        train_epoch(run, batches, schedule, then, **begin)

    def write(*of):
        # Two steps after the one of the checkpoint; if training waited for this, they would never come.
        assert later.wait(60)
        later.clear()
        save_checkpoint(*of)

    monkeypatch.setattr(trainer, "train_epoch", train)
    monkeypatch.setattr(save, "save_checkpoint", write)
    # The epoch's own two files come after its last step.
    monkeypatch.setattr(trainer, "_end_epoch", lambda run, *of: setattr(run.state, "epoch", 1))
    main(finetune(scpc, tmp_path / "goes_on", *flags))
    names = {path.name for path in (tmp_path / "goes_on").glob("checkpoint-*.pth")}
    assert names == {"checkpoint-0-step6.pth", "checkpoint-0-step9.pth"}
    monkeypatch.undo()
    main(finetune(scpc, tmp_path / "goes_on", *flags))
    for name in ("checkpoint-0.pth", "checkpoint-best.pth"):
        assert differences(read(tmp_path / "waits" / name), read(tmp_path / "goes_on" / name)) == [], name


@pytest.mark.parametrize("flags", [[], ["--no_async_save"]])
def test_training_waits_for_a_checkpoint_if_it_is_told_to(scpc, tmp_path, monkeypatch, flags):
    written = written_when_saved(monkeypatch)
    assert main(finetune(scpc, tmp_path / "out", *FLAGS, "--epochs", "2", *flags)) == 0
    assert written == [bool(flags)] * 2


def test_training_waits_for_a_checkpoint_if_a_copy_would_fill_the_memory(scpc, tmp_path, monkeypatch):
    written = written_when_saved(monkeypatch)
    monkeypatch.setattr(memory, "free", lambda _device: 30 * 2**20)
    assert main(finetune(scpc, tmp_path / "out", *FLAGS, "--epochs", "2")) == 0
    assert written == [True, True]


def test_a_checkpoint_that_fails_while_training_does_is_told_too(scpc, tmp_path, monkeypatch, capsys):
    def fail(path, *_):
        time.sleep(0.5)
        raise InputError(f"{path} can't be written (no space left on device).")

    def diverge(*_, **__):
        raise RuntimeError("the step failed")

    monkeypatch.setattr(save, "save_checkpoint", fail)
    epochs = iter((train_epoch, diverge))
    monkeypatch.setattr(trainer, "train_epoch", lambda *of, **begin: next(epochs)(*of, **begin))
    with pytest.raises(RuntimeError, match="the step failed"):
        main(finetune(scpc, tmp_path / "out", *FLAGS, "--epochs", "2"))
    assert "checkpoint not written: " in capsys.readouterr().out


def test_a_copy_that_cannot_be_made_ends_the_run(scpc, tmp_path, monkeypatch):
    def fail(_contents):
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(save, "copy_to_main", fail)
    with pytest.raises(RuntimeError, match="not enough memory"):
        main(finetune(scpc, tmp_path / "out", *FLAGS, "--epochs", "1"))


def test_a_run_that_lost_its_folder_while_a_thread_wrote_ends(scpc, tmp_path, monkeypatch, capsys):
    def lose(_folder):
        raise InputError("another run has taken over the folder.")

    monkeypatch.setattr(save, "require_lock", lose)
    assert main(finetune(scpc, tmp_path / "out", *FLAGS, "--epochs", "2")) == 2
    assert "another run has taken over the folder." in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.pth"))


def test_a_best_checkpoint_that_cannot_be_written_is_not_the_best(scpc, tmp_path, monkeypatch, capsys):
    let_validations_score(monkeypatch, [50.0, 70.0, 60.0])
    best = []

    def write(path, *of):
        if path.name == "checkpoint-best.pth":
            best.append(path)
            if len(best) == 2:
                raise InputError(f"{path} can't be written (no space left on device).")
        save_checkpoint(path, *of)

    monkeypatch.setattr(save, "save_checkpoint", write)
    assert main(finetune(scpc, tmp_path / "out", *FLAGS, "--epochs", "3")) == 0
    kept = [read(tmp_path / "out" / f"checkpoint-{epoch}.pth") for epoch in range(3)]
    assert [(content["best_score"], content["best_epoch"]) for content in kept] == [(50, 0), (50, 0), (60, 2)]
    about = json.loads((tmp_path / "out/checkpoint-1.json").read_text())
    assert (about["best_score"], about["best_epoch"], about["score"]) == (50, 0, 70)
    assert capsys.readouterr().out.count("checkpoint not written") == 1


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--no_async_save"]])
def test_processes_wait_for_a_disk_that_is_slower_than_their_patience(scpc, tmp_path, flags):
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, time\n"
        "from beit3_vqa.cli.main import main\n"
        "from beit3_vqa.engine.checkpoint import save\n"
        "write = save.save_checkpoint\n"
        "save.save_checkpoint = lambda *of: (time.sleep(8), write(*of))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    run = finetune(scpc, tmp_path / "out", *FLAGS, "--epochs", "2", "--dist_timeout", "4", *flags)
    assert ended(start([str(script), *run], tmp_path / "log", *torchrun(2)), tmp_path / "log")[0] == 0
    assert (tmp_path / "out" / "checkpoint-1.json").exists()
