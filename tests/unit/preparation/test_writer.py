import dataclasses
import json
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

from beit3_vqa.data.index import DatasetInfo
from beit3_vqa.data.rows import read_rows
from beit3_vqa.data.tokenizer import Tokenizer
from beit3_vqa.errors import InputError
from beit3_vqa.preparation import FORMATS, PrepareOptions, find_format, prepare, writer
from beit3_vqa.runtime import files
from tests.helpers.scpc import copy_photographs, csv_rows, write_csv


@pytest.fixture
def images(tmp_path):
    return copy_photographs(tmp_path / "images")


@pytest.fixture
def train(tmp_path):
    return str(write_csv(tmp_path / "train.csv", csv_rows(60)))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "new" / "out"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_formats_are_found_by_name_and_document_their_options():
    assert set(FORMATS) >= {"choices", "visual7w", "dacon_json", "easy_vqa"}
    for name in FORMATS:
        module = find_format(name)
        assert module.__doc__
        own = dataclasses.fields(module.Arguments)
        assert own
        assert all(field.metadata["help"] for field in own)
    with pytest.raises(InputError, match="Did you mean 'visual7w'"):
        find_format("visual7")


def test_unknown_and_missing_arguments_are_errors_that_name_them(images, out):
    with pytest.raises(InputError, match=r"no --trian\. Did you mean 'train'"):
        prepare("choices", {"trian": "x"}, PrepareOptions(out, images))
    with pytest.raises(InputError, match="needs --train"):
        prepare("choices", {"train": None}, PrepareOptions(out, images))
    with pytest.raises(InputError, match=r"^--mode x: must be one of open, choices\."):
        prepare("easy_vqa", {"mode": "x"}, PrepareOptions(out))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_ratio": 1.0}, "--val_ratio"),
        ({"val_ratio": float("nan")}, "--val_ratio"),
        ({"folds": 1}, "--folds"),
        ({"folds": -2}, "--folds"),
        ({"train_tokenizer": -1}, "--train_tokenizer"),
        ({"train_tokenizer": 9, "sentencepiece_model": "x"}, "give one of them"),
        ({"prompt_template": "{question} {e}"}, "--prompt_template"),
        ({"prompt_template": "{question}"}, "--prompt_template"),
        ({"prompt_template": "{"}, "--prompt_template"),
        ({"data_path": ""}, "--data_path is missing"),
    ],
)
def test_options_out_of_range_are_errors_that_name_them(options, message):
    with pytest.raises(InputError, match=message):
        PrepareOptions(**({"data_path": "out"} | options))


def test_the_validation_split_is_cut_by_image(train, images, out):
    prepare("choices", {"train": train}, PrepareOptions(out, images))
    train_rows, val_rows = (read_rows(out / f"vqacustom.{split}.jsonl") for split in ("train", "val"))
    assert (len(train_rows), len(val_rows)) == (45, 15)
    assert not {row["image_path"] for row in train_rows} & {row["image_path"] for row in val_rows}


def test_val_ratio_0_makes_no_validation_split(train, images, out):
    summary = prepare("choices", {"train": train}, PrepareOptions(out, images, val_ratio=0))
    assert summary.rows == {"train": 60}


def test_folds_keep_the_rows_of_an_image_together(train, images, out):
    summary = prepare("choices", {"train": train}, PrepareOptions(out, images, folds=4))
    rows = read_rows(out / "vqacustom.train.jsonl")
    assert summary.rows == {"train": 60}
    assert {row["fold"] for row in rows} == {0, 1, 2, 3}
    assert len({(row["image_path"], row["fold"]) for row in rows}) == 4


def test_more_folds_than_images_are_refused_and_nothing_is_written(train, images, out):
    with pytest.raises(InputError, match="can't make 5 folds"):
        prepare("choices", {"train": train}, PrepareOptions(out, images, folds=5))
    assert not out.parent.exists()


def test_a_tokenizer_is_trained_on_the_prompts(train, images, out):
    summary = prepare("choices", {"train": train}, PrepareOptions(out, images, train_tokenizer=60))
    tokenizer = Tokenizer(out / "tokenizer.spm")
    prompt = "What is this? Choices: A. a cat B. a cup C. a rocket D. a woman"
    assert tokenizer.unk_id not in tokenizer.encode(prompt)
    assert summary.prompts.longest == len(tokenizer.encode(prompt)) + 2
    assert summary.prompts.cut == 0
    assert f"longest {summary.prompts.longest} tokens (TRAIN_" in summary.text()
    again = prepare("choices", {"train": train}, PrepareOptions(out, images, sentencepiece_model=str(tokenizer.path)))
    assert again.prompts == summary.prompts


def test_prompts_that_are_too_long_are_counted(tmp_path, train, images, out):
    rows = csv_rows(8)
    rows[5][2] = "is it " * 100
    path = write_csv(tmp_path / "long.csv", rows)
    summary = prepare("choices", {"train": str(path)}, PrepareOptions(out, images, train_tokenizer=60))
    assert summary.prompts.cut == 1
    assert summary.prompts.longest_id == "TRAIN_005"


def test_words_are_counted_if_there_is_no_tokenizer(train, images, out):
    summary = prepare("choices", {"train": train}, PrepareOptions(out, images))
    assert "longest 16 words (TRAIN_" in summary.text()
    assert "a tokenizer is needed to count tokens" in summary.text()


def test_summary_fits_one_screen_and_its_numbers_are_in_dataset_json(train, images, out):
    summary = prepare("choices", {"train": train}, PrepareOptions(out, images))
    text = summary.text()
    assert "train 45  val 15" in text
    assert "A 15 (33.3%)" in text
    assert "4 distinct; smallest 451x300" in text
    assert "0 rows dropped" in text
    assert "vqacustom.train.jsonl, vqacustom.val.jsonl, answer2label.txt, dataset.json in" in text
    assert len(text.splitlines()) <= 24
    written = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    assert written["summary"] == summary.numbers()
    assert written["summary"]["images"] == 4


def test_a_check_writes_nothing(train, images, out):
    summary = prepare("choices", {"train": train}, PrepareOptions(out, images, check=True, train_tokenizer=60))
    assert not out.parent.exists()
    assert summary.rows == {"train": 45, "val": 15}
    assert "none: this was a check" in summary.text()


@pytest.mark.parametrize("check", [True, False])
def test_problems_of_every_kind_come_at_once_and_nothing_is_written(tmp_path, images, out, check):
    rows = csv_rows(6)
    rows[0][-1] = "E"
    rows[1][1] = "nowhere.jpg"
    rows[2][1] = "../secret.png"
    rows[3][1] = "half.jpg"
    rows[4][0] = "TRAIN_000"
    (images / "half.jpg").write_bytes((images / "rocket.jpg").read_bytes()[:3000])
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    path = write_csv(tmp_path / "train.csv", rows)
    options = PrepareOptions(out, images, check=check, sentencepiece_model=str(tmp_path / "beit3.spm"))
    with pytest.raises(InputError) as error:
        prepare("choices", {"train": str(path), "val": str(tmp_path / "trian.csv")}, options)
    text = str(error.value)
    for expected in (
        "prepare choices: 7 problems found",
        "train.csv:2: answer 'E'",
        "train.csv:3: image",
        "train.csv:4: image path '../secret.png' leaves the image root",
        "train.csv:5: image",
        "train.csv:6: the ID 'TRAIN_000' is at",
        "trian.csv. Did you mean 'train.csv'",
        "there is no tokenizer",
        "Nothing was written.",
    ):
        assert expected in text
    assert not out.parent.exists()


def test_every_row_of_a_missing_image_is_named(tmp_path, images, train, out):
    (images / "coffee.png").unlink()
    with pytest.raises(InputError) as error:
        prepare("choices", {"train": train}, PrepareOptions(out, images))
    assert "15 problems" in str(error.value)
    assert all(f"train.csv:{line}:" in str(error.value) for line in range(3, 62, 4))


def test_damage_behind_the_header_is_found_unless_verify_images_is_off(images, train, out):
    content = (images / "rocket.jpg").read_bytes()
    (images / "rocket.jpg").write_bytes(content[: len(content) // 2])
    prepare("choices", {"train": train}, PrepareOptions(out, images, verify_images=False))
    with pytest.raises(InputError, match="15 problems"):
        prepare("choices", {"train": train}, PrepareOptions(out, images))


def test_a_missing_image_folder_is_one_problem(tmp_path, images, train, out):
    with pytest.raises(InputError, match=r"1 problem found\n.*Did you mean 'images'"):
        prepare("choices", {"train": train}, PrepareOptions(out, tmp_path / "image"))
    with pytest.raises(InputError, match="--image_root is missing"):
        prepare("choices", {"train": train}, PrepareOptions(out))


def test_an_earlier_run_is_replaced_and_its_other_splits_removed(tmp_path, train, images, out):
    test = str(write_csv(tmp_path / "test.csv", csv_rows(3, "TEST")))
    prepare("choices", {"train": train, "test": test}, PrepareOptions(out, images))
    (out / "mine.txt").write_text("kept", encoding="utf-8")
    summary = prepare("choices", {"train": train}, PrepareOptions(out, images))
    assert names(out) == sorted([*summary.files, "mine.txt", "previous-1"])
    assert "vqacustom.test.jsonl of an earlier run removed" in summary.text()
    kept = ["check.html", "check.json", "dataset.json", "vqacustom.test.jsonl"]  # the others are the same
    assert names(out / "previous-1") == kept


def test_replaced_files_of_prepare_are_kept_in_previous_1(train, images, out, capsys):
    prepare("choices", {"train": train}, PrepareOptions(out, images))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    prepare("choices", {"train": train}, PrepareOptions(out, images))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    prepare("choices", {"train": train}, PrepareOptions(out, images, seed=5))
    assert f"kept in {out / 'previous-1'}" in capsys.readouterr().out
    kept = {path.name: path.read_bytes() for path in (out / "previous-1").iterdir()}
    indexes = {"vqacustom.train.jsonl", "vqacustom.val.jsonl"}
    assert set(kept) == {"check.html", "check.json", "dataset.json", *indexes}
    assert all(before[name] == content != (out / name).read_bytes() for name, content in kept.items())


@pytest.mark.parametrize(
    "name",
    ["answer2label.txt", "vqacustom.train.jsonl", "vqacustom.test.jsonl", "tokenizer.spm", "check.html", "check.json"],
)
@pytest.mark.parametrize("prepared_before", [True, False])
def test_files_that_prepare_did_not_write_are_never_replaced(train, images, out, name, prepared_before):
    out.mkdir(parents=True)
    if prepared_before:
        prepare("choices", {"train": train}, PrepareOptions(out, images, train_tokenizer=60))
    (out / name).write_text("a fork's", encoding="utf-8")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for check in (True, False):
        options = PrepareOptions(out, images, train_tokenizer=60, check=check)
        with pytest.raises(InputError, match=f"didn't write.*\n *{name}\n"):
            prepare("choices", {"train": train}, options)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_preparing_one_format_keeps_the_record_of_another_in_the_folder(train, images, out):
    prepare("choices", {"train": train}, PrepareOptions(out, images))
    info = DatasetInfo.read(out)
    DatasetInfo(out, "other", written={**info.written, "other.train.jsonl": "0"}).write(out)
    prepare("choices", {"train": train}, PrepareOptions(out, images, seed=5))
    assert DatasetInfo.read(out).written["other.train.jsonl"] == "0"


def test_a_folder_of_version_0_1_0_is_replaced_and_kept(train, images, out):
    prepare("choices", {"train": train}, PrepareOptions(out, images))
    info = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    del info["written"]
    (out / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    (out / "answer2label.txt").write_text("old", encoding="utf-8")
    prepare("choices", {"train": train}, PrepareOptions(out, images))
    assert (out / "previous-1" / "answer2label.txt").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_the_folder_as_it_was(monkeypatch, train, images, out, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(writer.AnswerTable, "write", fail)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
        prepare("choices", {"train": train}, PrepareOptions(out, images))
    assert not out.parent.exists()

    out.mkdir(parents=True)
    (out / "vqacustom.train.jsonl").write_text("old", encoding="utf-8")
    with pytest.raises((InputError, KeyboardInterrupt)):
        prepare("choices", {"train": train}, PrepareOptions(out, images))
    assert names(out) == ["vqacustom.train.jsonl"]
    assert (out / "vqacustom.train.jsonl").read_text(encoding="utf-8") == "old"


def test_a_folder_in_the_place_of_a_file_is_refused(train, images, out):
    (out / "dataset.json").mkdir(parents=True)
    with pytest.raises(InputError, match=r"dataset\.json must become a file"):
        prepare("choices", {"train": train}, PrepareOptions(out, images))
    assert names(out) == ["dataset.json"]


def test_a_data_path_that_is_a_file_is_refused(tmp_path, train, images):
    with pytest.raises(InputError, match="can't be written to"):
        prepare("choices", {"train": train}, PrepareOptions(train, images))
    assert names(tmp_path) == ["images", "train.csv"]


def test_a_tokenizer_too_small_for_the_text_is_refused_and_leaves_nothing(train, images, out):
    with pytest.raises(InputError, match="tokenizer"):
        prepare("choices", {"train": train}, PrepareOptions(out, images, train_tokenizer=5))
    assert not out.parent.exists()


def test_prepare_leaves_the_warnings_filter_unchanged(train, images, out):
    before = list(warnings.filters)
    for _ in range(3):
        prepare("choices", {"train": train}, PrepareOptions(out, images))
    assert list(warnings.filters) == before


def test_leftovers_of_a_killed_prepare_are_removed_by_the_next(train, images, out):
    code = "import os, signal, sys; from pathlib import Path; from beit3_vqa.runtime.files import staged\n"
    code += "with staged(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", code, str(out)], check=False).returncode == -signal.SIGKILL
    assert len(names(out)) == 1
    prepare("choices", {"train": train}, PrepareOptions(out, images))
    assert not [name for name in names(out) if name.startswith(".")]


def test_bad_images_are_kept_up_to_the_number_that_is_allowed_and_named(images, train, out):
    (images / "rocket.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"--skip_bad_images (\d+) keeps the rows") as caught:
        prepare("choices", {"train": str(train)}, PrepareOptions(out, images))
    number = int(str(caught.value).rsplit("--skip_bad_images ", 1)[1].split()[0])
    with pytest.raises(InputError):
        prepare("choices", {"train": str(train)}, PrepareOptions(out, images, skip_bad_images=number - 1))
    assert not out.exists()
    summary = prepare("choices", {"train": str(train)}, PrepareOptions(out, images, skip_bad_images=number))
    assert f"rows kept though their image can't be read: {number}: {train}:" in summary.text()
    whole = [line for line in Path(train).read_text(encoding="utf-8").splitlines() if line]
    assert sum(summary.rows.values()) == len(whole) - 1


def test_a_missing_image_folder_is_never_skipped(tmp_path, train, out):
    with pytest.raises(InputError) as caught:
        prepare("choices", {"train": str(train)}, PrepareOptions(out, tmp_path / "nowhere", skip_bad_images=10_000))
    assert "--skip_bad_images" not in str(caught.value)


def test_a_mistake_in_the_image_root_is_one_line_that_mends_it(images, train, out):
    for other in (images.parent, None):
        wrong = images / "empty"
        wrong.mkdir(exist_ok=True)
        root = other or wrong
        with pytest.raises(InputError) as caught:
            prepare("choices", {"train": str(train)}, PrepareOptions(out, root))
        lines = str(caught.value).splitlines()
        assert len(lines) == 3
        assert f"rows' images are in {images}: give --image_root {images}. The first: {train}:2" in lines[1]


def test_a_fault_that_many_rows_share_is_one_line_with_a_count_and_what_mends_it(tmp_path, images, out):
    rows = csv_rows(60)
    for row in rows[:30]:
        row[-1] = ""
    rows[40][-1] = "E"
    path = write_csv(tmp_path / "many.csv", rows)
    with pytest.raises(InputError) as caught:
        prepare("choices", {"train": str(path)}, PrepareOptions(out, images))
    title, shared, single, _ = str(caught.value).splitlines()
    assert "31 problems found" in title
    places = "; ".join(f"{path}:{line}: answer is empty" for line in (2, 3, 4))
    assert shared.strip() == f"30 like these (rows without an answer belong in --test): {places}; ..."
    assert "many.csv:42: answer 'E' is none of the options" in single


def test_images_elsewhere_are_one_line_and_the_others_stay_named(tmp_path, images, out):
    rows = csv_rows(6)
    rows[5][1] = "nowhere.jpg"
    path = write_csv(tmp_path / "t.csv", rows)
    (images / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        prepare("choices", {"train": str(path)}, PrepareOptions(out, images / "empty"))
    assert f"5 rows' images are in {images}: give --image_root {images}" in str(caught.value)
    assert "t.csv:7: image" in str(caught.value)


def test_a_folder_whose_files_were_being_replaced_is_refused_until_it_is_prepared_again(
    monkeypatch, train, images, out
):
    prepare("choices", {"train": train}, PrepareOptions(out, images))

    def killed(paths, folder):
        paths[0].replace(folder / paths[0].name)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "move_into", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare("choices", {"train": train}, PrepareOptions(out, images, seed=5))
    monkeypatch.undo()
    with pytest.raises(InputError, match="was ended while it replaced files here"):
        DatasetInfo.read(out)
    prepare("choices", {"train": train}, PrepareOptions(out, images, seed=5))
    assert DatasetInfo.read(out).seed == 5


def test_a_move_that_fails_before_any_file_has_moved_leaves_the_folder_as_it_was(monkeypatch, train, images, out):
    prepare("choices", {"train": train}, PrepareOptions(out, images))
    before = (out / "dataset.json").read_bytes()

    def refused(paths, folder):
        raise InputError("read-only")

    monkeypatch.setattr(files, "move_into", refused)
    with pytest.raises(InputError, match="read-only"):
        prepare("choices", {"train": train}, PrepareOptions(out, images, seed=5))
    assert (out / "dataset.json").read_bytes() == before


def test_the_answers_of_another_task_in_the_folder_are_never_replaced(train, images, out, tmp_path):
    prepare("choices", {"train": train}, PrepareOptions(out, images))
    info = DatasetInfo.read(out)
    (out / "vqacustom.train.jsonl").rename(out / "vqav2.train.jsonl")  # whose labels are numbers of the table
    (out / "vqacustom.val.jsonl").unlink()
    DatasetInfo(out, "vqav2", written={**info.written, "vqav2.train.jsonl": "0"}).write(out)
    before = (out / "answer2label.txt").read_bytes()
    image = sorted(Path(images).iterdir())[0].name
    rows = "".join(f"{image},Q{n}?,{'xyz'[n % 3]}\n" for n in range(9))
    (tmp_path / "own.csv").write_text("img,question,answer\n" + rows)
    with pytest.raises(InputError, match=r"holds vqav2\.train\.jsonl, whose answers are those of answer2label"):
        prepare("table", {"train": str(tmp_path / "own.csv")}, PrepareOptions(out, images, val_ratio=0))
    assert (out / "answer2label.txt").read_bytes() == before
