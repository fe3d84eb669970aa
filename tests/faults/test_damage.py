"""Checkpoints that were cut short or changed, disks that are full, folders that vanish."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from beit3_vqa.cli.main import main
from beit3_vqa.engine.checkpoint import save as saving
from beit3_vqa.engine.checkpoint.folder import prune_steps
from beit3_vqa.engine.checkpoint.io import read_checkpoint
from tests.helpers.commands import finetune, finetune_clip
from tests.helpers.processes import ended, long_run, start, wait_until


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path):
    """In the largest tensor: between the parts of the file there is padding that means nothing."""
    with zipfile.ZipFile(path) as archive:
        tensor = archive.read(max(archive.infolist(), key=lambda part: part.file_size))
    content = bytearray(path.read_bytes())
    content[content.index(tensor) + len(tensor) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def assert_no_traceback_of_ours(said):
    """TensorBoard's writer prints one from its thread where it can't write."""
    for traceback in said.split("Traceback (most recent call last):")[1:]:
        assert "tensorboard" in traceback
        assert "/beit3_vqa/" not in traceback.split("Error: ")[0]


@pytest.mark.parametrize(("harm", "manifest"), [(cut_short, True), (flip_a_bit, False), (empty, True)])
def test_training_goes_on_from_the_newest_undamaged_checkpoint(scpc, trained, tmp_path, capsys, harm, manifest):
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    harm(out / "checkpoint-1.pth")
    if not manifest:
        (out / "checkpoint-1.json").unlink()
    assert main(finetune(scpc, out, "--epochs", "2")) == 0
    said = capsys.readouterr().out
    assert f"passed over: {out}/checkpoint-1.pth" in said
    assert "checkpoint-0.pth: 1 epoch done, 1 to go" in said
    ours, theirs = (read_checkpoint(folder / "checkpoint-1.pth", "x")["model"] for folder in (out, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (out / "previous-1" / "checkpoint-1.pth").exists()  # even the damaged one is only set aside


def test_a_folder_of_damaged_checkpoints_is_never_started_over(scpc, trained, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    for path in out.glob("checkpoint-?.pth"):
        cut_short(path)
    before = {path.name: path.read_bytes() for path in out.glob("*.*")}
    assert main(finetune(scpc, out, "--epochs", "3")) == 2
    said = capsys.readouterr().err
    assert "none that training can go on from" in said
    assert "--no_auto_resume" in said
    assert {path.name: path.read_bytes() for path in out.glob("*.*")} == before
    assert main(finetune(scpc, out, "--epochs", "1", "--no_auto_resume")) == 0
    assert (out / "previous-1" / "checkpoint-1.pth").read_bytes() == before["checkpoint-1.pth"]


def test_resume_typed_again_goes_on_from_the_newest_undamaged_checkpoint_of_its_folder(scpc, trained, tmp_path, capsys):
    resume = ["--resume", str(trained / "checkpoint-0.pth"), "--epochs", "3"]
    command = finetune(scpc, tmp_path / "out", *resume)
    assert main(command) == 0
    cut_short(tmp_path / "out" / "checkpoint-2.pth")
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"passed over: {tmp_path}/out/checkpoint-2.pth" in said
    assert f"{tmp_path}/out/checkpoint-1.pth goes on from it" in said
    read_checkpoint(tmp_path / "out" / "checkpoint-2.pth", "x")


@pytest.mark.parametrize("flags", [["--resume"], ["--eval", "--split", "val", "--resume"], ["--finetune"]])
def test_a_damaged_checkpoint_that_was_named_is_refused(scpc, trained, tmp_path, capsys, flags):
    shutil.copytree(trained, tmp_path / "from")
    flip_a_bit(tmp_path / "from" / "checkpoint-1.pth")
    assert main(finetune(scpc, tmp_path / "out", *flags, str(tmp_path / "from" / "checkpoint-1.pth"))) == 2
    assert "checkpoint-1.pth is damaged: its bytes have changed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_checkpoints_inside_an_epoch_are_deleted_at_its_end(scpc, tmp_path, monkeypatch):
    out, seen = tmp_path / "out", []
    monkeypatch.setattr(saving, "prune_steps", lambda folder: (prune_steps(folder), seen.append(names(folder))))
    command = finetune(scpc, out, "--batch_size", "4", "--epochs", "1", "--save_steps", "2")
    assert main(command) == 0
    steps = [f"checkpoint-0-step{number}.pth" for number in (2, 4, 6)]
    assert seen == [steps[:1], steps[:2], steps[1:]]
    assert names(out) == []
    shutil.copy(out / "checkpoint-0.pth", out / steps[0])  # as if it had been killed before it came to deleting them
    assert main(command) == 0
    assert names(out) == []


def names(folder, pattern="checkpoint-*-step*.pth"):
    return sorted(path.name for path in folder.glob(pattern))


@pytest.mark.slow
def test_a_run_goes_on_inside_an_epoch_with_another_batch_size_and_begins_it_again_in_another_order(
    scpc, tmp_path, capsys
):
    """A run that stopped inside an epoch goes on at the next example with another batch size."""
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(long_run(scpc, out), log)
    wait_until(lambda: "epoch 1/4" in log.read_text(), process)
    process.terminate()
    assert ended(process, log)[0] == 143
    (stopped,) = out.glob("checkpoint-1-step*.pth")
    content = torch.load(stopped)
    examples = content["inside_epoch"]["examples"]
    assert content["epoch"] == 0
    other = long_run(scpc, out, "--stop_after_epochs", "1", "--batch_size", "2")
    assert main([*other, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "batch_size 3 -> 2" in said
    assert f"1 epoch and {examples} of 30 examples of the next done" in said
    assert main([*other, "--seed", "7", "--dry_run"]) == 0
    assert (
        "the epoch begins again, since its examples come in another order now (seed 0 -> 7)" in capsys.readouterr().out
    )
    assert main(other) == 0
    lines = (out / "log.txt").read_text().splitlines()
    assert len(lines) == 2


@pytest.mark.slow
def test_a_folder_that_vanishes_is_an_error_at_the_end_and_loses_no_checkpoint(scpc, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(long_run(scpc, out), log)
    wait_until(lambda: (out / "checkpoint-0.json").exists(), process)
    out.rename(tmp_path / "elsewhere")
    code, said = ended(process, log)
    assert code == 2
    assert said.count("checkpoint not written") >= 2
    assert "the last checkpoint couldn't be written" in said
    assert_no_traceback_of_ours(said)
    read_checkpoint(tmp_path / "elsewhere" / "checkpoint-0.pth", "x")


@pytest.mark.slow
def test_training_goes_on_through_a_full_disk_and_leaves_no_broken_file(scpc, tmp_path):
    """On a file system of 40 MiB, where a checkpoint takes 16 and the best one 6."""
    if subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    disk, log = tmp_path / "disk", tmp_path / "log"
    disk.mkdir()
    run = finetune(scpc, disk / "out", "--epochs", "3", "--batch_size", "15")
    script = f'mount -t tmpfs -o size=40m tmpfs {disk} && "$@"; code=$?; cp -r {disk}/out {tmp_path}/left; exit $code'
    inside = ("unshare", "-rm", "sh", "-c", script, "sh", sys.executable, "-m", "beit3_vqa")
    code, said = ended(start(run, log, *inside), log)
    assert code == 2, said
    assert "No space left on device" in said
    assert "Training goes on" in said
    assert "epoch 2: val" in said  # it did
    assert_no_traceback_of_ours(said)
    left = tmp_path / "left"
    assert not list(left.glob(".*.tmp"))
    whole = sorted(left.glob("checkpoint-*.pth"))
    assert left / "checkpoint-0.pth" in whole
    for path in whole:
        read_checkpoint(path, "x")
    assert main(finetune(scpc, left, "--epochs", "3", "--batch_size", "15")) == 0


def test_a_kill_before_or_in_a_rename_loses_nothing(scpc, trained, tmp_path, capsys):
    """On a drive where a rename deletes or copies, a whole file may lie there under its temporary name only."""
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    process = subprocess.Popen(["true"])
    process.wait()
    before = {}
    for name in ("checkpoint-1.pth", "checkpoint-best.pth", "log.txt"):
        before[name] = (out / name).read_bytes()
        (out / name).rename(out / f".{name}.{process.pid}.tmp")
    (out / "checkpoint-1.pth").write_bytes(before["checkpoint-1.pth"][:1000])
    (out / f".checkpoint-0.pth.{process.pid}.tmp").write_bytes((out / "checkpoint-0.pth").read_bytes()[:-9])
    before["checkpoint-0.pth"] = (out / "checkpoint-0.pth").read_bytes()
    assert main(finetune(scpc, out, "--epochs", "3")) == 0
    said = capsys.readouterr().out
    assert said.count("was written but not yet renamed") == 3
    assert "2 epochs done, 1 to go" in said
    for name in ("checkpoint-0.pth", "checkpoint-1.pth"):
        assert (out / name).read_bytes() == before[name]
    assert (out / "log.txt").read_bytes().startswith(before["log.txt"])
    assert not list(out.glob(".*.tmp"))


def test_a_checkpoint_that_cant_be_deleted_costs_space_not_the_run(scpc, tmp_path, monkeypatch, capsys):
    out, unlink = tmp_path / "out", Path.unlink

    def refusing(path, missing_ok=False):
        if path.name == "checkpoint-0.pth":
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refusing)
    (out / "checkpoint-7.pth").mkdir(parents=True)  # a folder in the way is nobody's checkpoint
    assert main(finetune(scpc, out, "--epochs", "2", "--keep_checkpoints", "1")) == 0
    assert "checkpoint-0.pth can't be deleted (Permission denied); training goes on" in capsys.readouterr().out
    assert names(out, "checkpoint-?.pth") == ["checkpoint-0.pth", "checkpoint-1.pth", "checkpoint-7.pth"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["evaluation", "ensemble", "report", "score", "export", "merge"])
def test_a_disk_that_is_full_or_read_only_is_one_error(scpc, trained, clip_folder, tmp_path, command):
    if subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    run, tuned, disk = tmp_path / "run", tmp_path / "tuned", tmp_path / "disk"
    shutil.copytree(trained, run)
    data = ["--data_path", str(scpc / "data"), "--device", "cpu", "--num_workers", "0"]
    evaluate = ["finetune", "--eval", "--split", "val", "--resume", str(run / "checkpoint-best.pth"), *data]
    if command in ("export", "merge"):
        assert main(finetune_clip(scpc, clip_folder, tuned, "--epochs", "1")) == 0
    else:
        assert main(evaluate) == 0
    disk.mkdir()
    results = str(run / "predictions_val.json")
    export = ["export", "--checkpoint", str(tuned / "checkpoint-best.pth"), "--output_dir", str(disk / "new")]
    arguments = {
        "evaluation": [*evaluate, "--output_dir", str(disk / "new")],
        "ensemble": ["ensemble", results, "--output", str(disk / "submission.csv")],
        "report": ["report", str(run), "--split", "val", "--attention", "0", "--output", str(disk / "page.html")],
        "score": ["score", results, "--json", str(disk / "metrics.json")],
        "export": export,
        "merge": [*export, "--merge"],
    }[command]
    for options, says in (("size=4k", "No space left on device"), ("size=4k,ro", "ead-only")):
        script = f"mount -t tmpfs -o {options} tmpfs {disk}; head -c 9999 /dev/zero > {disk}/filler; "
        script += f'"$@"; code=$?; ls -A {disk} > {tmp_path}/left; exit $code'
        inside = ("unshare", "-rm", "sh", "-c", script, "sh", sys.executable, "-m", "beit3_vqa")
        code, said = ended(start(arguments, tmp_path / "log", *inside), tmp_path / "log")
        assert code == 2, said
        assert says in said
        assert said.count("error: ") == 1
        assert "Traceback" not in said
        assert ".tmp" not in (tmp_path / "left").read_text()
