"""Somebody else's output: which file it is, which columns mean what, and what each row answers."""

import json
import math
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.data.answers_csv import KnownAnswer, read_answers
from beit3_vqa.data.given_answers import (
    group_rotations,
    is_given_answers,
    read_given,
    read_submission,
    understand,
)
from beit3_vqa.errors import InputError

ANIMALS = ("a cat", "a dog", "a cow")


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def known(*ids, choices=ANIMALS, answer="A"):
    return [KnownAnswer(name, answer, None, choices, "a.csv") for name in ids]


def read(path, content, *, said="", choices=ANIMALS, ids=("1", "2")):
    rows = understand(read_given(write(path, content), said=said), known(*ids, choices=choices), path)
    return [(row.given.id, row.reading.answer, row.reading.way) for row in rows]


@pytest.mark.parametrize(
    ("name", "content", "is_table"),
    [
        ("s.csv", "ID,answer\n1,A\n", True),
        ("s.jsonl", '{"id": 1, "text": "A"}\n{"id": 2, "text": "B"}', True),
        ("s.json", '{"id": 1, "text": "A"}\n{"id": 2, "text": "B"}', True),
        ("s.json", '[{"question_id": 1, "answer": "A"}]', True),
        ("s.json", '\ufeff [{"question_id": 1, "probabilities": [0.1, 0.9]}]', True),
        ("p.json", '[{"id": "1", "answer": "A", "probabilities": {"A": 1}}]', False),
        ("p.info.json", '{"task": "x",\n "model": "y"}', False),
        ("p.json", "[", False),
        ("p.json", "[]", False),
        ("p.json", "ID,answer", False),
        ("p.json", "[3]", False),
        ("p.json", "[" * 100_000, False),
        ("p.csv", "", False),
    ],
)
def test_a_file_is_a_table_or_our_predictions_by_its_content(tmp_path, name, content, is_table):
    assert is_given_answers(write(tmp_path / name, content)) == is_table


def test_what_is_no_file_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "none.csv", tmp_path, tmp_path / "pipe.csv", Path("x" * 5000), Path("a\0b.csv")):
        assert not is_given_answers(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.csv", "ID,answer\n1,A\n2,b\n"),
        ("s.csv", "sep=;\nquestion_id;Prediction\n1;A\n2;B\n"),
        ("s.tsv", "qid\tresponse\n1\tA\n2\tThe answer is B.\n"),
        ("s.jsonl", '{"id": 1, "text": "A"}\n{"id": 2, "text": "(b) a dog"}\n'),
        ("s.json", '[{"question_id": "1", "generated_text": "A cat."}, {"question_id": "2", "generated_text": "B"}]'),
        ("s.csv", "id,A,B,C\n1,-0.1,-3,-4\n2,-9,-0.2,-inf\n"),
        ("s.csv", "id,logprob_a,logprob_b,logprob_c\n1,-0.1,-3,-4\n2,-9,-0.2,-5\n"),
        ("s.csv", "id,p_A,p_B,p_C\n1,0.8,0.1,0.1\n2,0.1,0.8,0.1\n"),
        (
            "s.csv",
            "id,answer,probability,p_A,p_B,p_C\n1,A,0.8,0.8,0.1,0.1\n2,B,0.8,0.1,0.8,0.1\n",
        ),
        ("s.csv", "id,A,B,C,p_A,p_B,p_C\n1,a cat,a dog,a cow,1,0,0\n2,a dog,a cat,a cow,1,0,0\n"),
        ("s.jsonl", '{"id": 1, "logprobs": [-1, -Infinity, -2]}\n{"id": 2, "logprobs": [-Infinity, -1, -3]}\n'),
        ("s.jsonl", '{"id": 1, "text": "A", "why": "\u2028"}\n{"id": 2, "text": "B"}\n'),
        ("s.jsonl", '{"id": 1, "logprobs": {"A": -1, " b": -2, "C": -3}}\n{"id": 2, "logprobs": [-2, -1, -3]}\n'),
        (
            "s.jsonl",
            '{"id": 1, "scores": {"a cat": 3, "a dog": 2, "a cow": 1, "x": 9}}\n{"id": 2, "scores": [1, 2, 0]}',
        ),
        ("s.csv", "ID,response,A,B,C\n1,B,a dog,a cat,a cow\n2,A,a dog,a cow,a cat\n"),  # as they were shown
        (
            "s.csv",
            'ID,response,options\n1,B,"[""a dog"", ""a cat"", ""a cow""]"\n'
            '2,a dog,"[""a dog"", ""a cow"", ""a cat""]"\n',
        ),
    ],
)
def test_every_kind_of_output_is_read(tmp_path, name, content):
    assert [row[:2] for row in read(tmp_path / name, content)] == [("1", "A"), ("2", "B")]


@pytest.mark.parametrize("kind", ["xlsx", "parquet"])
def test_spreadsheets_and_parquet_are_read(tmp_path, kind):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"ID": ["1", "2"], "answer": ["A", "a dog"]})
    path = tmp_path / f"s.{kind}"
    try:
        frame.to_excel(path, index=False) if kind == "xlsx" else frame.to_parquet(path)
    except ImportError:
        pytest.skip("no package that writes it")
    rows = understand(read_given(path), known("1", "2"), path)
    assert [row.reading.answer for row in rows] == ["A", "B"]


@pytest.mark.parametrize(
    "numbers",
    [
        "NaN,-1,-2",
        "-1,,-2",
        "-1,-1,-2",  # two are likeliest
        "-inf,-inf,-inf",
        "inf,0,1",
        "-1,-2,many",
        "1_0,2,3",
    ],
)
def test_numbers_that_decide_nothing_are_not_read(tmp_path, numbers):
    assert read(tmp_path / "s.csv", f"id,A,B,C\n1,{numbers}\n2,1,2,0\n") == [
        ("1", "", "not read"),
        ("2", "B", "likeliest option"),
    ]


@pytest.mark.parametrize(
    "value",
    [
        '{"A": -1, "B": -2}',
        '{"A": -1, "a": -2, "B": -3, "C": -4}',
        "[1, 2]",
        "[1, 2, 3, 4]",
        '"A"',
        "null",
        "[[1], 2, 3]",
    ]
    + ['{"A": NaN, "B": 1, "C": 0}', '{"A": {"B": 1}, "B": 2, "C": 0}', "[" + ",".join("1" * 30) + "]"],
)
def test_numbers_for_other_options_than_the_rows_are_not_read(tmp_path, value):
    content = f'{{"id": 1, "logprobs": {value}}}\n{{"id": 2, "logprobs": [1, 2, 0]}}\n'
    assert [row[1] for row in read(tmp_path / "s.jsonl", content)] == ["", "B"]


def test_probabilities_stay_and_logs_become_probabilities(tmp_path):
    path = write(tmp_path / "s.csv", "id,A,B,C\n1,0.7,0.2,0.1\n2,0.1,0.2,0.7\n")
    (first, _) = understand(read_given(path), known("1", "2"), path)
    assert first.prediction.probabilities == pytest.approx({"A": 0.7, "B": 0.2, "C": 0.1})
    path = write(tmp_path / "s.csv", "id,A,B,C\n1,-1,-2,-3\n2,0.1,0.2,0.7\n")
    (first, _) = understand(read_given(path), known("1", "2"), path)
    total = sum(math.exp(-n) for n in (1, 2, 3))
    assert first.prediction.probabilities == pytest.approx(
        {x: math.exp(-n) / total for x, n in zip("ABC", (1, 2, 3), strict=True)}
    )


@pytest.mark.parametrize(
    "content",
    [
        "id,answer,A,B,C,p_A,p_B,p_C\n1,a dog,a cat,a dog,a cow,0.1,0.8,0.1\n",
        "id,answer,p_A,p_B,p_C\n1,I can't tell,0.1,0.8,0.1\n",
        "id,answer,p_A,p_B,p_C\n1,,0.1,0.8,0.1\n",
        '[{"id": 1, "text": "B", "logprobs": [-0.02]}]',
        "id,answer,probs,logits\n1,B,x,y\n",
    ],
)
def test_an_answer_that_the_numbers_do_not_contradict_is_not_asked_about(tmp_path, content):
    path = write(tmp_path / "s.csv", content)
    (row,) = understand(read_given(path), known("1"), path)
    assert row.given.text is not None


def test_a_truth_that_came_along_is_not_the_answer_and_texts_that_did_are_not_the_numbers(tmp_path):
    content = "id,gt,A,B,C,p_A,p_B,p_C\n1,B,a dog,a cat,a cow,0.7,0.2,0.1\n2,B,a dog,a cow,a cat,0.1,0.1,0.8\n"
    for said, answers in (("numbers=p_A", ["B", "A"]), ("answer=gt", ["A", "C"])):
        assert [row[1] for row in read(tmp_path / "s.csv", content, said=said)] == answers
    (first, _) = understand(read_given(tmp_path / "s.csv", said="numbers=p_B"), known("1", "2"), tmp_path / "s.csv")
    assert first.prediction.probabilities == {}  # they are of the letters that were shown


def test_rows_with_fewer_options_need_no_more_numbers(tmp_path):
    path = write(tmp_path / "s.csv", "id,A,B,C\n1,-1,-2,\n2,-1,-2,-0.5\n")
    answers = [*known("1", choices=ANIMALS[:2]), *known("2")]
    assert [row.reading.answer for row in understand(read_given(path), answers, path)] == ["A", "C"]


def test_open_answers_are_taken_as_they_are(tmp_path):
    rows = read_given(write(tmp_path / "s.csv", "ID,answer\n1,two dogs\n2, \n"))
    found = understand(rows, known("1", "2", choices=(), answer="two"), tmp_path / "s.csv")
    assert [(row.reading.answer, row.reading.way) for row in found] == [("two dogs", "open answer"), ("", "empty")]


def test_rotations_are_told_by_a_column_or_by_the_ids(tmp_path):
    for content in ("id,rotation,answer\n1,1,A\n1,0,B\n2,0,C\n2,1,A\n", "id,answer\n1#1,A\n1#0,B\n2#0,C\n2#1,A\n"):
        path = write(tmp_path / "s.csv", content)
        rows = understand(read_given(path), known("1", "2"), path)
        assert [[rows[place].reading.answer for place in group] for group in group_rotations(rows)] == [
            ["B", "A"],
            ["C", "A"],
        ]


def test_an_id_with_a_number_of_its_own_is_no_rotation(tmp_path):
    path = write(tmp_path / "s.csv", "id,answer\n1#0,A\n1#1,B\n")
    rows = understand(read_given(path), known("1#0", "1#1"), path)
    assert [len(group) for group in group_rotations(rows)] == [1, 1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("ID,answer\n1,A\n1,B\n", "s.csv:3: the id '1' is at .*s.csv:2 too"),
        ("ID,rotation,answer\n1,1,A\n1,1,B\n", "the id '1' with rotation 1 is at"),
        ("ID,rotation,answer\n1,x,A\n", "s.csv:2: rotation must be 0, 1, 2"),
        ("ID,answer\n,A\n", "s.csv:2: has no id"),
        ("ID,answer\n1,A,B\n", "s.csv:2: 3 cells where the header has 2"),
        ("ID,answer\n", "no rows"),
        ("name,answer\n1,A\n", "no column for an id was recognised.*--columns id=NAME"),
        ("ID,x\n1,A\n", "no column for an answer, or a number for each option"),
        ("ID,answer,response\n1,A,B\n", "'answer' and 'response' may both be the answer.*--columns answer=answer"),
        (
            "ID,gt,p_A,p_B\n1,A,0,1\n",
            "s.csv:2: 'gt' isn't the option of the largest .*'p_A'.*columns answer=gt.*numbers=p_A",
        ),
        ("ID,gt,p_A,p_B,p_C\n1,a cat,0,1,0\n", "s.csv:2: 'gt' isn't the option of the largest"),
        ("ID,answer,A,B,C\n1,A,x,y,z\n", "its options aren't those of the known answers"),
        ("ID\0,answer\n1,A\n", "NUL"),
        ('ID,answer\n1,"' + "x" * 1_000_001 + '"\n', "more than 1,000,000 characters"),
        ('ID,answer\n1,"A\n', "never closes"),
        ('[{"id": 1, "answer": "A"}, {"id": ' + "[" * 3000 + "]" * 3000 + ', "answer": "B"}]', ""),
    ],
)
def test_unusable_rows_are_one_clear_error(tmp_path, content, says):
    path = write(tmp_path / "s.csv", content)
    with pytest.raises(InputError, match=f"(?s){says}"):
        understand(read_given(path), known("1"), path)


def test_rotated_options_need_those_of_the_known_answers(tmp_path):
    path = write(tmp_path / "s.csv", "ID,rotation,answer,A,B\n1,0,A,x,y\n1,1,A,y,x\n")
    with pytest.raises(InputError, match="--answers needs the columns A, B"):
        understand(read_given(path), known("1", choices=()), path)


def test_questions_in_different_rotations_are_refused(tmp_path):
    path = write(tmp_path / "s.csv", "ID,rotation,answer\n1,0,A\n1,1,A\n2,0,A\n")
    with pytest.raises(InputError, match=r"other rotations than '1' in 0, 1:\n  '2': 0\n"):
        group_rotations(understand(read_given(path), known("1", "2"), path))


def test_columns_are_named_by_hand(tmp_path):
    assert read(tmp_path / "s.csv", "n,answer,said\n1,C,A\n2,C,B\n", said="id=n, answer=Said") == [
        ("1", "A", "letter"),
        ("2", "B", "letter"),
    ]
    for said in ("id=x", "answers=said", "id", "id="):
        with pytest.raises(InputError, match="write id=NAME,answer=NAME"):
            read(tmp_path / "s.csv", "n,answer,said\n1,C,A\n", said=said)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from(["ID", "answer", "A", "B", ",", "\n", '"', "x", "rotation", "#1", "nan", "logprobs"])
        ).map("".join),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(st.sampled_from(["id", "answer", "logprobs", "options", "A", "B"]), inner, max_size=5)
            ),
            max_leaves=15,
        ).map(json.dumps),
    )
)
def test_any_file_is_read_or_one_clear_error(tmp_path_factory, content):
    path = write(tmp_path_factory.getbasetemp() / "any.csv", content)
    is_given_answers(path)
    for read_file in (read_submission, read_answers):
        with suppress(InputError):
            read_file(path)
    with suppress(InputError):
        rows = understand(read_given(path), known("1", "x"), path)
        assert all(row.reading.answer in {"", *"ABC"} for row in rows if not row.given.choices)
        assert sum(map(len, group_rotations(rows))) == len(rows)
