"""Votes by table, and what must hold whatever the table."""

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.apps.ensemble.vote import Question, absent_answers, align_predictions, vote_one
from beit3_vqa.data.types import Prediction
from beit3_vqa.errors import InputError
from beit3_vqa.metrics.vote import equal_weights
from tests.helpers.ensembles import answered, simulated


def shares(*values):
    return dict(zip("ABCD", values, strict=False))


@pytest.mark.parametrize(
    ("vote", "weights", "members", "answer"),
    [
        # the majority, however sure the others are
        ("hard", None, [shares(0.4, 0.3, 0.3), shares(0.4, 0.3, 0.3), shares(0, 0, 1)], "A"),
        ("soft", None, [shares(0.4, 0.3, 0.3), shares(0.4, 0.3, 0.3), shares(0, 0, 1)], "C"),
        # two votes each: A has 0.35 on average, B 0.4
        ("hard", None, [shares(0.6, 0.4), shares(0.6, 0.4), shares(0.1, 0.9), shares(0.1, 0.9)], "B"),
        ("hard", None, [shares(0.6, 0.4), shares(0.6, 0.4), shares(0.45, 0.55), shares(0.45, 0.55)], "A"),
        # a tie of all three: the highest mean, C
        ("hard", None, [shares(0.5, 0.1, 0.4), shares(0.1, 0.5, 0.4), shares(0.1, 0.1, 0.8)], "C"),
        # a tie in both: the first member's order
        ("hard", None, [shares(0.3, 0.7), shares(0.7, 0.3)], "A"),
        ("soft", None, [shares(0.3, 0.7), shares(0.7, 0.3)], "A"),
        ("weighted", [0.9, 0.1], [shares(0.4, 0.6), shares(0.9, 0.1)], "B"),
        ("weighted", [0.1, 0.9], [shares(0.4, 0.6), shares(0.9, 0.1)], "A"),
        ("weighted", [0.0, 1.0], [shares(0.0, 1.0), shares(0.51, 0.49)], "A"),
    ],
)
def test_each_vote_gives_the_answer_computed_by_hand(vote, weights, members, answer):
    predictions = [[answered("1", "A", **member)] for member in members]
    (question,) = align_predictions([str(i) for i in range(len(members))], predictions)
    decided = vote_one(question, vote, weights or equal_weights(len(members)))
    assert decided.answer == answer
    assert decided.score == float(answer == "A")
    assert sum(decided.probabilities.values()) == pytest.approx(1)
    assert list(decided.probabilities) == list(members[0])  # options stay in their order


@given(seed=st.integers(0, 2**32), vote=st.sampled_from(["hard", "soft"]))
def test_vote_does_not_depend_on_the_order_of_members(seed, vote):
    (question,) = simulated(1, [0.5] * 5, seed)
    shuffled = list(question.answers)
    random.Random(seed).shuffle(shuffled)
    weights = equal_weights(5)
    assert vote_one(question, vote, weights) == vote_one(Question(tuple(shuffled), question.label), vote, weights)


@given(seed=st.integers(0, 2**32), vote=st.sampled_from(["hard", "soft", "weighted"]))
def test_ensemble_gives_the_answer_that_all_members_give(seed, vote):
    (question,) = simulated(1, [1.0], seed)
    alike = Question(question.answers * 3, question.label)
    assert vote_one(alike, vote, [0.2, 0.3, 0.5]).answer == question.answers[0].answer


def open_ended(score, truth, **probabilities):
    return Prediction("1", "What?", max(probabilities, key=probabilities.__getitem__), probabilities, truth, score)


def test_open_ended_answers_that_are_not_held_count_as_0():
    one = open_ended(0.3, "dog", cat=0.5, cow=0.1)
    two = open_ended(1.0, "dog", dog=0.6, cat=0.3)
    (question,) = align_predictions(["one", "two"], [[one], [two]])
    decided = vote_one(question, "soft", equal_weights(2))
    assert list(decided.probabilities.items()) == [("cat", 0.4), ("dog", 0.3), ("cow", 0.05)]  # most likely first
    assert (decided.answer, decided.score) == ("cat", 0.3)  # as it was scored for the member that gave it
    assert vote_one(question, "weighted", [0.1, 0.9]).score == 1.0
    assert absent_answers([question]) == 1
    assert question.truth_probabilities() == [0.0, 0.6]


def test_truth_is_matched_in_another_spelling():
    one = open_ended(1.0, "A Dog.", dog=0.6, cat=0.3)
    (question,) = align_predictions(["one"], [[one]], key=lambda text: text.lower().removeprefix("a ").rstrip("."))
    assert question.truth_probabilities() == [0.6]
    assert question.label == "dog"


def test_ensemble_takes_each_field_from_the_member_that_knows_it():
    plain = Prediction("1", "", "B", shares(0.2, 0.8))
    full = Prediction(
        "1", "What?", "A", shares(0.6, 0.4), "B", 0.0, 2.0, "no image", 0.7, choices=("x", "y"), image="1.jpg"
    )
    (question,) = align_predictions(["plain", "full"], [[plain], [full]])
    decided = vote_one(question, "soft", equal_weights(2))
    assert (decided.question, decided.truth, decided.score, decided.weight) == ("What?", "B", 1.0, 2.0)
    assert (decided.problem, decided.choices, decided.image, decided.loss) == ("no image", ("x", "y"), "1.jpg", None)


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
