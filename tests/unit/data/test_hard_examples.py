"""Rows that an earlier model got wrong and right, in the asked proportion."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.dataset import IndexDataset, build_question
from beit3_vqa.data.hard_examples import _divide, split_by_score
from beit3_vqa.data.loader import EpochBatches
from beit3_vqa.data.mixture import Group
from beit3_vqa.errors import InputError

TABLE = AnswerTable(["A", "B"])


def dataset(name, count):
    rows = [
        {"id": str(i), "image_path": f"{name}.jpg", "question": name, "choices": ["x", "y"], "answer": "A"}
        for i in range(count)
    ]
    return IndexDataset(rows, lambda row, _: build_question(row, TABLE), Path("images"), None, training=True)


def prediction(place, name="one", **fields):
    row = {"id": str(place), "question": name, "answer": "A", "probabilities": {"A": 0.5, "B": 0.5}, "truth": "A"}
    return {**row, "choices": ["x", "y"], "image": f"{name}.jpg", **fields}


def split(tmp_path, predictions, *, sizes=(10,), draws=(10,), ratio=1.0):
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(predictions))
    names = ("one", "two")[: len(sizes)]
    parts = [dataset(name, size) for name, size in zip(names, sizes, strict=True)]
    rows = torch.arange(sum(sizes)).split(list(sizes))
    groups = [Group(*of) for of in zip(names, rows, draws, strict=True)]
    return [(g.name, g.rows.tolist(), g.draws) for g in split_by_score(path, groups, parts, ratio)]


def wrong_and_right(wrong, right, **fields):
    said = [prediction(place, answer="B", **fields) for place in range(wrong)]
    return said + [prediction(place, **fields) for place in range(wrong, wrong + right)]


@pytest.mark.parametrize(("ratio", "draws"), [(1.0, (5, 5)), (4.0, (8, 2)), (0.25, (2, 8)), (1e6, (9, 1))])
def test_wrong_and_right_rows_come_in_the_asked_proportion(tmp_path, ratio, draws, capsys):
    found = split(tmp_path, wrong_and_right(3, 7), ratio=ratio)
    assert found == [("one", [0, 1, 2], draws[0]), ("one", [3, 4, 5, 6, 7, 8, 9], draws[1])]
    assert (
        f"3 wrong and 7 right rows of one; an epoch has {draws[0]} and {draws[1]} of them\n" in capsys.readouterr().out
    )


def test_rows_that_the_file_does_not_have_come_as_without_it(tmp_path, capsys):
    unknown = prediction(5)
    del unknown["truth"]
    found = split(tmp_path, [*wrong_and_right(2, 3), unknown])
    assert found == [("one", [0, 1], 2), ("one", [2, 3, 4], 3), ("one", [5, 6, 7, 8, 9], 5)]
    assert "5 others come as without it" in capsys.readouterr().out


def test_of_several_sources_only_the_one_that_the_file_is_about_is_divided(tmp_path):
    found = split(tmp_path, wrong_and_right(2, 2, name="two"), sizes=(4, 4), draws=(2, 6))
    assert found == [("one", [0, 1, 2, 3], 2), ("two", [4, 5], 3), ("two", [6, 7], 3)]


@given(st.lists(st.sampled_from("wro"), min_size=2, max_size=30), st.integers(1, 60), st.floats(1e-3, 1e3))
def test_the_draws_are_those_of_the_source_together(kinds, draws, ratio):
    wrong, right = (torch.tensor([kind == which for kind in kinds]) for which in "wr")
    parts = _divide(Group("one", torch.arange(len(kinds)), draws), wrong, right, ratio)
    assert sum(part.draws for part in parts) == draws
    assert min(part.draws for part in parts) >= 0


def test_an_epoch_of_them_repeats_no_wrong_row_before_all_have_come(tmp_path):
    groups = [Group(name, torch.tensor(rows), draws) for name, rows, draws in split(tmp_path, wrong_and_right(3, 7))]
    batches = EpochBatches(10, 4, shuffle=True, groups=groups)
    drawn = Counter()
    for batches.epoch in range(3):
        drawn.update(row for batch in batches for *_, row in batch)
    assert {drawn[row] for row in range(3)} == {5}
    assert {drawn[row] for row in range(3, 10)} == {2, 3}


@pytest.mark.parametrize(
    ("predictions", "says"),
    [
        ([], "has none of the training rows"),
        ([prediction("elsewhere")], "has none of the training rows"),
        (wrong_and_right(0, 4), "all 4 rows are right"),
        (wrong_and_right(4, 0), "all 4 rows are wrong"),
        ([*wrong_and_right(1, 1), prediction(5, question="else")], "row 5 has another question there"),
        ([*wrong_and_right(1, 1), prediction(5, choices=["y", "x"])], "row 5 has another list of options there"),
        ([*wrong_and_right(1, 1), prediction(5, image="else.jpg")], "row 5 has another image there"),
        ([*wrong_and_right(1, 1), prediction(5, truth="B")], "row 5 has another answer there"),
        ([*wrong_and_right(1, 1), prediction(0)], "the id '0' is in row 1 too"),
        ({"a": 1}, "isn't a list of predictions"),
    ],
)
def test_predictions_that_do_not_fit_are_one_error(tmp_path, predictions, says):
    with pytest.raises(InputError) as caught:
        split(tmp_path, predictions)
    assert says in str(caught.value)


def test_a_file_that_is_not_that_of_its_info_is_refused(tmp_path):
    about = {"task": "vqacustom", "model": "m", "parameters": 1, "predictions_sha256": "0" * 64}
    (tmp_path / "predictions.info.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"doesn't match .*predictions\.info\.json"):
        split(tmp_path, wrong_and_right(3, 7))
