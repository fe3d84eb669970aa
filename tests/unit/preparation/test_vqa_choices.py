"""VQA's official files -> multiple choice: which options a question gets, and that the right one isn't given away."""

import json
import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3_vqa.cli.main import main
from beit3_vqa.data.answers import answer_key
from beit3_vqa.data.predictions import read_predictions
from beit3_vqa.data.rows import LETTERS, read_rows
from beit3_vqa.errors import InputError
from beit3_vqa.preparation import PrepareOptions, prepare
from beit3_vqa.preparation.vqa_choices import draw_wrong
from tests.helpers.commands import evaluate_on, train_on
from tests.helpers.generated import draw_thing, write_vqav2

# Of each question: question_type, answer_type and its possible right answers.
KINDS = [
    ("what color is the", "other", ["red", "green", "blue", "yellow", "brown", "gray"]),
    ("what is the", "other", ["cat", "dog", "cup", "chair", "clock", "sky"]),
    ("how many", "number", ["1", "2", "3", "4", "5", "12"]),
    ("is the", "yes/no", ["yes", "no"]),
]
FILLED = ["yes", "no", "1", "2", "3", "4", "red", "blue", "white", "green", "cat", "dog", "cup", "sky"]


FIRST = {"train2014": 1000, "val2014": 2000, "test2015": 3000}


def write_vqa(folder, version, count=40, seed=0, first=FIRST):
    """Questions of train2014 and val2014 in the layout of VQA v1 or VQAv2, and tests; `count` of each annotated split.

    All are about the same two images of a split, so that little is drawn.
    """
    rng = random.Random(seed)
    folder.mkdir(exist_ok=True)
    for split in ("train2014", "val2014", "test2015"):
        questions, annotations = [], []
        for place in range(count):
            number = place + first[split]
            question_type, answer_type, answers = KINDS[place % len(KINDS)]
            right, other = rng.sample(answers, 2)
            asked = {"question_id": number, "image_id": place // 4 % 2, "question": f"{question_type} thing {number}?"}
            if version == "v1":
                given = [right, *([other] if place % 3 else [])]
                rest = [
                    text for text in [*FILLED, "on the left of it", "Paris", "7", "yellow bus"] if text not in given
                ]
                choices = [*given, *rest][:18]
                rng.shuffle(choices)
                asked["multiple_choices"] = choices
            questions.append(asked)
            # Where `place` is a multiple of 3 all annotators agree.
            people = [right] * 7 + ([other, other.upper(), f"the {other}"] if place % 3 else [right] * 3)
            annotations.append(
                {
                    "question_id": number,
                    "image_id": place // 4 % 2,
                    "question_type": question_type,
                    "answer_type": answer_type,
                    "multiple_choice_answer": right,
                    "answers": [
                        {"answer": text, "answer_confidence": "yes", "answer_id": i + 1}
                        for i, text in enumerate(people)
                    ],
                }
            )
        prefix = "v2_" if version == "v2" else ""
        form = "MultipleChoice" if version == "v1" else "OpenEnded"
        (folder / f"{prefix}{form}_mscoco_{split}_questions.json").write_text(json.dumps({"questions": questions}))
        if split != "test2015":
            content = json.dumps({"annotations": annotations})
            (folder / f"{prefix}mscoco_{split}_annotations.json").write_text(content)
        for image in range(2):
            draw_thing(folder / split / f"COCO_{split}_{image:012}.jpg", "red", rng)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return {version: write_vqa(tmp_path_factory.mktemp(version), version) for version in ("v1", "v2")}


def run(source, out, seed=41, check=False, **values):
    options = PrepareOptions(str(out), str(source), seed=seed, verify_images=False, check=check)
    summary = prepare("vqa_choices", {"annotations": str(source), "val_images": 1, **values}, options)
    return summary, {split: list(read_rows(out / f"vqacustom.{split}.jsonl")) for split in summary.rows}


def annotations(source):
    """Question id -> its annotation."""
    files = source.glob("*_annotations.json")
    return {str(one["question_id"]): one for file in files for one in json.loads(file.read_text())["annotations"]}


def annotated(rows):
    return [*rows["train"], *rows["val"]]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_wrong_options_are_of_the_answers_kind_and_nobody_gave_them(sources, tmp_path, version):
    summary, rows = run(sources[version], tmp_path / "data")
    told = annotations(sources[version])
    assert summary.rows == {"train": 45, "val": 15}
    assert any("20 questions left out: of yes or no, which have two" in note for note in summary.notes)
    colours, things, numbers = (set(answers) for _, _, answers in KINDS[:3])
    for row in annotated(rows):
        annotation = told[row["id"]]
        right = row["choices"][LETTERS.index(row["answer"])]
        assert right == annotation["multiple_choice_answer"]
        wrong = {answer_key(choice) for choice in row["choices"]} - {answer_key(right)}
        assert len(wrong) == 3
        assert not wrong & {answer_key(one["answer"]) for one in annotation["answers"]}
        assert not wrong & {"yes", "no"}
        if version == "v2":
            same = next(kind for kind in (colours, things, numbers) if right in kind)
            assert wrong < same
        else:
            assert len({choice.isdecimal() for choice in row["choices"]}) == 1


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_options_follow_from_the_seed_and_the_question_and_the_letter_is_even(tmp_path, version):
    source = write_vqa(tmp_path / "source", version, count=200)
    _, rows = run(source, tmp_path / "a")
    letters = Counter(row["answer"] for row in annotated(rows))
    assert all(45 < count < 105 for count in letters.values())  # of 300, four standard deviations
    for file in source.glob("*.json"):
        content = json.loads(file.read_text())
        (entries,) = content.values()
        entries.reverse()
        file.write_text(json.dumps(content))
    _, again = run(source, tmp_path / "b")
    assert {row["id"]: row for row in annotated(again)} == {row["id"]: row for row in annotated(rows)}
    _, other = run(source, tmp_path / "c", seed=42)
    assert sum(one["choices"] != two["choices"] for one, two in zip(rows["val"], other["val"], strict=False)) > 30


def test_yes_or_no_questions_have_two_options_if_the_other_answer_was_never_given(sources, tmp_path):
    for version in ("v1", "v2"):
        summary, rows = run(sources[version], tmp_path / version, yes_no="two")
        two = [row for row in annotated(rows) if len(row["choices"]) == 2]
        told = annotations(sources[version])
        agreed = {
            name
            for name, one in told.items()
            if one["answer_type"] == "yes/no" and len({answer_key(a["answer"]) for a in one["answers"]}) == 1
        }
        assert {row["id"] for row in two} == agreed
        assert all(sorted(row["choices"]) == ["no", "yes"] for row in two)
        assert f"{20 - len(agreed)} questions left out: every wrong answer was given" in " ".join(summary.notes)
        assert f"{len(agreed)} rows with fewer than 4 options; train with --prompt_template" in " ".join(summary.notes)


def test_all_options_of_vqa_v1_but_those_that_annotators_gave(sources, tmp_path):
    summary, rows = run(sources["v1"], tmp_path / "data", options=18)
    asked = {}
    for file in sources["v1"].glob("*_questions.json"):
        asked |= {str(one["question_id"]): one["multiple_choices"] for one in json.loads(file.read_text())["questions"]}
    told = annotations(sources["v1"])
    for row in annotated(rows):
        given = {answer_key(one["answer"]) for one in told[row["id"]]["answers"]}
        right = told[row["id"]]["multiple_choice_answer"]
        wanted = [text for text in asked[row["id"]] if text == right or answer_key(text) not in given]
        assert sorted(row["choices"]) == sorted(wanted)
    assert summary.rows["test"] == 40
    assert all(sorted(row["choices"]) == sorted(asked[row["id"]]) and "answer" not in row for row in rows["test"])
    summary, _ = run(sources["v1"], tmp_path / "four")
    assert "test" not in summary.rows
    assert "40 questions left out: of test, whose right option isn't known" in " ".join(summary.notes)


def test_wrong_options_of_vqav2_are_as_frequent_as_right_answers():
    """Else the frequent answer would be the right one, which can be guessed without the image."""
    rng, pool = random.Random(0), ["common"] * 90 + ["often"] * 9 + ["rare"]
    drawn = Counter(draw_wrong({"x"}, [pool], 1, rng)[0] for _ in range(2000))
    assert drawn["common"] > 1700 > 100 < drawn["often"] < 260
    assert 5 < drawn["rare"] < 45


words = st.sampled_from("abcdefgh")


@settings(max_examples=40)
@given(st.sets(words), st.lists(st.lists(words, max_size=60), max_size=3), st.integers(1, 6), st.integers())
def test_drawn_answers_differ_were_not_given_and_are_of_the_nearest_pool(given_answers, pools, count, seed):
    found = draw_wrong(given_answers, pools, count, random.Random(seed))
    assert found == draw_wrong(given_answers, pools, count, random.Random(seed))
    assert len(set(found)) == len(found)
    assert not set(found) & given_answers
    left = [*dict.fromkeys(word for pool in pools for word in sorted(set(pool)) if word not in given_answers)]
    assert len(found) == min(count, len(left))
    place = 0
    for pool in pools:  # a pool is used up before the next one is touched
        own = set(pool) - given_answers - set(found[:place])
        here = found[place : place + len(own)]
        assert set(here) <= own
        place += len(here)


def test_a_rare_answer_behind_a_frequent_one_is_found():
    pool = ["given"] * 100_000 + ["rare", "other"]
    assert sorted(draw_wrong({"given"}, [pool], 3, random.Random(0))) == ["other", "rare"]


QUESTIONS, ANNOTATIONS = "MultipleChoice_mscoco_train2014_questions.json", "mscoco_train2014_annotations.json"
FAULTS = {
    "question 1: multiple_choices must be a list of 2 to 26 texts": (
        "v1", QUESTIONS, lambda d: d["questions"][0].pop("multiple_choices"),
    ),
    "question 2: multiple_choices must be": (
        "v1", QUESTIONS, lambda d: d["questions"][1].update(multiple_choices=["a", " "]),
    ),
    "train2014, question 1000: multiple_choice_answer 'kiwi' is none of its multiple_choices": (
        "v1", ANNOTATIONS, lambda d: d["annotations"][0].update(multiple_choice_answer="kiwi"),
    ),
    "question 1039 has no annotation": ("v2", f"v2_{ANNOTATIONS}", lambda d: d["annotations"].pop()),
    "train2014, question 1000: image": (
        "v2", "v2_OpenEnded_mscoco_train2014_questions.json", lambda d: d["questions"][0].update(image_id=9),
    ),
}  # fmt: skip


@pytest.mark.parametrize("says", FAULTS)
def test_a_bad_question_or_annotation_is_named_and_nothing_is_written(tmp_path, says):
    version, name, change = FAULTS[says]
    source = write_vqa(tmp_path / "source", version)
    content = json.loads((source / name).read_text())
    change(content)
    (source / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=re.escape(says)):
        run(source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_question_id_of_two_splits_is_told_apart(tmp_path):
    source = write_vqa(tmp_path / "source", "v1", first=dict.fromkeys(FIRST, 1000) | {"val2014": 1001})
    _, rows = run(source, tmp_path / "data", options=18, val_images=2)
    for split, name in (("train", "train2014"), ("val", "val2014")):
        told = json.loads((source / f"mscoco_{name}_annotations.json").read_text())["annotations"]
        texts = {str(one["question_id"]): one["multiple_choice_answer"] for one in told}
        assert all(row["choices"][LETTERS.index(row["answer"])] == texts[row["id"]] for row in rows[split])
    assert {row["id"] for row in rows["train"]} & {row["id"] for row in rows["val"]}


def test_the_edition_is_what_is_there_or_said(sources, tmp_path):
    with pytest.raises(InputError, match=r"has neither MultipleChoice_\S+ nor v2_OpenEnded"):
        run(tmp_path, tmp_path / "data")
    both = tmp_path / "both"
    for version in ("v1", "v2"):
        write_vqa(both, version)
    with pytest.raises(InputError, match=r"has both .* say which with --edition"):
        run(both, tmp_path / "data")
    assert run(both, tmp_path / "a", edition="v1")[1] == run(sources["v1"], tmp_path / "b")[1]
    assert run(both, tmp_path / "c", edition="v2")[1] == run(sources["v2"], tmp_path / "d")[1]


def test_without_val2014_the_validation_split_is_cut_from_train(tmp_path):
    source = write_vqa(tmp_path / "source", "v2")
    for file in source.glob("v2_*val2014*"):
        file.unlink()
    summary, rows = run(source, tmp_path / "data")
    assert summary.rows == {"train": 15, "val": 15}
    assert {row["image_path"].split("/")[0] for row in annotated(rows)} == {"train2014"}


def test_two_steps_of_training_and_the_validation_questions_are_answered(tmp_path):
    source = write_vqav2(tmp_path / "source", images=8)
    command = ["prepare", "vqa_choices", "--annotations", str(source), "--image_root", str(source), "--options", "3"]
    command += ["--val_images", "4", "--data_path", str(tmp_path / "data"), "--train_tokenizer", "160"]
    assert main(command) == 0
    rows = read_rows(tmp_path / "data" / "vqacustom.val.jsonl")
    assert all(len(row["choices"]) <= 3 for row in rows)
    template = ["--prompt_template", "{question} Choices: {options}"]
    out = tmp_path / "out"
    assert main(train_on(tmp_path / "data", "vqacustom", out, "--epochs", "1", "--batch_size", "6", *template)) == 0
    checkpoint = out / "checkpoint-best.pth"
    assert main(evaluate_on(tmp_path / "data", "vqacustom", checkpoint, out, "--split", "val")) == 0
    answered = read_predictions(out / "predictions_val.json")
    assert [p.choices for p in answered] == [tuple(row["choices"]) for row in rows]
