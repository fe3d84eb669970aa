"""predictions.json and the file beside it: written, read back, and refused where they are wrong."""

import csv
import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.errors import InputError
from beit3_vqa.output.predictions import info_file, read_info, read_predictions, write_info, write_predictions
from beit3_vqa.schema import Prediction, PredictionsInfo
from tests.faults.processes import ENVIRONMENT, ROOT

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


# Results of checkpoint a.pth, whose answers are all A, are replaced by b.pth's, and the writer is killed before the
# first, second, ... time that it renames or deletes something: each in a process and a folder of its own.
KILLED_WHILE_WRITING = """
import dataclasses, os, pathlib, shutil, signal, sys
from beit3_vqa.config import RunConfig
from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.schema import EvalResult, Prediction, PredictionsInfo
from beit3_vqa.tasks.vqa import VQACustom

def write(folder, letter):
    rows = [Prediction(f"q{n}", "?", letter, {"A": 0.5, "B": 0.5}, "A", float(letter == "A")) for n in range(3)]
    info = PredictionsInfo("vqacustom", "beit3_tiny_patch8_32", 4, f"{letter}.pth", "test")
    metrics = {"answer": letter}
    blind = tuple(rows) if letter == "A" else ()
    VQACustom(AnswerTable(["A", "B"]), RunConfig()).write_results(EvalResult(metrics, rows, blind), info, folder)

root = pathlib.Path(sys.argv[1])
write(root / "old", "A")
if sys.argv[2] == "0.1.0":
    old = '{"task": "vqacustom", "model": "m", "parameters": 1, "checkpoint": "A.pth"}'
    (root / "old" / "predictions.info.json").write_text(old)
for place in range(50):
    shutil.copytree(root / "old", root / str(place))
    child = os.fork()
    if not child:
        left = place
        def counted(plain):
            def method(*arguments, **more):
                global left
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return plain(*arguments, **more)
            return method
        for name in ("replace", "unlink"):
            setattr(pathlib.Path, name, counted(getattr(pathlib.Path, name)))
        write(root / str(place), "B")
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print(place)
        break
"""


@pytest.mark.parametrize("before", ["now", "0.1.0"])
def test_a_kill_between_result_files_leaves_none_under_anothers_name(tmp_path, before):
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path), before]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    places = int(done.stdout.split()[-1])
    assert places >= 12  # temporaries of five files, two to be deleted, five to be renamed
    refused = 0
    for place in range(places + 1):
        folder = tmp_path / str(place)
        path = folder / "predictions.json"
        info = read_info(path)
        answers = {row["answer"] for row in json.loads(path.read_text())}
        for name in ("metrics.json", "submission.csv", "submit_vqacustom_test.json", "predictions_blind.json"):
            if (folder / name).exists():  # it is of the predictions beside it
                text = (folder / name).read_text()
                (answer,) = answers
                assert f'"{answer}"' in text or f",{answer}" in text
        if answers == {info.checkpoint.removesuffix(".pth")}:
            assert {row.answer for row in read_predictions(path, info)} == answers
        else:
            refused += 1
            with pytest.raises(InputError, match="killed while it wrote"):
                read_predictions(path, info)
    assert refused == 1  # between the two renames
    last = tmp_path / str(places)
    assert not (last / "predictions_blind.json").exists()
    assert read_info(last / "predictions.json").checkpoint == "B.pth"
    with (last / "submission.csv").open(newline="") as file:
        assert [row["answer"] for row in csv.DictReader(file)] == ["B"] * 3
    assert not list(last.glob(".*"))
