import random
import sys

import pytest

from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.index import DatasetInfo
from beit3_vqa.data.rows import read_rows
from beit3_vqa.errors import InputError
from beit3_vqa.preparation import PrepareOptions, prepare
from beit3_vqa.preparation.easy_vqa import SHAPES, YES_NO, make_choices

ANSWERS = ["circle", "green", "red", "gray", "yes", "teal", "black", "rectangle", "yellow", "triangle", "brown"]
ANSWERS += ["blue", "no"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The real package in both modes, headers of its 5,000 images read once for each."""
    made = {}
    for mode in ("open", "choices"):
        made[mode] = tmp_path_factory.mktemp(mode)
        prepare("easy_vqa", {"mode": mode}, PrepareOptions(made[mode], verify_images=False))
    return made


def rows_of(folders, mode, split):
    return read_rows(folders[mode] / f"vqacustom.{split}.jsonl")


def test_every_question_of_the_package_is_prepared(folders):
    info = DatasetInfo.read(folders["open"])
    assert info.splits["test"] == 9_673
    assert info.splits["train"] + info.splits["val"] == 38_575
    assert info.summary["images"] == 5_000
    assert (info.image_root / rows_of(folders, "open", "test")[0]["image_path"]).is_file()
    assert AnswerTable.read(folders["open"] / "answer2label.txt").answers == tuple(ANSWERS)
    assert AnswerTable.read(folders["choices"] / "answer2label.txt").answers == ("A", "B", "C", "D")


def test_no_image_is_in_two_splits_and_both_modes_split_alike(folders):
    images = {}
    for split in ("train", "val", "test"):
        open_rows, choice_rows = (rows_of(folders, mode, split) for mode in ("open", "choices"))
        images[split] = {row["image_path"] for row in open_rows}
        assert [row["id"] for row in open_rows] == [row["id"] for row in choice_rows]
        for open_row, row in zip(open_rows, choice_rows, strict=True):
            assert row["choices"]["ABCD".index(row["answer"])] == open_row["answer"]
            assert len(set(row["choices"])) == 4
    assert not images["train"] & images["val"]
    assert len(images["train"] | images["val"]) == 4_000
    assert len(images["test"]) == 1_000


@pytest.mark.parametrize("answer", ANSWERS)
def test_wrong_options_are_of_the_answers_kind_first(answer):
    colours = set(ANSWERS) - SHAPES - YES_NO
    kind = next(kind for kind in (SHAPES, YES_NO, colours) if answer in kind)
    choices = make_choices(answer, ANSWERS, random.Random(0))
    assert len(set(choices)) == 4
    assert answer in choices
    assert len(kind & set(choices)) == min(len(kind), 4)


def test_the_answers_place_is_random_but_repeatable():
    places = [make_choices("red", ANSWERS, random.Random(seed)).index("red") for seed in range(200)]
    assert all(30 < places.count(place) < 70 for place in range(4))
    assert make_choices("red", ANSWERS, random.Random("41/x")) == make_choices("red", ANSWERS, random.Random("41/x"))


def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(InputError, match=r'pip install "beit3_vqa\[demo\]"'):
        prepare("easy_vqa", {}, PrepareOptions(tmp_path / "out"))


def test_an_image_root_is_refused(tmp_path):
    with pytest.raises(InputError, match="leave --image_root out"):
        prepare("easy_vqa", {}, PrepareOptions(tmp_path / "out", tmp_path))


def test_train_images_limits_the_training_images(tmp_path):
    options = PrepareOptions(str(tmp_path / "data"), verify_images=False)
    summary = prepare("easy_vqa", {"train_images": 40}, options)
    assert summary.rows["train"] + summary.rows["val"] < 500
    assert summary.rows["test"] == 9673
    rows = read_rows(tmp_path / "data" / "vqacustom.train.jsonl") + read_rows(tmp_path / "data" / "vqacustom.val.jsonl")
    assert len({row["image_path"] for row in rows}) == 40
    with pytest.raises(InputError, match="--train_images -1"):
        prepare("easy_vqa", {"train_images": -1}, options)
