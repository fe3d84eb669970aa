"""Every fold in turn: stopped, gone on with, summed up; for either family."""

import json
import shlex
import statistics

import pytest

from beit3_vqa.apps.cross_validation import summarise, table
from beit3_vqa.cli.main import main
from beit3_vqa.errors import InputError
from tests.helpers.captioned import write_captioned
from tests.helpers.commands import finetune, finetune_clip, train_on


@pytest.fixture(scope="module")
def folds(scpc, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    prepare = ["prepare", "choices", "--train", str(scpc / "train.csv"), "--image_root", str(scpc / "images")]
    assert main([*prepare, "--data_path", str(folder / "data"), "--folds", "3", "--train_tokenizer", "300"]) == 0
    return folder


@pytest.fixture(params=[pytest.param(family, marks=pytest.mark.slow) for family in ("BEiT-3", "CLIP")])
def command(request, folds, clip_folder, tmp_path):
    made = (
        finetune(folds, tmp_path / "out")
        if request.param == "BEiT-3"
        else finetune_clip(folds, clip_folder, tmp_path / "out")
    )
    return ["cross_validate", *made[1:]]


def test_cross_validation_goes_on_at_the_fold_where_it_stopped(command, folds, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*command, "--epochs", "2", "--stop_after_epochs", "1"]) == 0
    assert "not all epochs are done in folds 0, 1, 2" in capsys.readouterr().out
    assert not (out / "cross_validation.json").exists()
    assert main([*command, "--epochs", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("1 epoch done, 1 to go") == 3
    results = json.loads((out / "cross_validation.json").read_text())
    rows = [json.loads(line) for line in (folds / "data" / "vqacustom.train.jsonl").read_text().splitlines()]
    last = []
    for fold in range(3):
        lines = [json.loads(line) for line in (out / f"fold-{fold}" / "log.txt").read_text().splitlines()]
        assert {line["val_questions"] for line in lines} == {sum(row["fold"] == fold for row in rows)}
        assert results["folds"][str(fold)] == [line["val_accuracy"] for line in lines]
        last.append(lines[-1]["val_accuracy"])
    assert results["epochs"][1] == pytest.approx({"mean": statistics.mean(last), "deviation": statistics.stdev(last)})
    assert f"{statistics.mean(last):6.2f} +- {statistics.stdev(last):.2f}" in said
    assert said.count("Next: ") == 1  # not once for each fold
    (told,) = [line for line in said.splitlines() if line.startswith("trained. Next: beit3-vqa report")]
    assert main(shlex.split(told.removeprefix("trained. Next: beit3-vqa "))) == 0
    assert (out / "report.html").exists()
    assert not (out / "vote").exists()  # this data has no test split
    before = (out / "fold-1" / "checkpoint-1.pth").stat().st_mtime_ns
    assert main([*command, "--epochs", "2"]) == 0
    assert capsys.readouterr().out.count("all 2 epochs are done") == 3
    assert (out / "fold-1" / "checkpoint-1.pth").stat().st_mtime_ns == before


@pytest.mark.slow
def test_with_a_test_split_the_vote_is_that_of_an_ensemble_of_the_folds(scpc, tmp_path):
    prepare = ["prepare", "choices", "--train", str(scpc / "train.csv"), "--test", str(scpc / "test.csv")]
    prepare += ["--image_root", str(scpc / "images"), "--data_path", str(tmp_path / "data"), "--folds", "2"]
    assert main([*prepare, "--train_tokenizer", "300"]) == 0
    out = tmp_path / "out"
    assert main(["cross_validate", *finetune(tmp_path, out, "--epochs", "1")[1:]]) == 0
    command = ["ensemble", str(out / "fold-0"), str(out / "fold-1"), "--data_path", str(tmp_path / "data")]
    submission = out / "ensemble" / "submission.csv"
    assert main([*command, "--output", str(submission), "--device", "cpu", "--precision", "fp32"]) == 0
    assert submission.read_text(encoding="utf-8").startswith("ID,answer")
    assert submission.read_bytes() == (out / "vote" / "submission.csv").read_bytes()


@pytest.mark.slow
def test_without_an_answer_for_each_row_the_next_command_evaluates_a_fold(tmp_path, capsys):
    source = write_captioned(tmp_path / "images", train=8, val=4, test=4)
    prepare = ["prepare", "flickr30k", "--json", str(source / "dataset_flickr30k.json"), "--image_root", str(source)]
    assert main([*prepare, "--data_path", str(tmp_path / "data"), "--folds", "2", "--train_tokenizer", "60"]) == 0
    out = tmp_path / "out"
    assert main(["cross_validate", *train_on(tmp_path / "data", "flickr30k", out, "--epochs", "1")[1:]]) == 0
    (told,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trained. Next: ")]
    assert f"{out}/fold-0/checkpoint-best.pth" in told
    assert main([*shlex.split(told.removeprefix("trained. Next: beit3-vqa ")), "--device", "cpu"]) == 0
    assert not (out / "predictions.json").exists()


def test_cross_validation_refuses_options_of_a_single_run(scpc, folds, tmp_path, capsys):
    command = ["cross_validate", *finetune(folds, tmp_path / "out")[1:]]
    for flags in (["--fold", "0"], ["--resume", "x.pth"], ["--eval"]):
        assert main([*command, *flags]) == 2
        assert f"{flags[0]}: belongs to one run" in capsys.readouterr().err
    assert main(["cross_validate", *finetune(scpc, tmp_path / "out")[1:]]) == 2
    assert "has no folds; prepare the data with --folds K" in capsys.readouterr().err
    assert main(["cross_validate", "--data_path", str(folds / "data")]) == 2
    assert "--output_dir" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_dry_run_of_cross_validation_tries_one_fold(folds, tmp_path, capsys):
    assert main(["cross_validate", *finetune(folds, tmp_path / "out")[1:], "--dry_run"]) == 0
    assert "the other folds take about as long" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_summary_of_folds_equals_one_computed_by_hand():
    made = summarise({0: [50.0, 70.0], 1: [60.0, 50.0]}, "accuracy")
    assert [moments["mean"] for moments in made["epochs"]] == [55.0, 60.0]
    assert made["epochs"][1]["deviation"] == pytest.approx(200**0.5)
    assert made["best"] == pytest.approx({"mean": 65.0, "deviation": 50**0.5})
    assert "fold   0: best  70.00 after epoch 1" in table(made)


def test_a_fold_that_was_never_validated_is_one_error():
    with pytest.raises(InputError, match="no epoch of fold 1 was validated"):
        summarise({0: [50.0], 1: []}, "accuracy")
