"""predictions.json and the file beside it: written, read back, and refused where they are wrong."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.errors import InputError
from beit3_vqa.output.predictions import info_file, read_info, read_predictions, write_info, write_predictions
from beit3_vqa.schema import Prediction, PredictionsInfo

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
PREDICTION = st.builds(
    Prediction,
    id=TEXT,
    question=TEXT,
    answer=TEXT,
    probabilities=st.dictionaries(TEXT, st.floats(0, 1)),
    truth=st.none() | TEXT,
    score=st.none() | st.floats(0, 1),
    weight=st.none() | st.floats(0, 1e12),
    problem=st.none() | TEXT,
    choices=st.lists(TEXT).map(tuple),
    image=TEXT,
)
INFO = PredictionsInfo("vqacustom", "beit3_tiny_patch8_32", 4, "c.pth", "val", "data", "images", "accuracy", 25.0)


@given(predictions=st.lists(PREDICTION, unique_by=lambda p: p.id, max_size=5))
def test_what_was_written_is_read(tmp_path_factory, predictions):
    path = tmp_path_factory.mktemp("out") / "predictions.json"
    assert read_predictions(write_predictions(predictions, path)) == predictions


def test_the_info_beside_it(tmp_path):
    path = tmp_path / "predictions_val.json"
    assert read_info(path) is None
    assert write_info(INFO, path) == info_file(path) == tmp_path / "predictions_val.info.json"
    assert read_info(path) == INFO
    info_file(path).write_text(json.dumps({**dataclasses.asdict(INFO), "parameters": -1}))
    with pytest.raises(InputError, match="parameters can't be used"):
        read_info(path)
    for name, number in (("parameters", 0), ("parameters", 10**400), ("chance", 10**400)):
        info_file(path).write_text(json.dumps({**dataclasses.asdict(INFO), name: number}))
        with pytest.raises(InputError, match=f"{name} can't be used"):
            read_info(path)
    info_file(path).write_text("[]")
    with pytest.raises(InputError, match="task, model or parameters"):
        read_info(path)


ROW = {"id": "1", "answer": "A", "probabilities": {"A": 1.0}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "isn't JSON"),
        ("{}", "isn't a list"),
        ("[1]", "row 1: isn't an object"),
        (json.dumps([{"id": "1"}]), "row 1: has no answer, no probabilities"),
        (json.dumps([ROW, ROW]), "row 2: the id '1' is in row 1 too"),
        (json.dumps([{**ROW, "id": 3}]), "row 1: id must be text"),
        (json.dumps([{**ROW, "probabilities": {"A": 1.5}}]), "probabilities must be an object of numbers"),
        (json.dumps([{**ROW, "probabilities": {"A": float("nan")}}]), "probabilities must be"),
        (json.dumps([{**ROW, "weight": 1e13}]), "weight must be a number from 0 to"),
        (json.dumps([{**ROW, "weight": 10**400}]), "weight must be a number from 0 to"),
        (json.dumps([{**ROW, "choices": "AB"}]), "choices must be a list of texts"),
    ],
)
def test_what_is_no_predictions_file(tmp_path, content, message):
    path = tmp_path / "predictions.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_predictions(path)


def test_the_nearest_name_is_told(tmp_path):
    (tmp_path / "predictions.json").write_text("[]")
    with pytest.raises(InputError, match=r"Did you mean 'predictions\.json'"):
        read_predictions(tmp_path / "prediction.json")
