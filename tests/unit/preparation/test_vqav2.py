"""The official files of VQAv2 -> index, against scores counted by hand."""

import json
import shutil
from collections import Counter

import pytest

from beit3_vqa.data.answers import AnswerTable, normalize_word
from beit3_vqa.data.rows import read_rows
from beit3_vqa.errors import InputError
from beit3_vqa.preparation import prepare
from beit3_vqa.preparation.writer import PrepareOptions
from tests.helpers.generated import write_vqav2


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_vqav2(tmp_path_factory.mktemp("vqav2"), images=40)


def run(source, out, **values):
    options = PrepareOptions(data_path=str(out), image_root=str(source), seed=values.pop("seed", 41))
    return prepare("vqav2", {"annotations": str(source), "val_images": 10, **values}, options)


def test_every_question_is_in_its_split_and_no_image_in_two(source, tmp_path):
    summary = run(source, tmp_path / "data")
    assert summary.rows == {"train": 70, "val": 10, "test": 20, "test-dev": 10}
    rows = {split: read_rows(tmp_path / "data" / f"vqav2.{split}.jsonl") for split in summary.rows}
    images = {split: {row["image_path"] for row in of} for split, of in rows.items()}
    assert not images["train"] & images["val"]
    assert all(path.startswith("val2014/COCO_val2014_0000000020") for path in images["val"])
    assert images["test-dev"] < images["test"]
    assert "labels" not in rows["test"][0]


def test_scores_follow_from_the_counts_of_ten_annotators(source, tmp_path):
    run(source, tmp_path / "data")
    table = AnswerTable.read(tmp_path / "data" / "answer2label.txt")
    assert table.answers == ("red", "green", "blue", "yellow")  # in the order in which they first occur
    given = {}
    for split in ("train2014", "val2014"):
        for entry in json.loads((source / f"v2_mscoco_{split}_annotations.json").read_text())["annotations"]:
            given[str(entry["question_id"])] = [answer["answer"] for answer in entry["answers"]]
    for row in [*read_rows(tmp_path / "data" / "vqav2.train.jsonl"), *read_rows(tmp_path / "data" / "vqav2.val.jsonl")]:
        counts = Counter(normalize_word(answer) for answer in given[row["id"]])
        wanted = {table.label(answer): {2: 0.6, 8: 1.0}[count] for answer, count in counts.items()}
        assert dict(zip(row["labels"], row["scores"], strict=True)) == wanted
        assert table.label(row["answer"]) == max(wanted, key=wanted.get)


def test_labels_follow_the_annotations_as_in_upstreams_checkpoints(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "raw")
    path = copy / "v2_mscoco_train2014_annotations.json"
    annotations = json.loads(path.read_text())
    annotations["annotations"].reverse()
    path.write_text(json.dumps(annotations))
    options = PrepareOptions(data_path=str(tmp_path / "data"), image_root=str(source))
    prepare("vqav2", {"annotations": str(copy), "val_images": 10}, options)
    order = dict.fromkeys(entry["multiple_choice_answer"] for entry in annotations["annotations"])
    assert AnswerTable.read(tmp_path / "data" / "answer2label.txt").answers == tuple(order)


def test_rare_answers_have_no_class(source, tmp_path):
    annotations = json.loads((source / "v2_mscoco_train2014_annotations.json").read_text())
    assert Counter(a["multiple_choice_answer"] for a in annotations["annotations"])["red"] == 10
    run(source, tmp_path / "a", min_count=20)
    assert len(AnswerTable.read(tmp_path / "a" / "answer2label.txt")) == 4
    with pytest.raises(InputError, match="no answer is the majority's 21 times"):
        run(source, tmp_path / "b", min_count=21)


def test_the_seed_draws_the_images_to_validate_on(source, tmp_path):
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(source, tmp_path / name, seed=seed)
        drawn.append({row["id"] for row in read_rows(tmp_path / name / "vqav2.val.jsonl")})
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("v2_mscoco_val2014_annotations.json", lambda d: d["annotations"].pop(), "question 20390 has no annotation"),
        ("v2_mscoco_train2014_annotations.json", lambda d: d["annotations"][0].pop("answers"), "annotation 1: answers"),
        ("v2_mscoco_train2014_annotations.json", lambda d: d["annotations"].append(d["annotations"][0]), "before"),
        ("v2_mscoco_train2014_annotations.json", lambda d: d["annotations"][3].update(question_id=7), "no question 7"),
        ("v2_OpenEnded_mscoco_train2014_questions.json", lambda d: d.pop("questions"), 'no list "questions"'),
        ("v2_OpenEnded_mscoco_test2015_questions.json", lambda d: d["questions"][1].update(image_id="x"), "question 2"),
        ("v2_OpenEnded_mscoco_test2015_questions.json", lambda d: d["questions"][1].update(image_id=9), "n't exist"),
    ],
)  # fmt: skip
def test_a_bad_question_or_annotation_is_named_and_nothing_is_written(tmp_path, name, change, says):
    folder = write_vqav2(tmp_path / "source", images=40)
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=says):
        run(folder, tmp_path / "data")
    assert not (tmp_path / "data").exists()
