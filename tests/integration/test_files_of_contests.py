"""Files as contests and spreadsheets have them, by the commands that their owners type."""

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from beit3_vqa.cli.main import main
from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.rows import read_rows

HEADER = "ID,img_path,Question,A,B,C,D,answer"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture("images/0.png", "images/1.png")
    return tmp_path


def picture(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(name)


def rows(split):
    return list(read_rows(Path(f"data/vqacustom.{split}.jsonl")))


def prepare(command):
    return main(["prepare", *command.split(), "--data_path", "data"])


def test_a_fifth_option_in_one_file_and_an_empty_fourth_in_another(folder, capsys):
    (folder / "train.csv").write_text(f"{HEADER}\nT0,0.png,What?,a,b,c,d,A\nT1,1.png,What?,a,b,c,d,B\n")
    (folder / "test.csv").write_text("ID,img_path,Question,A,B,C,D,E\nU0,0.png,What?,a,b,c,d,e\n")
    assert prepare("choices --train train.csv --test test.csv --image_root images --val_ratio 0") == 0
    assert rows("test")[0]["choices"] == list("abcde")
    assert AnswerTable.read(folder / "data" / "answer2label.txt").answers == tuple("ABCDE")
    assert "2 rows with fewer than 5 options" in capsys.readouterr().out

    (folder / "three.csv").write_text(f"{HEADER}\nT0,0.png,What?,a,b,c,,A\nT1,1.png,What?,a,b,c,d,B\n")
    assert prepare("choices --train three.csv --image_root images --val_ratio 0") == 0
    assert [row["choices"] for row in rows("train")] == [list("abc"), list("abcd")]
    assert '1 row with fewer than 4 options; train with --prompt_template "{question} Choices: {options}"' in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("first", ["", "sep=,\n"])
def test_rows_of_commas_are_passed_over_and_sep_is_read(folder, capsys, first):
    commas = "" if first else ",,,,,,,\n"
    text = f"{first}{HEADER}\nT0,0.png,What?,a,b,c,d,A\n{commas}T1,1.png,What?,a,b,c,d,B\n{commas}"
    (folder / "train.csv").write_text(text)
    assert prepare("choices --train train.csv --image_root images --val_ratio 0") == 0
    assert [row["id"] for row in rows("train")] == ["T0", "T1"]
    assert ("train.csv: 2 blank rows passed over" in capsys.readouterr().out) == bool(commas)


def test_answers_with_rows_of_commas_are_scored(folder, capsys):
    predictions = [{"id": f"문제{n}", "question": "?", "answer": "A", "probabilities": {"A": 1.0}} for n in range(2)]
    (folder / "pred.json").write_text(json.dumps(predictions), encoding="utf-8")
    (folder / "ans.csv").write_text("ID,answer\n문제0,A\n,\n문제1,B\n,\n , \n", encoding="utf-8")
    assert main(["score", "pred.json", "--answers", "ans.csv"]) == 0
    assert "50.0" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_the_other_unicode_form_are_found_and_counted(folder, capsys, form):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    files = [unicodedata.normalize(form, f"사진{n}") for n in range(2)]
    picture(*(f"images/{name}.png" for name in files))
    written = [unicodedata.normalize(other, name) for name in files]
    lines = [f"T{n},{name}.png,What?,a,b,c,d,A" for n, name in enumerate(written)]
    (folder / "train.csv").write_text("\n".join([HEADER, *lines]), encoding="utf-8")
    assert prepare("choices --train train.csv --image_root images --val_ratio 0") == 0
    assert [row["image_path"] for row in rows("train")] == [f"{name}.png" for name in files]
    assert "images found though their names differ: 2 another case or Unicode form" in capsys.readouterr().out

    items = [{"image_id": name, "question": "?", "answer": "a", "question_id": n} for n, name in enumerate(written)]
    (folder / "train.json").write_text(json.dumps(items), encoding="utf-8")
    assert prepare("dacon_json --train train.json --image_root images --val_ratio 0") == 0
    assert [row["image_path"] for row in rows("train")] == [f"{name}.png" for name in files]


@pytest.mark.parametrize("format_name", ["table", "dacon_json"])
def test_open_ended_csv_of_dacon_keeps_its_ids(folder, format_name):
    picture(*(f"image/train/train_00{n}.jpg" for n in range(4)), "image/test/test_000.jpg", "image/train/test_001.jpg")
    lines = [f"TRAIN_00{n},train_00{n},What color?,{answer}" for n, answer in enumerate(["red", "blue", "red", "red"])]
    (folder / "train.csv").write_text("\n".join(["ID,image_id,question,answer", *lines]))
    (folder / "test.csv").write_text("ID,image_id,question\nTEST_000,test_000,What color?\n")
    command = f"{format_name} --train train.csv --test test.csv --image_root image --val_ratio 0"
    assert prepare(command) == 0
    assert rows("test") == [{"id": "TEST_000", "image_path": "test/test_000.jpg", "question": "What color?"}]
    first = {"id": "TRAIN_000", "image_path": "train/train_000.jpg", "question": "What color?", "answer": "red"}
    assert rows("train")[0] == first
    assert AnswerTable.read(folder / "data" / "answer2label.txt").answers == ("red", "blue")
    # A test image is never taken from train.
    (folder / "test.csv").write_text("ID,image_id,question\nTEST_001,test_001,What color?\n")
    assert prepare(command) == 2


def test_one_bad_image_of_visual7w_names_the_option_that_keeps_its_row(folder, capsys):
    pair = {"question": "What?", "answer": "a", "multiple_choices": ["b", "c", "d"]}
    images = [
        {"image_id": n, "filename": f"v7w_{n}.jpg", "split": "train", "qa_pairs": [pair | {"qa_id": n}]}
        for n in range(3)
    ]
    (folder / "v7w.json").write_text(json.dumps({"images": images}))
    picture("images/v7w_0.jpg", "images/v7w_2.jpg")
    command = "visual7w --json v7w.json --image_root images --train_tokenizer 40 --val_ratio 0"
    assert prepare(command) == 2
    assert "--skip_bad_images 1 keeps the rows" in capsys.readouterr().err
    assert prepare(f"{command} --skip_bad_images 1") == 0
    assert len(rows("train")) == 3
    assert "rows kept though their image can't be read: 1: v7w.json: image 2 (1)" in capsys.readouterr().out


@pytest.mark.parametrize("format_name", ["choices", "dacon_json", "table"])
def test_every_format_of_questions_takes_what_the_others_take(folder, format_name):
    items = [{"qid": 7, "file": "0", "q": "What?", "opts": ["x", "y"], "gt": 1}]
    items += [{"qid": 8, "file": "1", "q": "What?", "opts": ["x", "y", "z"], "gt": 3}]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, items)))
    columns = "--columns id=qid,image=file,question=q,options=opts,answer=gt --answer_from 1"
    assert prepare(f"{format_name} --train train.jsonl --image_root images --val_ratio 0 {columns}") == 0
    assert rows("train") == [
        {"id": "7", "image_path": "0.png", "question": "What?", "choices": ["x", "y"], "answer": "A"},
        {"id": "8", "image_path": "1.png", "question": "What?", "choices": ["x", "y", "z"], "answer": "C"},
    ]
    assert f'"format": "{format_name}"' in (folder / "data" / "dataset.json").read_text()
