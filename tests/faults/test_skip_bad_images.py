"""--skip_bad_images from the command line: training goes on, evaluation answers every row, one too many ends both."""

import csv
import json
import shutil

import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from beit3_vqa.cli.main import main
from beit3_vqa.data.transforms import EvalTransform
from tests.helpers.commands import finetune
from tests.helpers.processes import ended, start, torchrun


@pytest.fixture
def damaged(scpc, tmp_path):
    """The photographs: of the training ones two are damaged and one is gone, of the test ones one is damaged."""
    folder = tmp_path / "images"
    shutil.copytree(scpc / "images", folder)
    rows = [json.loads(line) for line in (scpc / "data" / "vqacustom.train.jsonl").read_text().splitlines()]
    names = sorted({row["image_path"] for row in rows})[:3]
    (folder / names[0]).write_bytes((folder / names[0]).read_bytes()[:600])
    (folder / names[1]).write_bytes(b"<html>404</html>")
    (folder / names[2]).unlink()
    with (scpc / "test.csv").open() as file:
        test_image = next(csv.DictReader(file))["img_path"]
    (folder / test_image).write_bytes(b"")
    return folder


def asked(scpc):
    """The rows of the test file."""
    with (scpc / "test.csv").open() as file:
        return list(csv.DictReader(file))


def image_names(scpc):
    """The images of the test rows, each once, in their order."""
    return list(dict.fromkeys(row["img_path"] for row in asked(scpc)))


def evaluation(scpc, trained, images, out):
    """A command line that evaluates on the test rows."""
    command = ["finetune", "--eval", "--resume", str(trained / "checkpoint-best.pth"), "--device", "cpu"]
    return [*command, "--data_path", str(scpc / "data"), "--image_root", str(images), "--output_dir", str(out)]


def test_training_skips_bad_images_the_same_with_any_number_of_workers(scpc, damaged, tmp_path, capsys):
    weights = []
    for workers in ("0", "2"):
        out = tmp_path / f"out{workers}"
        command = finetune(scpc, out, "--image_root", str(damaged), "--epochs", "1", "--skip_bad_images", "3")
        assert main([*command, "--num_workers", workers]) == 0
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("bad image")]
        assert len(said) == 3
        assert "doesn't exist" in said[0]  # known before the first batch
        weights.append(torch.load(out / "checkpoint-0.pth")["model"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_one_bad_image_too_many_ends_training_and_saves_the_steps_before(scpc, damaged, tmp_path, capsys):
    command = finetune(scpc, tmp_path / "out", "--image_root", str(damaged), "--epochs", "1")
    assert main([*command, "--skip_bad_images", "2"]) == 2
    captured = capsys.readouterr()
    assert captured.out.count("bad image") == 2
    assert captured.err.count("error:") == 1
    assert "one more bad image than --skip_bad_images 2 allows" in captured.err
    assert [path.name for path in (tmp_path / "out").glob("*.pth")] == ["checkpoint-0-step1.pth"]
    assert main(command) == 2  # without the option the missing one is found before anything is written
    assert "images that aren't there" in capsys.readouterr().err


def test_evaluation_flags_the_row_of_a_bad_image_and_keeps_its_place(scpc, trained, damaged, tmp_path, capsys):
    evaluate = ["finetune", "--eval", "--resume", str(trained / "checkpoint-best.pth"), "--device", "cpu"]
    evaluate += ["--data_path", str(scpc / "data"), "--image_root", str(damaged), "--output_dir", str(tmp_path / "out")]
    assert main(evaluate) == 2
    assert "is empty (0 bytes)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*evaluate, "--skip_bad_images", "1"]) == 0
    said = capsys.readouterr().out
    assert said.count("bad image 1 of 1 allowed: row test_000: image") == 1
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    flagged = [row["id"] for row in rows if "problem" in row]
    with (scpc / "test.csv").open() as file:
        asked = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [row["ID"] for row in asked]
    assert flagged == [row["ID"] for row in asked if row["img_path"] == asked[0]["img_path"]]
    assert "is empty (0 bytes)" in rows[0]["problem"]
    with (tmp_path / "out" / "submission.csv").open() as file:
        handed_in = list(csv.DictReader(file))
    assert [row["ID"] for row in handed_in] == [row["ID"] for row in asked]
    assert all(row["answer"] in "ABCD" for row in handed_in)
    # The others are answered as with every image there.
    assert main([*evaluate, "--image_root", str(scpc / "images"), "--output_dir", str(tmp_path / "whole")]) == 0
    whole = json.loads((tmp_path / "whole" / "predictions.json").read_text())
    for row, expected in zip(rows, whole, strict=True):
        if row["id"] not in flagged:
            assert row["answer"] == expected["answer"]
            assert row["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


def test_an_image_that_needs_too_much_memory_is_a_bad_one(scpc, trained, tmp_path, monkeypatch, capsys):
    """What is made of it doesn't fit, here or in a worker."""
    first = image_names(scpc)[0]
    with Image.open(scpc / "images" / first) as image:
        large = image.size
    transform = EvalTransform.__call__

    def limited(self, image):
        if image.size == large:
            raise MemoryError
        return transform(self, image)

    monkeypatch.setattr(EvalTransform, "__call__", limited)
    command = [*evaluation(scpc, trained, scpc / "images", tmp_path / "out"), "--skip_bad_images", "1"]
    for workers in ("0", "2"):
        assert main([*command, "--num_workers", workers]) == 0
        assert f"{first}' needs more memory than there is: scale it down" in capsys.readouterr().out
        rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
        flagged = [row["id"] for row in rows if "problem" in row]
        assert flagged == [row["ID"] for row in asked(scpc) if row["img_path"] == first]


def test_an_image_whose_pixels_do_not_fit_into_memory_is_one_error(scpc, trained, tmp_path, monkeypatch, capsys):
    def load(self):
        raise MemoryError

    monkeypatch.setattr(JpegImageFile, "load", load)
    assert main(evaluation(scpc, trained, scpc / "images", tmp_path / "out")) == 2
    assert "needs more memory than there is: scale it down" in capsys.readouterr().err


def test_an_image_with_too_long_a_name_is_a_bad_one(scpc, trained, tmp_path, capsys):
    """255 bytes are what a file system takes, and a Korean syllable is three."""
    name = "가" * 100 + ".jpg"
    shutil.copytree(scpc / "data", tmp_path / "data")
    file = tmp_path / "data" / "vqacustom.test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1]["image_path"] = name
    file.write_text("\n".join(map(json.dumps, rows)))
    command = evaluation(scpc, trained, scpc / "images", tmp_path / "out")
    command[command.index("--data_path") + 1] = str(tmp_path / "data")
    assert main(command) == 2
    assert f"images that aren't there:\n  row {rows[1]['id']}: " in capsys.readouterr().err
    assert main([*command, "--skip_bad_images", "1"]) == 0
    answered = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [row["id"] for row in answered if "problem" in row] == [rows[1]["id"]]
    # Nor do they keep a report from being written, or the name of a checkpoint in it.
    report = ["report", str(tmp_path / "out"), "--output", str(tmp_path / "report.html"), "--device", "cpu"]
    assert main(report) == 0
    assert "1 of " in capsys.readouterr().out
    info = tmp_path / "out" / "predictions.info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "checkpoint": name}))
    assert main(report) == 0
    assert f"{name}: no such file" in capsys.readouterr().out


def spoil(scpc, folder):
    """Copy the images, every second of the test rows' spoilt; return the ids of its rows, and how many images it is."""
    shutil.copytree(scpc / "images", folder)
    bad = image_names(scpc)[::2]
    for number, name in enumerate(bad):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes((b"", content[:500], b"<html>404</html>")[number % 3])
    return [row["ID"] for row in asked(scpc) if row["img_path"] in bad], len(bad)


def check_order(scpc, out, bad_rows):
    """Every row is answered in its place, in both files, and the bad ones are flagged."""
    ids = [row["ID"] for row in asked(scpc)]
    rows = json.loads((out / "predictions.json").read_text())
    assert [row["id"] for row in rows] == ids
    assert [row["id"] for row in rows if "problem" in row] == bad_rows
    assert all(f"row {row['id']}: image" in row["problem"] for row in rows if "problem" in row)
    with (out / "submission.csv").open() as file:
        assert [(row["ID"], row["answer"]) for row in csv.DictReader(file)] == [(r["id"], r["answer"]) for r in rows]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_rows_keep_their_order_with_bad_images_and_workers(scpc, trained, tmp_path, workers):
    bad_rows, bad = spoil(scpc, tmp_path / "images")
    assert 3 < len(bad_rows) < len(asked(scpc))
    command = evaluation(scpc, trained, tmp_path / "images", tmp_path / "out")
    command += ["--skip_bad_images", str(bad), "--num_workers", workers, "--eval_batch_size", "2"]
    assert main(command) == 0
    check_order(scpc, tmp_path / "out", bad_rows)


@pytest.mark.slow
def test_rows_keep_their_order_with_bad_images_in_two_processes(scpc, trained, tmp_path):
    bad_rows, bad = spoil(scpc, tmp_path / "images")
    command = evaluation(scpc, trained, tmp_path / "images", tmp_path / "out")
    command += ["--skip_bad_images", str(bad), "--num_workers", "2", "--eval_batch_size", "2"]
    log = tmp_path / "log"
    code, said = ended(start(["run_beit3_finetuning.py", *command[1:]], log, *torchrun(2)), log)
    assert code == 0, said
    check_order(scpc, tmp_path / "out", bad_rows)


@pytest.mark.slow
@pytest.mark.parametrize(("allowed", "code"), [(3, 0), (2, 2)])
def test_two_processes_count_bad_images_together(scpc, damaged, tmp_path, allowed, code):
    """Each meets a part of the bad images; together they name each once, and may pass over no more."""
    missing = next(name for name in sorted((scpc / "images").iterdir()) if not (damaged / name.name).exists())
    (damaged / missing.name).write_bytes(b"no image")  # a missing one is found before the processes part
    command = finetune(scpc, tmp_path / "out", "--image_root", str(damaged), "--epochs", "1", "--batch_size", "4")
    command += ["--skip_bad_images", str(allowed), "--no_shuffle_choices"]
    log = tmp_path / "log"
    ended_with, said = ended(start(["run_beit3_finetuning.py", *command[1:]], log, *torchrun(2)), log)
    assert bool(ended_with) == bool(code)
    if code:
        assert "--skip_bad_images 2 allows" in said
        # As in one process: what was trained before is saved, and no epoch counts as done.
        assert all("-step" in path.name for path in (tmp_path / "out").glob("*.pth"))
        assert "the same command goes on from there" in said
    else:
        named = [line for line in said.splitlines() if line.startswith("bad image")]
        assert [line.split(" of ")[0] for line in named] == [f"bad image {n}" for n in (1, 2, 3)]
