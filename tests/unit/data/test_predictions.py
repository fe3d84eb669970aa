"""predictions.json and the file beside it: written, read back, and refused where they are wrong."""

import csv
import dataclasses
import itertools
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.apps.ensemble.compare import vote_all
from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.dataset import build_question
from beit3_vqa.data.predictions import (
    info_file,
    plain_score,
    read_info,
    read_predictions,
    write_info,
    write_predictions,
)
from beit3_vqa.data.types import Batch, Prediction, PredictionsInfo
from beit3_vqa.errors import InputError
from beit3_vqa.metrics.vote import VOTES
from beit3_vqa.tasks.vqa import VQACustom
from tests.helpers.ensembles import simulated
from tests.helpers.options import build_config
from tests.helpers.processes import ENVIRONMENT, ROOT

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@st.composite
def prediction(draw):
    """Any texts and numbers that don't contradict each other."""
    choices = draw(st.lists(TEXT, max_size=9))
    names = st.sampled_from("ABCDEFGHI"[: len(choices)]) if choices else TEXT
    probabilities = draw(st.dictionaries(names, st.floats(0, 1), min_size=bool(choices)))
    answer = max(probabilities, key=probabilities.get) if probabilities else draw(TEXT)
    truth = draw(st.none() | names)
    told = draw(st.none() | st.dictionaries(names, st.floats(0, 1))) if truth is not None else None
    found = Prediction(
        draw(TEXT), draw(TEXT), answer, probabilities, truth, None, draw(st.none() | st.floats(0, 1e12)),
        draw(st.none() | TEXT), None, tuple(choices), draw(TEXT), told,
    )  # fmt: skip
    return found if truth is None else dataclasses.replace(found, score=plain_score(found))


INFO = PredictionsInfo("vqacustom", "beit3_tiny_patch8_32", 4, "c.pth", "val", "data", "images", "accuracy", 25.0)


@given(predictions=st.lists(prediction(), unique_by=lambda p: p.id, max_size=5))
def test_what_was_written_is_read(tmp_path_factory, predictions):
    path = tmp_path_factory.mktemp("out") / "predictions.json"
    assert read_predictions(write_predictions(predictions, path)) == predictions


LOGITS = st.lists(st.sampled_from([-60.0, -1.0, 0.0, 0.1, 0.1000001, 20.0, 60.0]), min_size=7, max_size=7)


@pytest.mark.parametrize("loss", ["ce", "bce"])
@given(
    logits=LOGITS,
    temperature=st.sampled_from([0.01, 1.0, 1000.0]),
    truth=st.none() | st.sampled_from(["yes", "Yes!", "", "not in the table", "teal"]),
    scores=st.none() | st.lists(st.sampled_from([0.3, 0.6, 0.9, 1.0]), max_size=3),
    letters=st.booleans(),
)
def test_whatever_a_task_answers_can_be_read(tmp_path_factory, loss, logits, temperature, truth, scores, letters):
    """Ties, answers that were annotated several times, an empty answer, and options of any temperature."""
    table = AnswerTable("ABCDEFG" if letters else ["yes", "no", "", "red", "blue", "green", "teal"])
    task = VQACustom(table, build_config({"vqa_loss": loss}))
    row = {"id": "q1", "image_path": "x", "question": "?"} | ({} if truth is None else {"answer": truth})
    if scores is not None:
        row |= {"labels": list(range(len(scores))), "scores": scores}
    example = build_question(row, table)
    example = dataclasses.replace(example, choices=tuple("tuvwxyz") if letters else ())
    (found,) = task.predictions(torch.tensor([logits]), Batch({}, (example,)), temperature)
    path = write_predictions([found], tmp_path_factory.getbasetemp() / f"{loss}.json")
    assert read_predictions(path) == [dataclasses.replace(found, loss=None)]


@pytest.mark.parametrize("vote", VOTES)
@pytest.mark.parametrize("open_ended", [False, True])
@pytest.mark.parametrize("told", [None, {"A": 1.0, "B": 0.6}])
def test_whatever_an_ensemble_answers_can_be_read(tmp_path, capsys, vote, open_ended, told):
    """A hard vote's answer need not be any member's likeliest, nor be held by all; its shares are votes."""

    def member(p):
        kept = dict(sorted(p.probabilities.items(), key=lambda item: -item[1])[: 2 if open_ended else 4])
        choices = () if open_ended else p.choices
        p = dataclasses.replace(p, probabilities=kept, choices=choices, answer_scores=told)
        return dataclasses.replace(p, score=plain_score(p))

    questions = simulated(200, [0.5, 0.6, 0.7], seed=1)
    questions = [dataclasses.replace(q, answers=tuple(map(member, q.answers))) for q in questions]
    found = vote_all(questions, vote)
    if told is None:
        assert [p.score for p in found] == [float(p.answer == p.truth) for p in found]
    else:
        assert {p.score for p in found} == {0.0, 0.6, 1.0}
    assert read_predictions(write_predictions(found, tmp_path / "predictions.json")) == found
    assert not capsys.readouterr().out


def test_the_info_beside_predictions_is_read_back_and_checked(tmp_path):
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
SECOND = {"id": "2", "answer": "B", "probabilities": {"A": 0.3, "B": 0.7}, "choices": ["x", "y"]}


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
        (json.dumps([ROW, SECOND | {"answer": "C"}]), r"row 2 \('2'\): 'C' is none of its 2 options, A, B"),
        (json.dumps([ROW, SECOND | {"probabilities": {"A": 1.0, "C": 0.0}}]), "row 2 .*: 'C' is none of its 2 options"),
        (json.dumps([SECOND | {"answer": "A"}]), "row 1 .*: answers 'A', but 'B' has the highest probability"),
        (json.dumps([SECOND | {"answer": "A", "choices": []}]), "but 'B' has the highest probability"),
        (json.dumps([SECOND | {"answer": "no", "choices": []}]), "but 'B' has the highest probability"),
        (
            json.dumps([ROW, SECOND | {"truth": "A", "score": 1.0}]),
            "row 2 .*: has the score 1, but its answer 'B' scores",
        ),
        (
            json.dumps([SECOND | {"truth": "B", "score": 0.0}]),
            r"has the score 0, but its answer 'B' scores 1 \(truth: 'B'\)",
        ),
        (json.dumps([SECOND | {"score": 1.0}]), "has the score 1, but no truth"),
        (json.dumps([SECOND | {"score": 1.0, "choices": []}]), "has the score 1, but no truth"),
        (
            json.dumps([SECOND | {"truth": "A", "score": 1.0, "answer_scores": {"A": 1, "B": 0.3}}]),
            r"'B' scores 0\.3 \(truth: 'A'\)",
        ),
        (json.dumps([SECOND | {"answer_scores": {"A": 2}}]), "answer_scores must be an object of numbers"),
    ],
)
def test_files_that_are_no_predictions_are_refused(tmp_path, content, message):
    path = tmp_path / "predictions.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_predictions(path)


def test_scores_are_computed_where_the_truth_is_there(tmp_path):
    path = tmp_path / "predictions.json"
    rows = [SECOND | {"truth": "B"}, SECOND | {"id": "3", "truth": "A"}]
    rows += [{"id": "4", "answer": "The cat.", "truth": "cat", "probabilities": {}}]
    path.write_text(json.dumps(rows))
    assert [p.score for p in read_predictions(path)] == [1.0, 0.0, 1.0]


def test_scores_of_several_annotators_that_0_1_0_wrote_are_taken_and_said(tmp_path, capsys):
    """It didn't write what other answers score; "no" may be as right as "yes"."""
    path = tmp_path / "predictions.json"
    rows = [{"id": str(n), "answer": "no", "truth": "yes", "score": score, "probabilities": {"no": 0.4, "yes": 0.3}}
            for n, score in enumerate((1.0, 0.6, 0.0))]  # fmt: skip
    path.write_text(json.dumps(rows))
    assert [p.score for p in read_predictions(path)] == [1.0, 0.6, 0.0]
    assert "they are taken unchecked" in capsys.readouterr().out
    path.write_text(json.dumps([*rows, rows[0] | {"id": "9", "answer": "yes", "probabilities": {}, "score": 0.0}]))
    with pytest.raises(InputError, match=r"row 4 .*'yes' scores 1"):
        read_predictions(path)
    path.write_text(json.dumps(rows[:1]))  # nothing shows that there were several
    with pytest.raises(InputError, match=r"row 1 .*has the score 1, but its answer 'no' scores 0 \(truth: 'yes'\)"):
        read_predictions(path)


def test_a_missing_file_is_an_error_that_names_the_nearest(tmp_path):
    (tmp_path / "predictions.json").write_text("[]")
    with pytest.raises(InputError, match=r"Did you mean 'predictions\.json'"):
        read_predictions(tmp_path / "prediction.json")


# Results of checkpoint a.pth, whose answers are all A, are replaced by b.pth's, and the writer is killed before the
# first, second, ... time that it renames or deletes something: each in a process and a folder of its own.
KILLED_WHILE_WRITING = """
import dataclasses, os, pathlib, shutil, signal, sys
from beit3_vqa.config.config import RunConfig
from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.types import EvalResult, Prediction, PredictionsInfo
from beit3_vqa.tasks.vqa import VQACustom

def write(folder, letter):
    rows = [Prediction(f"q{n}", "?", letter, {"A": 0.5, "B": 0.5}, "A", float(letter == "A")) for n in range(3)]
    info = PredictionsInfo("vqacustom", "beit3_tiny_patch8_32", 4, f"{letter}.pth", "test")
    metrics = {"answer": letter}
    blind = tuple(rows) if letter == "A" else ()
    VQACustom(AnswerTable(["A", "B"]), RunConfig()).write_results(EvalResult(metrics, rows, blind=blind), info, folder)

root = pathlib.Path(sys.argv[1])
write(root / "now", "A")
shutil.copytree(root / "now", root / "0.1.0")
old = '{"task": "vqacustom", "model": "m", "parameters": 1, "checkpoint": "A.pth"}'
(root / "0.1.0" / "predictions.info.json").write_text(old)
for number in range(100):
    place, before = number // 2, ("now", "0.1.0")[number % 2]
    folder = root / f"{before} {place}"
    shutil.copytree(root / before, folder)
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
        write(folder, "B")
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0 and before == "0.1.0":
        print(place)
        break
"""


def test_a_kill_between_result_files_leaves_none_under_anothers_name(tmp_path):
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    places = int(done.stdout.split()[-1])
    assert places >= 12  # temporaries of five files, two to be deleted, five to be renamed
    refused = 0
    for place, before in itertools.product(range(places + 1), ("now", "0.1.0")):
        folder = tmp_path / f"{before} {place}"
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
    assert refused == 2  # one in each series, between the two renames
    last = tmp_path / f"0.1.0 {places}"
    assert not (last / "predictions_blind.json").exists()
    assert read_info(last / "predictions.json").checkpoint == "B.pth"
    with (last / "submission.csv").open(newline="") as file:
        assert [row["answer"] for row in csv.DictReader(file)] == ["B"] * 3
    assert not list(last.glob(".*"))
