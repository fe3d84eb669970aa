"""Members that don't answer the same questions are told apart, by file and id."""

import dataclasses

import pytest

from beit3_vqa.apps.ensemble.vote import align_predictions
from beit3_vqa.errors import InputError
from tests.helpers.ensembles import answered


def some(*ids, **changes):
    return [dataclasses.replace(answered(i, "A", A=0.5, B=0.5), **changes) for i in ids]


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (some("1"), r"two.json lacks 2 ids: '2', '3'"),
        (some("1", "2", "3", "4"), r"two.json has beyond it 1 id: '4'"),
        (some(*map(str, range(4, 20))), r"(?s)lacks 3 ids.*16 ids: '10', '11', '12', '13', '14', and 11 more.*folds"),
        ([], "lacks 3 ids"),
        (some("1", "2", "3", question="Who?"), r"row '1': its question is 'Who\?' in two.json, 'What\?' in one.json"),
        (some("1", "2", "3", choices=("b", "a")), r"row '1': its choices is \('b', 'a'\) in two.json"),
        (some("1", "2", "3", truth="B"), "its truth is 'B' in two.json, 'A' in one.json"),
        (some("1", "2", "3", probabilities={"A": 0.5, "B": 0.2}), "sum to 0.700, not to 1"),
        (some("1", "2", "3", probabilities={"A": 0.9, "B": 0.9}), "sum to 1.800"),
        (some("1", "2", "3", probabilities={"A": 0.5, "B": 0.2, "C": 0.3}), "two.json has probabilities of 'A, B, C'"),
        (some("1", "2", "3", probabilities={}), "two.json has no probabilities"),
    ],
)
def test_members_that_answer_different_questions_are_refused(second, says):
    with pytest.raises(InputError, match=says):
        align_predictions(["one.json", "two.json"], [some("1", "2", "3"), second])


def test_questions_come_in_the_first_members_order():
    questions = align_predictions(["one", "two"], [some("2", "1", "3"), some("1", "2", "3")])
    assert [[p.id for p in question.answers] for question in questions] == [["2", "2"], ["1", "1"], ["3", "3"]]


def test_a_member_without_question_truth_and_options_does_not_contradict():
    align_predictions(["one", "two"], [some("1"), some("1", truth=None, score=None, choices=(), question="")])


def test_members_without_predictions_are_refused():
    with pytest.raises(InputError, match="holds no predictions"):
        align_predictions(["one", "two"], [[], []])
