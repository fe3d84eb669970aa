"""Folds hold about the same share of every question word and answer, as far as whole images allow."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from beit3_vqa.data.folds import get_labels
from beit3_vqa.data.index import assign_folds
from tests.helpers.questions import draw_questions, spread

# What scikit-learn's StratifiedGroupKFold reaches on the same questions.
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "fold_spread.json").read_text())


@pytest.mark.parametrize("seed", range(len(GOLDEN)))
def test_pairs_of_word_and_answer_are_spread_as_evenly_as_scikit_learn_does(seed):
    rows = draw_questions(seed)
    folds = assign_folds(rows, 5, seed)
    assert spread([f"{row['question']} {row['answer']}" for row in rows], folds) <= 1.05 * GOLDEN[seed]
    # Words and answers by themselves, and the rows, even better.
    for name in ("question", "answer"):
        assert spread([row[name] for row in rows], folds) < 0.015
    sizes = Counter(folds)
    assert max(sizes.values()) - min(sizes.values()) <= 4


@pytest.mark.parametrize("count", [2, 3, 5])
def test_images_stay_whole_and_their_numbers_even(count):
    rows = draw_questions(7, images=47)
    folds = assign_folds(rows, count, 0)
    fold_of = dict(zip((row["image_path"] for row in rows), folds, strict=True))
    assert all(fold_of[row["image_path"]] == fold for row, fold in zip(rows, folds, strict=True))
    answers = {image: Counter(row["answer"] for row in rows if row["image_path"] == image) for image in fold_of}
    majority = {image: min(found, key=lambda a, f=found: (-f[a], a)) for image, found in answers.items()}
    for images in [set(fold_of), *({i for i in fold_of if majority[i] == letter} for letter in "ABCD")]:
        sizes = [sum(fold_of[image] == fold for image in images) for fold in range(count)]
        assert max(sizes) - min(sizes) <= 1


def test_folds_follow_from_the_rows_and_the_seed_alone():
    rows = draw_questions(3, images=30)
    folds = {row["id"]: fold for row, fold in zip(rows, assign_folds(rows, 3, 5), strict=True)}
    shuffled = random.Random(0).sample(rows, len(rows))
    assert {r["id"]: fold for r, fold in zip(shuffled, assign_folds(shuffled, 3, 5), strict=True)} == folds
    assert {r["id"]: fold for r, fold in zip(rows, assign_folds(rows, 3, 6), strict=True)} != folds


def test_what_is_evened_out():
    row = {"id": "1", "image_path": "1.jpg", "question": "Where is it?"}
    assert get_labels(row) == ["", "word where", "answer ", "both where "]
    asked = row | {"answer": "B", "choices": ["a mat", "A chair"]}
    assert get_labels(asked) == ["", "word where", "answer B", "both where B", "text a chair"]
    assert get_labels({"image_path": "1.jpg", "label": 3}) == ["", "word other", "answer 3", "both other 3"]
