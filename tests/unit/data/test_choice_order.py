"""Options in other orders, and back."""

import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.data.choice_order import check_orders, keeps_its_place, movable, orders, reordered, rotations, unpermute
from beit3_vqa.data.types import Example, Prediction
from beit3_vqa.errors import InputError

ABOUT_OTHERS = [
    "All of the above", "all of these.", "None of the above", "None of these", "none of the other options", "Both",
    "Neither of these", "All the above", "None of the choices are correct", "NONE OF THEM", "No correct answer",
    "Both A and B", "A and C", "A & B", "A, B and C", "Options A or D", "all are correct", "either A or B",
    "모두 맞다", "위의 모두", "정답 없음", "해당 없음", "위의 보기 모두 정답이다", "해당 사항 없음", "보기 중에 없음",
    "둘 다", "둘다 아니다", "모두 아니다", "위에 맞는 것이 없다", "A와 B", "A, B 모두", "정답이 없습니다.",
    "이 중 없음", "ａｌｌ of  the above", "A and C are both true", "A and B are wrong", "Neither A nor B is true",
    "Only A",
    "Only option A is true", "A only", "Same as A", "Options 1 and 2", "1번과 2번 모두", "①과 ②", "A와 B가 맞다",
    "D. All of the above", "(d) all of the above",
]  # fmt: skip
OF_ITS_OWN = [
    "a cat", "above the table", "all the dogs", "none", "A", "both hands", "없음", "모두", "고양이 두 마리", "위",
    "빨간 모자", "the above-ground pool", "an option trader", "A and a half", "Answer the phone",
    "none of your business", "아무도 없다", "사람이 없다", "3 and 4", "either side", "1/2", "only a cat",
    "only ball", "a and ball", "either 2 or 3",
    "same as a dog",
    "2번", "b. cat",
]  # fmt: skip


@pytest.mark.parametrize("text", ABOUT_OTHERS)
def test_options_that_speak_of_the_others_keep_their_place(text):
    assert keeps_its_place(text)


@pytest.mark.parametrize("text", OF_ITS_OWN)
def test_options_that_stand_for_themselves_move(text):
    assert not keeps_its_place(text)


def test_options_that_another_one_names_keep_their_place():
    assert movable(("cat", "dog", "owl", "both A and B")) == [2]
    assert movable(("cat", "dog", "B, C 모두", "owl")) == [0, 3]
    assert movable(("cat", "dog", "options 1 and 3", "owl")) == [1, 3]
    assert movable(("cat", "①과 ④", "dog", "owl")) == [2]
    assert movable(("cat", "dog", "D. only B is true")) == [0]
    assert movable(("cat", "dog", "owl", "all of the above")) == [0, 1, 2]


def test_orders_are_those_worked_out_by_hand():
    assert orders(("x", "y", "none of these", "z"), "cyclic") == ((0, 1, 2, 3), (1, 3, 2, 0), (3, 0, 2, 1))
    assert orders(("x", "y", "z"), "none") == ((0, 1, 2),)
    assert orders((), "all") == ((),)
    assert orders(("both", "neither", "x"), "all") == ((0, 1, 2),)


texts = st.one_of(st.sampled_from(["all of the above", "정답 없음", "A and B"]), st.text(max_size=8))
some_choices = st.lists(texts, min_size=2, max_size=5)


@given(some_choices, st.sampled_from(["cyclic", "all"]))
def test_every_movable_option_stands_in_each_place_equally_often(choices, mode):
    found = orders(choices, mode)
    free = movable(choices)
    assert found[0] == tuple(range(len(choices)))
    texts_shown = {tuple(choices[option] for option in order) for order in found}
    assert len(texts_shown) == len(found)  # no order is asked twice
    if len({choices[option] for option in free}) == len(free):
        assert len(found) == max(1, len(free) if mode == "cyclic" else math.factorial(len(free)))
        assert rotations(choices) == max(1, len(free))
    for order in found:
        assert sorted(order) == list(range(len(choices)))
        assert all(order[place] == place for place in range(len(choices)) if place not in free)
    for place in free:
        shown = [choices[order[place]] for order in found]
        texts_free = [choices[option] for option in free]
        assert {shown.count(text) / texts_free.count(text) for text in texts_free} == {len(found) / len(free)}


def answer_of(example, weights, seen):
    """A model that knows the texts and has a weakness for places."""
    shares = torch.tensor([weights[text] + seen[place] for place, text in enumerate(example.choices)]).softmax(0)
    letter = "ABCDE"[int(shares.argmax())]
    label = int(shares.argmax())
    return Prediction(
        example.id, "q", letter, dict(zip("ABCDE", shares.tolist(), strict=False)), example.answer,
        dict(example.targets).get(label, 0.0), choices=example.choices,
    )  # fmt: skip


def test_options_of_the_same_text_keep_their_order():
    assert orders(("x", "x"), "cyclic") == orders(("x", "x"), "all") == ((0, 1),)
    assert orders(("x", "x", "y"), "cyclic") == ((0, 1, 2), (0, 2, 1), (2, 0, 1))
    assert orders(("x", "y", "x", "y"), "cyclic") == ((0, 1, 2, 3), (1, 0, 3, 2))
    assert len(orders(("x", "x", "y", "z"), "all")) == 12
    # The C that is spoken of stays where it is; the other one of its text moves as before.
    assert orders(("x", "y", "x", "z", "both C and B"), "cyclic") == ((0, 1, 2, 3, 4), (3, 1, 2, 0, 4))
    assert [rotations(c) for c in ((), ("x", "x"), ("x", "x", "y"), ("x", "y", "x", "y"))] == [1, 1, 3, 2]


@given(st.lists(st.sampled_from("xyz"), min_size=2, max_size=5), st.sampled_from(["cyclic", "all"]), st.randoms())
def test_whoever_knows_the_texts_answers_alike_in_every_order(choices, mode, rng):
    """Of equal options the first is the answer, as argmax has it: right in every order, or wrong in every order."""
    example = Example("0", "x", "q", tuple(choices), "A", ((0, 1.0),))
    weights = dict(zip("xyz", rng.sample([0.0, 0.7, 1.5], 3), strict=True))
    answers = [unpermute(answer_of(reordered(example, o), weights, [0.0] * 5), o) for o in orders(choices, mode)]
    assert len({answer.answer for answer in answers}) == 1
    for answer in answers:
        assert answer.probabilities == pytest.approx(answers[0].probabilities)
        assert answer.score == float(answer.answer == "A")


@given(some_choices.filter(lambda c: len(set(c)) == len(c)), st.integers(0, 4), st.randoms())
def test_unpermute_gives_the_answer_in_the_indexs_order(choices, truth, rng):
    truth %= len(choices)
    example = Example("0", "x", "q", tuple(choices), "ABCDE"[truth], ((truth, 1.0),))
    weights = dict(zip(rng.sample(choices, len(choices)), (0.0, 0.3, 0.5, 1.0, 2.0), strict=False))  # never level
    plain = answer_of(example, weights, [0.0] * 5)
    for order in orders(choices, "all"):
        moved = reordered(example, order)
        assert moved.choices[moved.targets[0][0]] == example.choices[truth]
        back = unpermute(answer_of(moved, weights, [0.0] * 5), order)
        assert (back.answer, back.truth, back.score, back.choices) == (
            plain.answer, plain.truth, plain.score, plain.choices,
        )  # fmt: skip
        assert list(back.probabilities) == list(plain.probabilities)
        assert back.probabilities == pytest.approx(plain.probabilities)


def test_unpermute_leaves_an_answer_without_options():
    answer = Prediction("0", "q", "red", {"red": 0.7, "blue": 0.2}, "red", 1.0)
    assert unpermute(answer, orders((), "none")[0]) == answer


@given(st.lists(st.floats(0, 3), min_size=4, max_size=4))
def test_the_mean_over_rotations_has_no_preference_for_a_place(seen):
    example = Example("0", "x", "q", ("w", "x", "y", "z"))
    weights = dict.fromkeys("wxyz", 0.5)
    answers = [unpermute(answer_of(reordered(example, o), weights, seen), o) for o in orders("wxyz", "cyclic")]
    for letter in "ABCD":
        assert sum(a.probabilities[letter] for a in answers) / 4 == pytest.approx(0.25, abs=1e-6)


def test_too_many_orders_are_refused():
    check_orders(5, "all")
    check_orders(26, "cyclic")
    with pytest.raises(InputError, match="3,628,800 orders"):
        check_orders(10, "all")


@pytest.mark.parametrize(
    "words",
    [
        "both ",
        "a and ",
        "a and b and ",
        "all of ",
        "options ",
        "a, ",
        "위 ",
        "보기 모두 ",
        "all 없음 ",
        "1번과 ",
        "only a ",
        "are true ",
        "is not ",
    ],
)
def test_a_long_option_is_judged_quickly(words):
    start = time.process_time()
    assert not keeps_its_place((words * 50)[:144] + "zebra")
    assert time.process_time() - start < 1


@pytest.mark.parametrize("choice", ["(A)와 (B)", "both (A) and (B)", "both a) and b)", "A, B, and C", "A ,and B"])
def test_letters_are_read_however_they_are_joined(choice):
    assert keeps_its_place(choice)
    assert movable(["w", "x", "y", choice])[:1] != [0]
