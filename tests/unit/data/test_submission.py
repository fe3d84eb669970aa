"""A submission like a contest's sample: its header, its ids, its order; and an error for what a grader would refuse."""

import pandas as pd
import pytest

from beit3_vqa.data.submission import read_sample
from beit3_vqa.data.types import Prediction
from beit3_vqa.errors import InputError


def prediction(name, answer):
    return Prediction(id=name, question="Q?", answer=answer, probabilities={answer: 1.0})


ROWS = [prediction("b", "red, blue"), prediction("a", "초록"), prediction("007", '"x"')]


def test_columns_ids_and_order_are_those_of_the_sample(tmp_path):
    sample = tmp_path / "sample_submission.csv"
    sample.write_text("image,ID,Answer,note\n1.png,a,?,keep\n2.png,007,?,\n3.png,b,?,x\n", encoding="utf-8-sig")
    path = read_sample(sample).write(ROWS, tmp_path / "submission.csv")
    assert path.read_text(encoding="utf-8") == (
        'image,ID,Answer,note\n1.png,a,초록,keep\n2.png,007,"""x""",\n3.png,b,"red, blue",x\n'
    )


def test_a_second_column_of_any_name_takes_the_answers(tmp_path):
    (tmp_path / "s.csv").write_text("id,correct\nb,0\na,0\n007,0\n")
    read_sample(tmp_path / "s.csv").write(ROWS, tmp_path / "o.csv")
    assert (tmp_path / "o.csv").read_text(encoding="utf-8").splitlines()[:2] == ["id,correct", 'b,"red, blue"']


@pytest.mark.parametrize(("cell", "told"), [("0", True), ("a cat", True), ("", False), ("b", False)])
def test_letters_for_a_sample_that_has_something_else_are_told(tmp_path, caplog, cell, told):
    (tmp_path / "s.csv").write_text(f"id,answer\na,{cell}\n")
    answered = Prediction(id="a", question="Q?", answer="B", probabilities={"B": 1.0}, choices=("a cat", "a dog"))
    read_sample(tmp_path / "s.csv").write([answered], tmp_path / "o.csv")
    assert ("aren't letters" in caplog.text) == told


def test_an_answer_with_a_lone_carriage_return_stays_one_row(tmp_path):
    """Python before 3.13 writes it without quotes; readers then see two rows."""
    (tmp_path / "s.csv").write_text("id,correct\na,0\n")
    read_sample(tmp_path / "s.csv").write([prediction("a", "x\ry")], tmp_path / "o.csv")
    assert pd.read_csv(tmp_path / "o.csv").to_dict("records") == [{"id": "a", "correct": "x\ry"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ID,answer\na,?\n", r"not in it \(2\): 'b', '007'"),
        ("ID,answer\na,?\nb,?\n007,?\nx,?\n", r"in it alone \(1\): 'x'"),
        ("ID,answer\na,?\nb,?\n007,?\na,?\n", r"twice in it \(1\): 'a'"),
        ("ID,answer\na,?\nb,?\n7,?\n", r"not in it \(1\): '007'"),
        ("x,y\na,?\n", "needs one column of ids"),
        ("ID,answer\n", "no rows"),
        ("ID,answer\na\n", "1 cells where the header has 2"),
    ],
)
def test_a_sample_that_a_grader_would_not_take_is_an_error(tmp_path, text, message):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_sample(tmp_path / "s.csv").write(ROWS, tmp_path / "o.csv")
    assert not (tmp_path / "o.csv").exists()
