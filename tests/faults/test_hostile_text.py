"""Text from data in the files that a run writes: exact for a program that reads them, harmless where they are shown."""

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.data.predictions import (
    is_formula,
    write_metrics,
    write_predictions,
    write_submission,
    write_upstream_results,
)
from beit3_vqa.data.types import Prediction
from beit3_vqa.engine.loggers import LoggedRun, Loggers
from beit3_vqa.engine.logging import RunLog
from beit3_vqa.errors import CONTROL

HOSTILE = "\x1b[2J\x9b31m\u202e<script>\r\n=1+1\x7f"
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


def predictions(*pairs):
    return [Prediction(id=name, question=HOSTILE, answer=answer, probabilities={answer: 1.0}) for name, answer in pairs]


@given(st.lists(st.tuples(TEXT, TEXT), max_size=5))
def test_a_submission_has_ids_and_answers_as_they_are(tmp_path_factory, pairs):
    path = write_submission(predictions(*pairs), tmp_path_factory.mktemp("csv") / "submission.csv")
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["ID", "answer"], *map(list, pairs)]


def test_formulas_in_a_submission_are_reported_and_not_changed(tmp_path, capsys):
    rows = predictions(("=HYPERLINK(1)", "A"), ("TEST_1", "@SUM(1)"), ("TEST_2", "-3"), ("-", "b"))
    text = write_submission(rows, tmp_path / "s.csv").read_text()
    assert text == "ID,answer\n=HYPERLINK(1),A\nTEST_1,@SUM(1)\nTEST_2,-3\n-,b\n"
    assert "see formulas in 3 rows" in capsys.readouterr().out
    write_submission(predictions(("TEST_1", "A")), tmp_path / "s.csv")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ["=1+1", " =1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "-", "+a"])
def test_text_that_a_spreadsheet_calculates_is_a_formula(text):
    assert is_formula(text)


@pytest.mark.parametrize("text", ["A", "-3", "+1,000.5", "-5%", "a=1", "", "3-4", "x@y"])
def test_text_that_a_spreadsheet_shows_is_no_formula(text):
    assert not is_formula(text)


def test_lines_of_the_log_that_are_not_ours_are_dropped(tmp_path):
    lines = ['{"epoch": 0}', '{"epoch": Infinity}', "[" * 100_000, '{"epoch": 1}']
    (tmp_path / "log.txt").write_text("\n".join(lines))
    log = RunLog(tmp_path, Loggers((), LoggedRun(tmp_path, tmp_path, {})), done=1)
    assert log.lines == ['{"epoch": 0}']


def test_json_is_exact_and_has_no_control_characters(tmp_path):
    rows = predictions((HOSTILE, HOSTILE), ("사진 é 🙂", "b"))
    files = [
        write_predictions(rows, tmp_path / "p.json"),
        write_upstream_results(rows, tmp_path / "u.json"),
        write_metrics({"answers": {HOSTILE: 1}}, tmp_path / "m.json"),
    ]
    log = RunLog(tmp_path, Loggers((), LoggedRun(tmp_path, tmp_path, {})))
    log.add({"epoch": 0, "loss": float("nan")}, {"answers": {HOSTILE: 1}})
    for path in (*files, tmp_path / "log.txt"):
        assert not CONTROL.search(path.read_text(encoding="utf-8"))
    assert [row["id"] for row in json.loads(files[0].read_text())] == [HOSTILE, "사진 é 🙂"]
    assert "사진 é 🙂" in files[0].read_text()
    assert json.loads(files[1].read_text())[0] == {"question_id": HOSTILE, "answer": HOSTILE}
    assert json.loads((tmp_path / "log.txt").read_text())["val_answers"] == {HOSTILE: 1}
