"""A run that goes on: with the data it began with, and with what its command names, or an error says why not."""

import json
import shutil
import time

import pytest
import torch

from beit3_vqa.cli.main import main
from beit3_vqa.engine import trainer
from beit3_vqa.engine.checkpoint import save as saving
from beit3_vqa.engine.checkpoint.folder import prune
from beit3_vqa.engine.loop import train_epoch
from beit3_vqa.errors import InputError, plural
from tests.faults.kills import differences
from tests.helpers.commands import finetune


def read_rows(data, split):
    return [json.loads(line) for line in (data / f"vqacustom.{split}.jsonl").read_text().splitlines()]


def write_rows(data, split, rows):
    (data / f"vqacustom.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(scpc, trained, tmp_path, capsys):
    """A finished run of two epochs whose data may be changed; `run(*flags)` goes on, returning exit code and text."""
    shutil.copytree(trained, tmp_path / "out")
    shutil.copytree(scpc / "data", tmp_path / "data")

    def go_on(*flags):
        place = ["--data_path", str(tmp_path / "data"), "--image_root", str(scpc / "images"), "--epochs", "3"]
        code = main(finetune(scpc, tmp_path / "out", *place, *flags))
        said = capsys.readouterr()
        return code, said.out + said.err

    go_on.out, go_on.data = tmp_path / "out", tmp_path / "data"
    return go_on


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.*")}


def what_is_asked(rows):
    return {(row["image_path"], row["question"], *row["choices"]) for row in rows}


def test_a_new_split_whose_val_was_trained_on_is_refused(run, scpc, capsys):
    trained_on, before = what_is_asked(read_rows(run.data, "train")), contents(run.out)
    prepare = ["prepare", "choices", "--train", str(scpc / "train.csv"), "--image_root", str(scpc / "images")]
    shutil.rmtree(run.data)
    assert main([*prepare, "--data_path", str(run.data), "--seed", "7", "--train_tokenizer", "300"]) == 0
    val = read_rows(run.data, "val")
    leaked = sum(bool(what_is_asked([row]) & trained_on) for row in val)
    assert leaked
    for again in (False, True):
        if again:  # ids are no way around it
            write_rows(run.data, "val", [{**row, "id": f"new{row['id']}"} for row in val])
        code, said = run()
        assert code == 2
        assert f"{leaked} of {len(val)} rows of val are trained on" in said
        assert "the validation split has changed" in said
        assert "--data_changed ok" in said
        assert contents(run.out) == before


@pytest.mark.slow
def test_another_val_begins_a_new_best_and_keeps_the_old_one(run):
    rows, best = read_rows(run.data, "val"), (run.out / "checkpoint-best.pth").read_bytes()
    write_rows(run.data, "val", rows[:-2])
    code, said = run()
    assert code == 2
    assert "val: 2 removed" in said
    assert "the validation split has changed" in said
    assert "trained on" not in said
    assert run("--data_changed", "ok")[0] == 0
    assert (run.out / "previous-1" / "checkpoint-best.pth").read_bytes() == best
    content = torch.load(run.out / "checkpoint-2.pth")
    lines = [json.loads(line) for line in (run.out / "log.txt").read_text().splitlines()]
    assert (content["best_epoch"], content["best_score"]) == (2, lines[2]["val_accuracy"])
    assert len(content["val_losses"]) == 1  # --sched plateau follows those of one split
    assert len(content["data_rows"]["val"]["rows"]) == len(rows) - 2
    assert "data_changed" not in (run.out / "config.json").read_text()
    code, said = run("--epochs", "4", "--dry_run")  # the data of now are the run's
    assert code == 0
    assert "have changed" not in said


def test_rows_once_trained_on_are_remembered_when_they_have_left(run):
    train, val = read_rows(run.data, "train"), read_rows(run.data, "val")
    write_rows(run.data, "train", train[1:])
    assert run()[0] == 0
    write_rows(run.data, "val", [*val, {**train[0], "id": "other"}])
    code, said = run("--epochs", "4")
    assert code == 2
    assert f"1 of {len(val) + 1} rows of val are trained on" in said


def answered_otherwise(row):
    return {**row, "answer": "ABCD"["ABCD".index(row["answer"]) - 1]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows[::-1], "train: 30 in another place"),
        pytest.param(lambda rows: rows[:-3], "train: 3 removed", marks=pytest.mark.slow),
        pytest.param(
            lambda rows: [*rows, {**rows[0], "id": "new", "question": "A new one?"}],
            "train: 1 added",
            marks=pytest.mark.slow,
        ),
        pytest.param(lambda rows: [answered_otherwise(rows[0]), *rows[1:]], "train: 1 changed", marks=pytest.mark.slow),
        pytest.param(lambda rows: [{**rows[0], "id": "new"}, *rows[1:]], "train: other ids", marks=pytest.mark.slow),
        (lambda rows: [*rows[3:], {**rows[0], "question": "Another?"}], "train: 1 added, 3 removed"),
    ],
)
def test_changes_of_train_are_counted(run, change, told):
    write_rows(run.data, "train", change(read_rows(run.data, "train")))
    code, said = run("--dry_run")
    assert code == 0
    assert f"the rows of --data_path have changed since the checkpoint; {told}\n" in said


def test_val_in_another_order_is_the_same_val(run):
    write_rows(run.data, "val", read_rows(run.data, "val")[::-1])
    code, said = run("--dry_run")
    assert code == 0
    assert "val: 6 in another place" in said


@pytest.mark.slow
def test_the_same_rows_in_another_folder_go_on(run):
    code, said = run("--dry_run")
    assert code == 0
    assert f"--data_path {run.data}: the same rows as in" in said
    assert "data_path" not in said.replace("--data_path", "")  # as something that changed


@pytest.mark.slow
def test_a_checkpoint_without_fingerprints_goes_on(run):
    content = torch.load(run.out / "checkpoint-1.pth")
    del content["data_rows"]
    torch.save(content, run.out / "checkpoint-1.pth")
    (run.out / "checkpoint-1.json").unlink()
    write_rows(run.data, "val", read_rows(run.data, "val")[:-2])
    assert run("--dry_run")[0] == 0


@pytest.mark.slow
def test_a_checkpoint_with_malformed_fingerprints_is_passed_over(run):
    content = torch.load(run.out / "checkpoint-1.pth")
    for rows in ({"train": {"rows": torch.zeros(3)}}, {"train": {"rows": torch.zeros(3), "digest": ""}}, [1]):
        torch.save({**content, "data_rows": rows}, run.out / "checkpoint-1.pth")
        (run.out / "checkpoint-1.json").unlink(missing_ok=True)
        code, said = run("--dry_run")
        assert code == 0
        assert "passed over" in said
        assert "'data_rows'" in said


# What a command names


@pytest.mark.parametrize(
    "flags",
    [["--finetune", "other.pth"], ["--init", "upstream"], ["--model", "beit3_tiny_patch8_64"], ["--task", "vqarank"]],
)
@pytest.mark.parametrize("resume", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_options_without_effect_on_a_resumed_run_are_refused(run, flags, resume):
    before = contents(run.out)
    named = ["--resume", str(run.out / "checkpoint-0.pth")] if resume else []
    code, said = run(*flags, *named)
    assert code == 2
    assert f"{flags[0]} {flags[1]}: " in said
    assert "--no_auto_resume" in said
    assert "another --output_dir" in said
    assert contents(run.out) == before


def test_a_run_goes_on_with_the_flags_it_began_with_and_without_them(run, scpc, trained, tmp_path, capsys):
    start = tmp_path / "start.pth"
    shutil.copy(trained / "checkpoint-best.pth", start)
    out = tmp_path / "tuned"
    began = ["--finetune", str(start), "--epochs", "3", "--stop_after_epochs", "1"]
    assert main(finetune(scpc, out, *began)) == 0
    start.unlink()  # Colab's own disk is emptied
    assert main(finetune(scpc, out, *began, "--model", "beit3_tiny_patch8_32_vqacustom")) == 0
    assert main(finetune(scpc, out, "--epochs", "3")) == 0
    assert json.loads((out / "config.json").read_text())["init"]["finetune"] == str(start)
    assert not list(out.glob("previous-*"))


def test_the_best_checkpoint_starts_a_new_run_in_its_folder_and_stays(run, scpc, trained):
    """The second command of a notebook, and the same one again after each disconnect."""
    best = (run.out / "checkpoint-best.pth").read_bytes()
    command = ["--finetune", str(run.out / "checkpoint-best.pth"), "--lr", "1e-4", "--epochs", "2"]
    for path in run.out.glob("checkpoint-[01].*"):  # killed before a numbered checkpoint: --save_ckpt_freq of old
        path.unlink()
    for _ in range(2):  # killed before its first checkpoint, and typed again
        code, said = run(*command, "--no_save_ckpt", "--stop_after_epochs", "1")
        assert code == 0
        assert (run.out / "checkpoint-best.pth").read_bytes() == best
    assert [path.name for path in run.out.glob("previous-*")] == ["previous-1"]
    assert run(*command, "--stop_after_epochs", "1")[0] == 0
    assert (run.out / "previous-1" / "checkpoint-best.pth").read_bytes() == best
    assert (run.out / "checkpoint-best.pth").read_bytes() != best
    code, said = run(*command)
    assert code == 0
    assert "1 epoch done, 1 to go" in said
    assert json.loads((run.out / "config.json").read_text())["init"]["finetune"] == command[1]


def test_the_named_best_wins_over_what_auto_resume_would_find(run):
    before = contents(run.out)
    (run.out / "checkpoint-2-step3.pth").write_bytes(before["checkpoint-1.pth"])  # Ctrl-C in the middle of an epoch
    code, said = run("--finetune", str(run.out / "checkpoint-best.pth"), "--stop_after_epochs", "1")
    assert code == 0
    assert "held another run; its files are now in" in said
    aside = contents(run.out / "previous-1")
    assert before.items() <= aside.items()
    assert "checkpoint-2-step3.pth" in aside
    code, said = run("--finetune", str(run.out / "checkpoint-0.pth"), "--no_auto_resume")
    assert code == 2
    assert "where the new run's own checkpoints would take its place" in said


def test_a_command_that_goes_back_an_epoch_goes_on_when_typed_again(run):
    back = ["--resume", str(run.out / "checkpoint-0.pth"), "--epochs", "3", "--stop_after_epochs", "1"]
    for epoch in (1, 2):
        code, said = run(*back)
        assert code == 0
        assert f"{plural(epoch, 'epoch')} done" in said
    assert [path.name for path in run.out.glob("previous-*")] == ["previous-1"]


def epochs_kept(out):
    return sorted(path.name for path in out.glob("checkpoint-?.pth"))


def test_a_kill_loses_no_epoch_with_save_ckpt_freq(scpc, tmp_path, monkeypatch):
    """Epochs that aren't kept are there until the next one is."""
    out, seen = tmp_path / "out", []
    monkeypatch.setattr(saving, "prune", lambda *of: (prune(*of), seen.append(epochs_kept(out))))
    assert main(finetune(scpc, out, "--epochs", "4", "--save_ckpt_freq", "2")) == 0
    kept = [["checkpoint-0.pth"], ["checkpoint-1.pth"], ["checkpoint-1.pth", "checkpoint-2.pth"]]
    assert seen == [*kept, ["checkpoint-1.pth", "checkpoint-3.pth"]]


def test_only_rolling_checkpoints_are_deleted(run):
    """Every epoch was asked for when these were written."""
    assert run("--save_ckpt_freq", "5", "--stop_after_epochs", "2", "--epochs", "5")[0] == 0
    assert epochs_kept(run.out) == ["checkpoint-0.pth", "checkpoint-1.pth", "checkpoint-3.pth"]
    assert run("--save_ckpt_freq", "5", "--keep_checkpoints", "2", "--epochs", "5")[0] == 0
    assert epochs_kept(run.out) == ["checkpoint-1.pth", "checkpoint-4.pth"]


def end_after(step, error, monkeypatch):
    """Raise an error in a run after one of its steps."""

    def ending(run, batches, schedule, after_step, **begin):
        def end(report):
            after_step(report)
            if report.step == step:
                raise error

        train_epoch(run, batches, schedule, end, **begin)

    monkeypatch.setattr(trainer, "train_epoch", ending)


class Killed(BaseException):
    """Ends a run that nothing is saved of."""


def test_with_other_batches_a_run_keeps_what_it_goes_on_from_until_another_checkpoint_is_there(
    scpc, tmp_path, monkeypatch, capsys
):
    """Their steps have lower numbers, so its name is that of a later place."""
    out = tmp_path / "out"
    command, gone = finetune(scpc, out, "--epochs", "1"), InputError("the images are gone")
    end_after(4, gone, monkeypatch)
    assert main([*command, "--batch_size", "3"]) == 2
    end_after(3, Killed(), monkeypatch)
    with pytest.raises(Killed):
        main([*command, "--batch_size", "6"])
    assert [path.name for path in out.glob("*.pth")] == ["checkpoint-0-step4.pth"]
    end_after(3, gone, monkeypatch)
    assert main([*command, "--batch_size", "6"]) == 2
    assert [path.name for path in out.glob("*.pth")] == ["checkpoint-0-step3.pth"]
    monkeypatch.undo()
    capsys.readouterr()
    assert main([*command, "--batch_size", "6"]) == 0
    assert "checkpoint-0-step3.pth: 0 epochs and 18 of 30 examples of the next done" in capsys.readouterr().out


def test_going_back_takes_the_best_checkpoint_of_what_is_trained_again_out_of_the_way(run):
    """Else it would pass for the best of what comes."""
    about = json.loads((run.out / "checkpoint-best.json").read_text())
    (run.out / "checkpoint-best.json").write_text(json.dumps({**about, "epoch": 1}))
    best = (run.out / "checkpoint-best.pth").read_bytes()
    back = ["--resume", str(run.out / "checkpoint-0.pth"), "--epochs", "2", "--lr", "1e-5"]
    code, said = run(*back)
    assert code == 0
    assert "their earlier checkpoints, the best among them, are now in" in said
    assert (run.out / "previous-1" / "checkpoint-best.pth").read_bytes() == best
    assert torch.load(run.out / "checkpoint-best.pth")["best_epoch"] == 1


@pytest.mark.slow
def test_resume_with_other_workers_is_bitwise_identical(scpc, tmp_path, monkeypatch):
    """In the middle of an epoch, from two processes that load data to none."""
    flags = ["--epochs", "1", "--batch_size", "3", "--drop_path", "0.2", "--randaug"]
    assert main(finetune(scpc, tmp_path / "undisturbed", *flags)) == 0
    end_after(4, InputError("the images are gone"), monkeypatch)
    assert main(finetune(scpc, tmp_path / "out", *flags, "--num_workers", "2")) == 2
    monkeypatch.undo()
    assert main(finetune(scpc, tmp_path / "out", *flags)) == 0
    ours, theirs = (torch.load(tmp_path / name / "checkpoint-0.pth") for name in ("out", "undisturbed"))
    for content in (ours, theirs):
        content["args"] = None
    assert differences(theirs, ours) == []


@pytest.mark.slow
def test_resume_with_other_threads_is_identical_up_to_rounding(scpc, tmp_path):
    flags = ["--epochs", "2", "--drop_path", "0.2"]
    threads = torch.get_num_threads()
    try:
        for name in ("undisturbed", "out"):
            torch.set_num_threads(1)
            assert main(finetune(scpc, tmp_path / name, *flags, "--stop_after_epochs", "1")) == 0
            torch.set_num_threads(1 if name == "undisturbed" else 2)
            assert main(finetune(scpc, tmp_path / name, *flags)) == 0
    finally:
        torch.set_num_threads(threads)
    ours, theirs = (torch.load(tmp_path / name / "checkpoint-1.pth")["model"] for name in ("out", "undisturbed"))
    for name, value in theirs.items():
        # AdamW makes whole steps of the sign of a gradient near 0: four of 5e-4 at most.
        assert (ours[name] - value).abs().max() <= 2e-3, name


@pytest.mark.slow
def test_a_clock_that_goes_back_changes_nothing(scpc, tmp_path, monkeypatch):
    """Nothing is chosen by time; TensorBoard's curves have each epoch once, in order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    now = time.time
    for hours in (0, -5, 3):
        monkeypatch.setattr(time, "time", lambda hours=hours: now() + 3600 * hours)
        assert main(finetune(scpc, tmp_path / "out", "--epochs", "3", "--stop_after_epochs", "1")) == 0
    monkeypatch.undo()
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    assert sorted(point.step for point in events.Scalars("val/accuracy")) == [4, 8, 12]
