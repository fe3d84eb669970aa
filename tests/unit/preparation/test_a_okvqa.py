"""A-OKVQA's official files -> index, on a few questions of the same layout."""

import json
import random

import pytest

from beit3_vqa.cli.main import main
from beit3_vqa.data.predictions import read_predictions
from beit3_vqa.data.rows import read_rows
from beit3_vqa.errors import InputError
from beit3_vqa.preparation import PrepareOptions, prepare
from tests.helpers.commands import evaluate_on, train_on
from tests.helpers.generated import COLOURS, draw_thing


def question(split, image, **changes):
    """A question as the files have it; those of test lack what only annotators know."""
    right = image % 4
    choices = random.Random(image).sample(sorted(COLOURS), 4)
    entry = {
        "split": split,
        "image_id": image,
        "question_id": f"22{split}{image}XyZ",
        "question": "What colour is the thing that is used here?",
        "choices": choices,
        "correct_choice_idx": right,
        "direct_answers": [choices[right]] * 9 + ["grey"],
        "difficult_direct_answer": False,
        "rationales": ["One sees it.", "It is so.", "It is known."],
    }
    if split == "test":
        for name in ("correct_choice_idx", "direct_answers", "rationales"):
            del entry[name]
    return {name: value for name, value in (entry | changes).items() if value is not None}


FIRST = {"train": 100, "val": 200, "test": 300}


@pytest.fixture
def run(tmp_path):
    """Prepare questions of each split; their images are made as well, below the folders of COCO 2017."""

    def run(folder="{split}2017/", missing=(), **splits):
        rng = random.Random(0)
        for split, entries in splits.items():
            (tmp_path / f"aokvqa_v1p0_{split}.json").write_text(json.dumps(entries))
            for entry in entries:
                if isinstance(entry, dict) and entry["image_id"] not in missing:
                    name = folder.format(split=split) + f"{int(entry['image_id']):012d}.jpg"
                    draw_thing(tmp_path / "coco" / name, colour_of(entry), rng)
        options = PrepareOptions(tmp_path / "data", tmp_path / "coco", train_tokenizer=160)
        return prepare("a_okvqa", {"annotations": str(tmp_path)}, options)

    run.folder = tmp_path
    return run


def colour_of(entry):
    """The right option, or red if there is none."""
    right = entry.get("correct_choice_idx")
    return entry["choices"][right] if "choices" in entry and right in range(len(entry["choices"])) else "red"


def questions(split, count):
    return [question(split, FIRST[split] + place) for place in range(count)]


@pytest.mark.parametrize("folder", ["{split}2017/", ""])
def test_official_splits_answers_and_options_are_kept(run, folder):
    splits = {"train": questions("train", 5), "val": questions("val", 3), "test": questions("test", 2)}
    assert run(folder, **splits).rows == {"train": 5, "val": 3, "test": 2}
    for split, entries in splits.items():
        rows = list(read_rows(run.folder / "data" / f"vqacustom.{split}.jsonl"))
        assert [row["id"] for row in rows] == [entry["question_id"] for entry in entries]
        for row, entry in zip(rows, entries, strict=True):
            assert row["image_path"] == f"{folder.format(split=split)}{entry['image_id']:012d}.jpg"
            assert row["question"] == entry["question"]
            assert row["choices"] == entry["choices"]
            assert row.get("answer") == (None if split == "test" else "ABCD"[entry["correct_choice_idx"]])


def test_without_val_and_test_the_validation_split_is_cut_from_train(run):
    summary = run(train=questions("train", 8))
    assert sum(summary.rows.values()) == 8
    assert summary.rows["val"] > 0
    for split in ("val", "test"):
        assert f"aokvqa_v1p0_{split}.json isn't there: no such split" in summary.notes


def test_options_of_the_same_text_are_counted_and_kept(run):
    twice = question("train", 100, choices=["red", "Red ", "blue", "green"])
    summary = run(train=[twice, *questions("train", 5)[1:]], val=questions("val", 1))
    assert "1 row with options that are equal but for case, marks or an article" in "\n".join(summary.findings)
    assert read_rows(run.folder / "data" / "vqacustom.train.jsonl")[0]["choices"] == twice["choices"]


def test_every_problem_is_named_with_its_file_and_place(run):
    train = [
        question("train", 100, choices=None),
        question("train", 101, choices=["red", "blue", "green"], correct_choice_idx=0),
        question("train", 102, choices=["red", " ", "blue", "green"]),
        question("train", 103, correct_choice_idx=4),
        question("train", 104, correct_choice_idx=True),
        question("train", 105, correct_choice_idx=None),
        question("train", 106, question=" "),
        question("train", 107, question_id=7),
        question("train", 108) | {"image_id": "108"},
        question("val", 109),
        "text",
        question("train", 111),
        question("train", 111),
        question("train", 112),
    ]
    with pytest.raises(InputError) as error:
        run(missing=(112,), train=train, val=[])
    text = str(error.value)
    for said in (
        "question 1: choices must be a list of 4 texts",
        "question 2: choices must be a list of 4 texts",
        "question 3: choices must be texts, none of them empty",
        "question 4: correct_choice_idx is 4, not 0 to 3",
        "question 5: correct_choice_idx is True, not 0 to 3",
        "question 6: has no correct_choice_idx",
        "question 7: question must be text",
        "question 8: question_id must be text",
        "question 9: image_id must be a whole number",
        "question 10: its split is 'val', and the file is of train",
        "question 11: isn't an object",
        "question 13 (22train111XyZ): the ID '22train111XyZ' is at",
        f"question 14 (22train112XyZ): image '{run.folder}/coco/train2017/000000000112.jpg'",
    ):
        assert f"{run.folder}/aokvqa_v1p0_train.json: {said}" in text
    assert "aokvqa_v1p0_val.json isn't a list of questions" in text
    assert not (run.folder / "data").exists()


def test_train_must_be_there(tmp_path):
    with pytest.raises(InputError, match=r"aokvqa_v1p0_train\.json"):
        prepare("a_okvqa", {"annotations": str(tmp_path)}, PrepareOptions(tmp_path / "data", tmp_path))


def test_two_steps_of_training_and_the_test_questions_are_answered(run):
    run(train=questions("train", 8), val=questions("val", 4), test=questions("test", 3))
    data, out = run.folder / "data", run.folder / "out"
    assert main(train_on(data, "vqacustom", out, "--epochs", "1", "--batch_size", "4")) == 0
    assert main(evaluate_on(data, "vqacustom", out / "checkpoint-best.pth", out)) == 0
    answered = read_predictions(out / "predictions.json")
    assert [p.id for p in answered] == [entry["question_id"] for entry in questions("test", 3)]
    assert all(sorted(p.probabilities) == list("ABCD") for p in answered)
