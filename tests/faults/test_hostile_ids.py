"""Ids, options and paths of a hostile data set on the whole pipeline: harmless on the terminal, exact in the files."""

import csv
import json

import pytest

from beit3_vqa.cli.main import main
from beit3_vqa.errors import CONTROL
from tests.helpers.commands import TINY

IDS = ["\x1b]0;owned\x07", "=HYPERLINK(1)", "a\nerror: forged", "\u202eevil", "b\rc", "\x9b2J"]


@pytest.fixture
def hostile(scpc, tmp_path):
    image = sorted(path.name for path in (scpc / "images").iterdir())[0]
    with (tmp_path / "test.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["ID", "img_path", "Question", *"ABCD", "\x1b[31m"])
        writer.writerows([name, image, f"What {name}?", "=1+1", "+2", "-3", "@4", ""] for name in IDS)
    command = ["prepare", "choices", "--train", str(scpc / "train.csv"), "--test", str(tmp_path / "test.csv")]
    command += ["--image_root", str(scpc / "images"), "--data_path", str(tmp_path / "data")]
    assert main([*command, "--sentencepiece_model", str(scpc / "data" / "tokenizer.spm")]) == 0
    return tmp_path


def test_hostile_ids_pass_through_preparation_and_evaluation_without_control_characters(trained, hostile, capsys):
    said = capsys.readouterr()
    assert not CONTROL.search(said.out)
    assert not any(line.startswith("error: forged") for line in said.out.splitlines())
    command = ["finetune", "--eval", "--resume", str(trained / "checkpoint-best.pth"), *TINY]
    assert main([*command, "--data_path", str(hostile / "data"), "--output_dir", str(hostile / "out")]) == 0
    said = capsys.readouterr()
    assert not CONTROL.search(said.out)
    assert "see formulas in 1 row;" in said.out
    with (hostile / "out" / "submission.csv").open(encoding="utf-8", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["ID", *IDS]
    text = (hostile / "out" / "predictions.json").read_text(encoding="utf-8")
    assert not CONTROL.search(text)
    assert [row["id"] for row in json.loads(text)] == IDS


def test_errors_about_hostile_rows_are_one_line_each(hostile, trained, capsys):
    index = hostile / "data" / "vqacustom.test.jsonl"
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    command = ["finetune", "--eval", "--resume", str(trained / "checkpoint-best.pth"), *TINY]
    command += ["--data_path", str(hostile / "data"), "--output_dir", str(hostile / "out")]
    for image_path in ("\x1b[2J.jpg", "../\u202e.jpg", "/etc/passwd"):
        index.write_text("".join(json.dumps({**row, "image_path": image_path}) + "\n" for row in rows))
        capsys.readouterr()
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.count("\nerror:") == 0
        assert said.startswith("error: ")
        assert not CONTROL.search(said)
    assert not (hostile / "out").exists()


def test_tensorboard_files_hold_no_text_of_the_data(trained):
    written = b"".join(path.read_bytes() for path in (trained / "tensorboard").iterdir())
    assert b"val/accuracy" in written
    for text in (b"astronaut", b"photograph", b"train_0", b".jpg"):
        assert text not in written
