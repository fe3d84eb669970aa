import json

import pytest
from PIL import Image

from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.rows import read_rows
from beit3_vqa.errors import InputError
from beit3_vqa.preparation import PrepareOptions, prepare


def item(number, answer="yes", image=None):
    entry = {"image_id": image or f"img_{number}", "question": "is it?", "question_id": f"q{number}"}
    return entry if answer is None else entry | {"answer": answer}


@pytest.fixture
def folder(tmp_path):
    for name in (
        "train/img_0.jpg",
        "train/img_1.PNG",
        "img_2.jpeg",
        "train/img_3.jpg",
        "test/img_0.jpg",
        "img_9.b.png",
    ):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return tmp_path


def run(folder, options=None, **items):
    values = {name: value for name, value in items.items() if name == "min_count"}
    for split in ("train", "val", "test"):
        if split in items:
            path = folder / f"{split}.json"
            path.write_text(json.dumps(items[split]), encoding="utf-8")
            values[split] = str(path)
    return prepare("dacon_json", values, PrepareOptions(folder / "out", folder / "images", **(options or {})))


def rows_of(folder, split):
    return read_rows(folder / "out" / f"vqacustom.{split}.jsonl")


NFC, NFD = "\uac15\uc544\uc9c0", "\u1100\u1161\u11bc\u110b\u1161\u110c\u1175"


def test_an_answer_in_several_unicode_forms_is_one_class_in_the_usual_one(folder):
    """Of forms that are level; where one is commoner, a submission is compared with that one."""
    spellings = [NFD, NFC, f"{NFC}\u200b", "\uff11\uff12"]
    run(folder, {"val_ratio": 0}, train=[item(number, answer) for number, answer in enumerate(spellings)])
    assert AnswerTable.read(folder / "out" / "answer2label.txt").answers == (NFC, "\uff11\uff12")
    run(folder, {"val_ratio": 0}, train=[item(number, answer) for number, answer in enumerate([NFD, NFD, NFC, "12"])])
    assert AnswerTable.read(folder / "out" / "answer2label.txt").answers == (NFD, "12")
    assert [row["answer"] for row in rows_of(folder, "train")] == [NFD, NFD, NFC, "12"]


def test_an_image_folder_may_be_a_link(folder):
    (folder / "images" / "train").rename(folder / "elsewhere")
    (folder / "images" / "train").symlink_to(folder / "elsewhere")
    run(folder, {"val_ratio": 0}, train=[item(0), item(1)])
    assert [row["image_path"] for row in rows_of(folder, "train")] == ["train/img_0.jpg", "train/img_1.PNG"]
    with pytest.raises(InputError, match=r"'train/\.\./\.\./elsewhere/img_0\.jpg' leaves the image root"):
        run(folder, {"val_ratio": 0}, train=[item(0, image="train/../../elsewhere/img_0.jpg")])


def test_an_invisible_answer_is_refused(folder):
    with pytest.raises(InputError, match=r"train\.json: item 2: answer is empty"):
        run(folder, train=[item(0, "yes"), item(1, "\u200b")])


def test_ids_that_look_alike_are_shown_with_escapes(folder):
    rows = [item(0) | {"question_id": NFC}, item(1) | {"question_id": NFD}]
    with pytest.raises(InputError, match=r"item 2: the ID '\\u1100.* looks like '\\uac15\\uc544\\uc9c0' at .*item 1"):
        run(folder, train=rows)


def test_rows_and_label_table_follow_from_the_json(folder):
    train = [item(0, "Yes"), item(1, "yes!"), item(2, "No"), item(3, "two")]
    summary = run(
        folder, train=train, val=[item(5, "2", image="img_3")], test=[item(0, None), item(1, "", image="img_0")]
    )
    assert AnswerTable.read(folder / "out" / "answer2label.txt").answers == (
        "2",
        "Yes",
        "No",
    )  # as they are most often spelt
    assert summary.rows == {"train": 4, "val": 1, "test": 2}
    assert rows_of(folder, "train")[0] == {
        "id": "q0",
        "image_path": "train/img_0.jpg",
        "question": "is it?",
        "answer": "Yes",
    }
    assert "choices" not in rows_of(folder, "train")[0]
    assert all("answer" not in row for row in rows_of(folder, "test"))


def test_images_are_found_in_their_folder_or_the_root_with_any_extension(folder):
    train = [item(0), item(1), item(2), item(3, image="img_9.b"), item(4, image="img_3.jpg")]
    run(folder, {"val_ratio": 0}, train=train, val=[item(7, image="img_0")], test=[item(0, image="img_0")])
    assert [row["image_path"] for row in rows_of(folder, "train")] == [
        "train/img_0.jpg",
        "train/img_1.PNG",
        "img_2.jpeg",
        "img_9.b.png",
        "train/img_3.jpg",
    ]
    assert rows_of(folder, "val")[0]["image_path"] == "train/img_0.jpg"
    assert rows_of(folder, "test")[0]["image_path"] == "test/img_0.jpg"


def test_the_folder_of_the_split_comes_before_the_root_and_jpg_before_png(folder):
    for name in ("img_3.jpg", "train/img_0.png", "train/img_0.jpeg"):
        Image.new("RGB", (8, 8)).save(folder / "images" / name)
    run(folder, {"val_ratio": 0}, train=[item(3), item(0), item(7, image="img_3.jpg")])
    paths = [row["image_path"] for row in rows_of(folder, "train")]
    assert paths == ["train/img_3.jpg", "train/img_0.jpg", "train/img_3.jpg"]


def test_a_test_image_is_not_taken_from_train(folder):
    with pytest.raises(InputError, match=r"test\.json: item 1: image .*img_1' doesn't exist"):
        run(folder, train=[item(0), item(1)], test=[item(1)])


def test_rows_with_a_rare_answer_stay_in_the_index(folder):
    train = [item(0, "yes"), item(1, "yes"), item(2, "rare"), item(3, "yes")]
    summary = run(folder, train=train, min_count=2, options={"val_ratio": 0}, test=[item(0, "odd")])
    assert AnswerTable.read(folder / "out" / "answer2label.txt").answers == ("yes",)
    assert [row["answer"] for row in rows_of(folder, "train")] == ["yes", "yes", "rare", "yes"]
    assert "train: 1 answer outside the label table (rows kept)" in summary.notes
    assert "test: 1 answer outside the label table (rows kept)" in summary.notes


def test_a_validation_split_is_cut_if_there_is_none(folder):
    summary = run(folder, train=[item(n) for n in range(4)])
    assert summary.rows == {"train": 3, "val": 1}
    assert "yes 3 (100.0%)" in summary.text()


def test_numbers_as_ids_and_korean_answers_are_read(folder):
    Image.new("RGB", (8, 8)).save(folder / "images" / "7.jpg")
    train = [{"image_id": 7, "question": "색?", "answer": "청록색", "question_id": 1}]
    run(folder, {"val_ratio": 0}, train=train)
    assert rows_of(folder, "train")[0]["id"] == "1"
    assert AnswerTable.read(folder / "out" / "answer2label.txt").answers == ("청록색",)


def test_every_problem_is_named_with_its_item(folder):
    bad = [item(0), item(0), 3, item(1, " "), {"question": "?"}, item(2, image="../../etc/passwd"), item(3, None)]
    with pytest.raises(InputError) as error:
        run(folder, train=bad, test=[])
    text = str(error.value)
    for expected in (
        "train.json: item 2: the ID 'q0' is at",
        "train.json: item 3: isn't an object",
        "train.json: item 4: answer is empty",
        "train.json: item 5: question_id, image_id are empty; answer is empty",
        "train.json: item 6: image path",
        "train.json: item 7: answer is empty",
        "test.json isn't a list of questions",
    ):
        assert expected in text
    assert not (folder / "out").exists()


def test_whole_numbers_as_answers_and_ids_that_name_files_are_read(folder):
    train = [item(0, 7, image="img_0.jpg"), item(1, 7, image="train/img_3.jpg"), item(2, "seven", image="img_9.b.png")]
    run(folder, {"val_ratio": 0.0}, train=train)
    rows = rows_of(folder, "train")
    assert [row["image_path"] for row in rows] == ["train/img_0.jpg", "train/img_3.jpg", "img_9.b.png"]
    assert [row["answer"] for row in rows] == ["7", "7", "seven"]
    assert AnswerTable.read(folder / "out" / "answer2label.txt").answers == ("7",)


def test_a_label_table_that_would_be_empty_is_refused(folder):
    with pytest.raises(InputError, match="no answer occurs 9 times: lower --min_count"):
        run(folder, train=[item(0), item(1)], min_count=9)
    with pytest.raises(InputError, match=r"^--min_count 0: must be at least 1"):
        run(folder, train=[item(0), item(1)], min_count=0)
