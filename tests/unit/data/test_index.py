import json
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.data.index import DatasetInfo, assign_folds, image_key, split_by_image, split_files
from beit3_vqa.data.rows import read_rows, write_rows
from beit3_vqa.errors import InputError

CHOICE_ROW = {
    "id": "TRAIN_000",
    "image_path": "img/0.jpg",
    "question": "무엇? \u2028 그리고",
    "choices": ["고양이", "a, b", "😀", 'say "c"'],
    "answer": "C",
    "weight": 2.0,
    "fold": 3,
}
OPEN_ROW = {"id": "7", "image_path": "train/1.png", "question": "what color?", "answer": "teal"}
UPSTREAM_ROW = {"image_path": "a.jpg", "text_segment": [5, 9], "labels": [3, 1], "scores": [1.0, 0.3], "qid": 12}
FORK_ROW = {"image_path": "b.jpg", "text_segment": "what?", "labels": [0], "scores": [1], "qid": "x"}


def question(number, image, answer=None):
    row = {"id": str(number), "image_path": f"{image}.jpg", "question": "?"}
    return row if answer is None else row | {"answer": answer}


def test_rows_of_every_kind_survive_writing_and_reading(tmp_path):
    rows = [CHOICE_ROW, OPEN_ROW, UPSTREAM_ROW, FORK_ROW]
    write_rows(tmp_path / "i.jsonl", rows)
    assert read_rows(tmp_path / "i.jsonl") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["i.jsonl"]


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "i.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(OPEN_ROW).encode())
    assert read_rows(path) == [OPEN_ROW]


def test_blank_lines_are_skipped_and_still_counted(tmp_path):
    path = tmp_path / "i.jsonl"
    path.write_text(json.dumps(OPEN_ROW) + "\r\n\n{}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"i\.jsonl:3: has no image_path"):
        read_rows(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_path": ""}, "image_path must be text"),
        ({"image_path": 3}, "image_path must be text"),
        ({"image_path": "a\0b"}, "image_path must be text"),
        ({"id": None}, "has no id"),
        ({"id": True}, "id must be text or a whole number"),
        ({"id": 1.5}, "id must be text or a whole number"),
        ({"question": ""}, "question must be text"),
        ({"question": "\ud800"}, "question must be text"),
        ({"question": ["?"]}, "question must be text"),
        ({"question": " \t"}, "question must be text"),
        ({"choices": ["a", " ", "c", "d"]}, "choices must not be empty"),
        ({"id": " "}, "id must be text"),
        ({"id": "9" * 5000}, "id has more than 1000 characters"),
        ({"weight": 1e308}, "weight must be a number from 0 to 1e\\+12"),
        ({"choices": "abcd"}, "choices must be a list"),
        ({"choices": ["a"]}, "choices must be a list"),
        ({"choices": ["a", 1]}, "choices must be a list"),
        ({"answer": "E"}, "must be a letter from A to D"),
        ({"answer": "c"}, "must be a letter from A to D"),
        ({"answer": ""}, "answer must be text"),
        ({"answer": 2}, "answer must be text"),
        ({"weight": float("nan")}, "weight must be"),
        ({"weight": -1}, "weight must be"),
        ({"weight": "1"}, "weight must be"),
        ({"fold": -1}, "fold must be"),
        ({"text_segment": [1.5]}, "text_segment must be"),
        ({"labels": [1]}, "scores must be"),
        ({"labels": [1, 2], "scores": [1.0]}, "2 labels but 1 scores"),
        ({"labels": [-1], "scores": [1.0]}, "labels must be"),
        ({"labels": [1], "scores": [1.5]}, "scores must be"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_line(tmp_path, change, message):
    path = tmp_path / "i.jsonl"
    path.write_text(json.dumps(OPEN_ROW) + "\n" + json.dumps(CHOICE_ROW | change) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"i\.jsonl:2: .*{message}"):
        read_rows(path)


@pytest.mark.parametrize("line", [b"{", b"[" * 100_000, b"\xff{}", b'{"a": 1} x', b'{"a": ' + b"9" * 5000 + b"}"])
def test_a_line_that_is_no_json_is_named(tmp_path, line):
    path = tmp_path / "i.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(InputError, match=r"i\.jsonl:1: isn't JSON"):
        read_rows(path)


@pytest.mark.parametrize("line", ["[]", "null", "3", '"row"'])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    path = tmp_path / "i.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(InputError, match=r"i\.jsonl:1: isn't a JSON object"):
        read_rows(path)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "i.jsonl"
    path.write_bytes(content)
    with suppress(InputError):
        assert read_rows(path) == []


def test_twenty_problems_are_shown_and_the_rest_counted(tmp_path):
    path = tmp_path / "i.jsonl"
    path.write_text("x\n" * 25, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_rows(path)
    assert "i.jsonl:20:" in str(error.value)
    assert "i.jsonl:21:" not in str(error.value)
    assert "and 5 more" in str(error.value)


def test_a_repeated_id_is_an_error_that_names_both_lines(tmp_path):
    path = tmp_path / "i.jsonl"
    write_rows(path, [OPEN_ROW, OPEN_ROW | {"id": 7}])
    with pytest.raises(InputError, match=r"i\.jsonl:2: the id '7' is on line 1 too"):
        read_rows(path)


def test_a_missing_index_names_the_nearest(tmp_path):
    write_rows(tmp_path / "vqacustom.train.jsonl", [OPEN_ROW])
    with pytest.raises(InputError, match=r"Did you mean 'vqacustom\.train\.jsonl'"):
        read_rows(tmp_path / "vqacustom.trian.jsonl")


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "i.jsonl"
    write_rows(path, [OPEN_ROW])
    with pytest.raises(TypeError):
        write_rows(path, [CHOICE_ROW, {"id": object()}])
    assert read_rows(path) == [OPEN_ROW]
    assert len(list(tmp_path.iterdir())) == 1


def test_split_files_are_ours_else_upstreams(tmp_path):
    for name in ("vqa.train.jsonl", "vqa.trainable_val.jsonl", "vqa.test.jsonl"):
        write_rows(tmp_path / name, [UPSTREAM_ROW])
    assert [path.name for path in split_files(tmp_path, "train")] == ["vqa.train.jsonl", "vqa.trainable_val.jsonl"]
    assert split_files(tmp_path, "val") == []
    write_rows(tmp_path / "vqacustom.train.jsonl", [OPEN_ROW])
    assert [path.name for path in split_files(tmp_path, "train")] == ["vqacustom.train.jsonl"]
    assert split_files(tmp_path, "test") == [], "a test split of another data set must not be mixed in"


@pytest.mark.parametrize(
    ("images", "written"),
    [("out/img", "img"), ("img", "../img"), (".", ".."), ("out", "."), ("elsewhere/img", None)],
)
def test_image_root_is_relative_when_it_can_move_along(tmp_path, images, written):
    out = tmp_path / "out"
    out.mkdir()
    DatasetInfo(tmp_path / images, "choices", 41, {"train": 3}, {"images": 1}).write(out)
    fields = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    assert fields["image_root"] == (written or str(tmp_path / images))
    info = DatasetInfo.read(out)
    assert info.image_root.resolve() == (tmp_path / images).resolve()
    assert (info.format, info.seed, info.splits, info.summary) == ("choices", 41, {"train": 3}, {"images": 1})


def test_a_fork_folder_without_dataset_json_holds_its_images(tmp_path):
    assert DatasetInfo.read(tmp_path) == DatasetInfo(image_root=tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"image_root": 3}', "\ud800"])
def test_a_broken_dataset_json_is_an_input_error(tmp_path, text):
    (tmp_path / "dataset.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"dataset\.json"):
        DatasetInfo.read(tmp_path)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from([None, "A", "B", "C", "D"])), min_size=2, max_size=40),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_no_image_is_on_both_sides_and_no_row_is_lost(pairs, val_ratio, seed):
    rows = [question(number, image, answer) for number, (image, answer) in enumerate(pairs)]
    if len({image for image, _ in pairs}) < 2:
        with pytest.raises(InputError, match="each side needs one"):
            split_by_image(rows, val_ratio, seed)
        return
    train, val = split_by_image(rows, val_ratio, seed)
    assert train
    assert val
    assert not {image_key(row) for row in train} & {image_key(row) for row in val}
    assert sorted(train + val, key=lambda row: int(row["id"])) == rows
    assert (train, val) == split_by_image(rows, val_ratio, seed)
    images = {image_key(row) for row in rows}
    wanted = min(max(round(val_ratio * len(images)), 1), len(images) - 1)
    assert len({image_key(row) for row in val}) == wanted


def test_the_split_is_stratified_and_doesnt_depend_on_the_order():
    rows = [question(number, number, "AAAB"[number % 4]) for number in range(200)]
    train, val = split_by_image(rows, 0.2, seed=1)
    assert Counter(row["answer"] for row in val) == {"A": 30, "B": 10}
    assert Counter(row["answer"] for row in train) == {"A": 120, "B": 40}
    assert {row["id"] for row in split_by_image(rows[::-1], 0.2, seed=1)[1]} == {row["id"] for row in val}
    assert {row["id"] for row in split_by_image(rows, 0.2, seed=2)[1]} != {row["id"] for row in val}


def test_rare_answers_share_the_last_places_whatever_their_name():
    rows = [question(number, number, f"answer {number:02}") for number in range(40)]
    chosen = {row["answer"] for row in split_by_image(rows, 0.25, seed=3)[1]}
    assert len(chosen) == 10
    assert chosen != {f"answer {number:02}" for number in range(10)}


def test_two_spellings_of_a_path_are_one_image():
    rows = [question(0, "img/0"), question(1, "./img/0"), question(2, "img\\0"), question(3, "img/1")]
    train, val = split_by_image(rows, 0.5, seed=0)
    assert sorted(map(len, (train, val))) == [1, 3]


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1.0, float("nan")])
def test_impossible_ratios_are_refused(ratio):
    with pytest.raises(InputError, match="between 0 and 1"):
        split_by_image([question(0, 0), question(1, 1)], ratio, seed=0)


@given(
    st.lists(st.tuples(st.integers(0, 15), st.sampled_from("ABCD")), min_size=1, max_size=60),
    st.integers(2, 6),
)
def test_folds_cover_every_row_once_and_keep_images_whole(pairs, folds):
    rows = [question(number, image, answer) for number, (image, answer) in enumerate(pairs)]
    images = {image for image, _ in pairs}
    if len(images) < folds:
        with pytest.raises(InputError, match=f"can't make {folds} folds"):
            assign_folds(rows, folds, seed=0)
        return
    assigned = assign_folds(rows, folds, seed=0)
    assert len(assigned) == len(rows)
    assert set(assigned) == set(range(folds))
    fold_of = {image: fold for (image, _), fold in zip(pairs, assigned, strict=True)}
    assert all(fold_of[image] == fold for (image, _), fold in zip(pairs, assigned, strict=True))
    sizes = Counter(fold_of.values())
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_folds_are_stratified():
    rows = [question(number, number, "ABCD"[number % 4]) for number in range(60)]
    per_fold = Counter(zip(assign_folds(rows, 5, seed=41), (row["answer"] for row in rows), strict=True))
    assert set(per_fold.values()) == {3}


def test_fewer_than_two_folds_are_refused():
    with pytest.raises(InputError, match="at least 2 folds"):
        assign_folds([question(0, 0)], 1, seed=0)
