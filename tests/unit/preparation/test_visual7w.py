import json
from collections import Counter

import pytest
from PIL import Image

from beit3_vqa.data.rows import read_rows
from beit3_vqa.errors import InputError
from beit3_vqa.preparation import PrepareOptions, prepare
from beit3_vqa.preparation.choices_csv import Arguments
from beit3_vqa.preparation.choices_csv import read as read_choices


def question(qa_id, **changes):
    return {
        "qa_id": qa_id,
        "question": "What is it?",
        "answer": f"right {qa_id}",
        "type": "what",
        "multiple_choices": [f"wrong {qa_id}", "=1+1", '+2, "two"\nlines\r'],
    } | changes


def image(image_id, split="train", questions=(), **changes):
    return {"image_id": image_id, "filename": f"v7w_{image_id}.jpg", "split": split, "qa_pairs": questions} | changes


@pytest.fixture
def run(tmp_path):
    """Prepare a file of these images; their pictures are made as well."""
    root = tmp_path / "images"
    root.mkdir()

    def run(images, **options):
        for entry in images:
            Image.new("RGB", (20, 10)).save(root / f"v7w_{entry['image_id']}.jpg")
        path = tmp_path / "dataset_v7w_telling.json"
        path.write_text(json.dumps({"dataset": "visual7w-telling", "images": images}), encoding="utf-8")
        return prepare("visual7w", {"json": str(path)}, PrepareOptions(tmp_path / "out", root, **options))

    run.out = tmp_path / "out"
    return run


def test_official_splits_types_and_answers_are_kept(run):
    summary = run(
        [
            image(1, "train", [question(10), question(11, type="where")]),
            image(2, "val", [question(20)]),
            image(3, "test", [question(30)]),
        ]
    )
    assert summary.rows == {"train": 2, "val": 1, "test": 1}
    for split in summary.rows:
        for row in read_rows(run.out / f"vqacustom.{split}.jsonl"):
            assert row["choices"]["ABCD".index(row["answer"])] == f"right {row['id']}"
            assert sorted(row["choices"]) == sorted(
                [f"right {row['id']}", f"wrong {row['id']}", "=1+1", '+2, "two"\nlines\r']
            )
    rows = read_rows(run.out / "vqacustom.train.jsonl")
    assert [row["type"] for row in rows] == ["what", "where"]
    assert rows[0]["image_path"] == "v7w_1.jpg"


def test_each_split_is_a_csv_that_choices_reads_back(run):
    images = [image(1, "train", [question(n) for n in range(9)]), image(2, "test", [question(20, question=" @what")])]
    run(images, val_ratio=0)
    values = {"train": str(run.out / "visual7w.train.csv"), "val": "", "test": str(run.out / "visual7w.test.csv")}
    prepared = read_choices(Arguments(**values), PrepareOptions("x", "images"))
    assert prepared.problems == []
    for split in ("train", "test"):
        rows = read_rows(run.out / f"vqacustom.{split}.jsonl")
        assert prepared.splits[split] == [{k: v for k, v in row.items() if k != "type"} for row in rows]
    assert not (run.out / "visual7w.val.csv").exists()


def test_the_csvs_follow_a_validation_split_that_was_cut(run):
    summary = run([image(n, "train", [question(n)]) for n in range(4)], val_ratio=0.5)
    assert summary.rows == {"train": 2, "val": 2}
    for split in ("train", "val"):
        lines = (run.out / f"visual7w.{split}.csv").read_text(encoding="utf-8")
        assert all(f'"{row["id"]}","v7w_' in lines for row in read_rows(run.out / f"vqacustom.{split}.jsonl"))
        assert lines.count("v7w_") == 2


def test_the_place_of_the_answer_is_balanced_and_depends_on_the_seed_alone(run):
    images = [image(1, "train", [question(n) for n in range(400)]), image(2, "val", [question(999)])]
    run(images)
    rows = read_rows(run.out / "vqacustom.train.jsonl")
    assert all(60 < count < 140 for count in Counter(row["answer"] for row in rows).values())
    images[0]["qa_pairs"].reverse()
    run(images)
    assert read_rows(run.out / "vqacustom.train.jsonl") == rows[::-1]
    run(images, seed=42)
    assert read_rows(run.out / "vqacustom.train.jsonl") != rows[::-1]


def test_a_missing_file_name_is_made_from_the_image_id(run):
    entry = image(1, "train", [question(1)])
    del entry["filename"]
    run([entry], val_ratio=0)
    assert read_rows(run.out / "vqacustom.train.jsonl")[0]["image_path"] == "v7w_1.jpg"


def test_every_problem_is_named_with_its_place(run):
    with pytest.raises(InputError) as error:
        run(
            [
                image(1, "train", [question(1), question(1), question(2, answer=" "), "text", question(None)]),
                image(2, "dev", []),
                image(3, "val", [question(3, multiple_choices=["a", "b"]), question(4, question="\ud800")]),
                image(4, "test", None),
            ]
        )
    text = str(error.value)
    for expected in (
        "8 problems",
        "image 1 (1), question 2: the ID '1' is at",
        "image 1 (1), question 3: answer must be text",
        "image 1 (1), question 4: isn't an object",
        "image 1 (1), question 5: qa_id must be",
        "image 2: split 'dev' is none of train, val, test",
        "image 3 (3), question 1: multiple_choices must be the 3 wrong answers",
        "image 3 (3), question 2: question must be text",
        "image 4: has no list qa_pairs",
    ):
        assert expected in text
    assert not run.out.exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"images": []}', b"{", b"\xff\xff", b"[" * 100_000])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "d.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"d\.json"):
        prepare("visual7w", {"json": str(path)}, PrepareOptions(tmp_path / "out", tmp_path))
