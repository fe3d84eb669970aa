"""What cross_validate leaves beside its folds: out-of-fold predictions, likely label errors, a vote and a soup."""

import csv
import json
import os
import random
import shutil
import signal
import time

import pytest
import torch

from beit3_vqa.cli.main import main
from beit3_vqa.data.predictions import read_info, read_predictions
from beit3_vqa.engine.checkpoint.manifest import get_sha256
from beit3_vqa.metrics.label_errors import find_label_errors
from tests.helpers.commands import finetune, finetune_clip
from tests.helpers.processes import ended, start, torchrun

FOLDS = range(2)


def prepare(scpc, folder, *flags):
    arguments = ["prepare", "choices", "--train", str(scpc / "train.csv"), "--test", str(scpc / "test.csv")]
    arguments += ["--image_root", str(scpc / "images"), "--data_path", str(folder / "data"), "--folds", "2"]
    assert main([*arguments, *flags]) == 0


@pytest.fixture(scope="module")
def made(scpc, clip_folder, tmp_path_factory):
    """The folder of a cross validation that has ended: data, and out."""
    folder = tmp_path_factory.mktemp("folds")
    prepare(scpc, folder)
    flags = ["--epochs", "2", "--lr", "1e-2"]
    assert main(["cross_validate", *finetune_clip(folder, clip_folder, folder / "out", *flags)[1:]]) == 0
    return folder


def read(path):
    return read_predictions(path, read_info(path))


@pytest.mark.slow
def test_each_training_row_is_answered_by_the_model_that_was_not_trained_on_it(made, capsys):
    out = made / "out"
    rows = [json.loads(line) for line in (made / "data" / "vqacustom.train.jsonl").read_text().splitlines()]
    predictions = read(out / "predictions.json")
    assert [p.id for p in predictions] == [row["id"] for row in rows]
    for fold in FOLDS:
        own = [p for p, row in zip(predictions, rows, strict=True) if row["fold"] == fold]
        assert own == read(out / f"fold-{fold}" / "predictions_val.json")
        # As training validated the best epoch.
        scores = json.loads((out / "cross_validation.json").read_text())["folds"][str(fold)]
        assert 100 * sum(p.score for p in own) / len(own) == pytest.approx(max(scores))
    info = read_info(out / "predictions.json")
    assert (info.split, info.sha256, info.checkpoint, info.chance) == ("train", "", "", 25.0)
    assert info.parameters == read_info(out / "fold-0" / "predictions_val.json").parameters
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["questions"] == len(rows)
    told = json.loads((out / "cross_validation.json").read_text())["out_of_fold"]
    assert told["accuracy"] == metrics["accuracy"]
    # The commands that read predictions read these.
    assert main(["score", str(out / "predictions.json"), "--json", str(made / "scored.json")]) == 0
    assert json.loads((made / "scored.json").read_text())["accuracy"] == metrics["accuracy"]
    for path in (out, out / "predictions.json"):
        assert main(["report", str(path), "--attention", "0", "--output", str(made / f"{path.stem}.html")]) == 0
    weighted = ["ensemble", str(out / "vote" / "predictions.json"), str(out / "soup" / "predictions.json")]
    vals = ["--vote", "weighted", "--val", *[str(out / "predictions.json")] * 2]
    assert main([*weighted, *vals, "--output", str(made / "e" / "submission.csv")]) == 0


@pytest.mark.slow
def test_likely_label_errors_stand_in_a_table(made):
    out = made / "out"
    with (out / "label_errors.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    errors = find_label_errors(read(out / "predictions.json"))
    assert rows
    assert [row["ID"] for row in rows] == [error.prediction.id for error in errors]
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    for row, error in zip(rows, errors, strict=True):
        p = error.prediction
        assert (row["Question"], row["answer"], row["preferred"]) == (p.question, p.truth, p.answer)
        assert row["answer_text"] == p.choices["ABCD".index(p.truth)]
        assert row["preferred_text"] == p.choices["ABCD".index(p.answer)]
        assert float(row["answer_probability"]) == pytest.approx(p.probabilities[p.truth], abs=1e-6)
        assert float(row["preferred_probability"]) == pytest.approx(p.probabilities[p.answer], abs=1e-6)


@pytest.mark.slow
def test_the_vote_takes_the_mean_probabilities_of_all_folds(made):
    out = made / "out"
    members = [read(out / f"fold-{fold}" / "predictions.json") for fold in FOLDS]
    voted = read(out / "vote" / "predictions.json")
    for one, two, both in zip(*members, voted, strict=True):
        mean = {letter: (one.probabilities[letter] + two.probabilities[letter]) / 2 for letter in "ABCD"}
        assert both.probabilities == pytest.approx(mean)
        assert both.answer == max(mean, key=mean.get)
    lines = (out / "vote" / "submission.csv").read_text().splitlines()
    assert lines == ["ID,answer", *(f"{p.id},{p.answer}" for p in voted)]
    told = json.loads((out / "cross_validation.json").read_text())["vote"]
    assert told["parameters"] == 2 * read_info(out / "fold-0" / "predictions.json").parameters
    assert told["parameters"] == read_info(out / "vote" / "predictions.json").parameters


@pytest.mark.slow
def test_the_soup_is_even_and_says_why(made):
    out = made / "out"
    table = json.loads((out / "soup" / "soup.json").read_text())
    best = [out / f"fold-{fold}" / "checkpoint-best.pth" for fold in FOLDS]
    assert [(member["sha256"], member["weight"]) for member in table["members"]] == [
        (get_sha256(path), 0.5) for path in best
    ]
    assert "no rows to choose other weights on" in table["why"]
    assert table["split"] == ""
    told = json.loads((out / "cross_validation.json").read_text())["soup"]
    soup, voted = read(out / "soup" / "predictions.json"), read(out / "vote" / "predictions.json")
    same = sum(one.answer == two.answer for one, two in zip(soup, voted, strict=True))
    assert told["same_answer_as_the_vote"] == pytest.approx(100 * same / len(voted))
    assert told["parameters"] == read_info(out / "soup" / "predictions.json").parameters
    assert told["why"] == table["why"]
    assert read_info(out / "soup" / "predictions.json").sha256 == table["sha256"]
    # No fold is held out of it: it saw every training row.
    assert torch.load(out / "soup" / "checkpoint-best.pth", weights_only=True)["args"]["fold"] is None


def results(out):
    """Return the bytes of every file but TensorBoard's, by path."""
    files = (path for path in out.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_ends_with_the_same_files(made, clip_folder, tmp_path):
    out = shutil.copytree(made / "out", tmp_path / "out")
    command = ["cross_validate", *finetune_clip(made, clip_folder, out, "--epochs", "2", "--lr", "1e-2")[1:]]
    log = tmp_path / "log"

    def forget():
        """Delete what follows the trainings."""
        for pattern in ("predictions*", "metrics*", "submi*", "label_errors.csv", "cross_validation.json"):
            for path in out.rglob(pattern):
                path.unlink()
        for name in ("vote", "soup"):
            shutil.rmtree(out / name, ignore_errors=True)

    forget()
    code, said = ended(start(command, log), log)
    assert code == 0, said
    interval = json.loads((out / "metrics.json").read_text())["accuracy_interval"]
    assert ("no better than guessing" in said) == (interval["low"] <= 25)
    whole = results(out)
    rng = random.Random(0)
    heads = ["fold-1: val", "out of fold", "vote of 2 folds", "soup of 2 folds", "soup: test"]
    forget()
    for head in heads:
        process = start(command, log)
        while head not in log.read_text() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    code, said = ended(start(command, log), log)
    assert code == 0, said
    assert results(out) == whole


@pytest.mark.slow
def test_the_soup_is_the_mean_of_the_folds_and_two_processes_make_the_same(scpc, tmp_path):
    prepare(scpc, tmp_path, "--train_tokenizer", "300")
    command = ["cross_validate", *finetune(tmp_path, tmp_path / "out", "--epochs", "1")[1:]]
    assert main(command) == 0
    one, two, soup = (
        torch.load(tmp_path / "out" / name / "checkpoint-best.pth", weights_only=True)["model"]
        for name in ("fold-0", "fold-1", "soup")
    )
    assert all(torch.equal(value, ((one[n].double() + two[n].double()) / 2).float()) for n, value in soup.items())
    # The folds' trainings have ended: what is left is shared by two processes.
    log = tmp_path / "log"
    before = read(tmp_path / "out" / "predictions.json"), read(tmp_path / "out" / "vote" / "predictions.json")
    shutil.rmtree(tmp_path / "out" / "vote")
    two_processes = ["-m", "beit3_vqa", *command, "--batch_size", "4"]
    code, said = ended(start(two_processes, log, *torchrun(2)), log)
    assert code == 0, said
    after = read(tmp_path / "out" / "predictions.json"), read(tmp_path / "out" / "vote" / "predictions.json")
    for ours, theirs in zip(before, after, strict=True):
        assert [(p.id, p.answer) for p in ours] == [(p.id, p.answer) for p in theirs]
        assert all(
            p.probabilities == pytest.approx(q.probabilities, abs=1e-5) for p, q in zip(ours, theirs, strict=True)
        )
