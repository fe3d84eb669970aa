"""Gains with their intervals, agreement, and which members are worth having."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import bootstrap, permutation_test

from beit3_vqa.apps.ensemble.compare import (
    Comparison,
    Gain,
    agreement,
    best_prefix,
    compare,
    comparison_text,
    forward_selection,
    get_groups,
    paired_bootstrap,
    paired_p,
    truth_probabilities,
    vote_all,
)
from beit3_vqa.apps.ensemble.vote import align_predictions
from beit3_vqa.apps.ensemble.weights import cross_fit_weights, fit_weights
from beit3_vqa.data.answers import answer_key
from beit3_vqa.data.types import Prediction
from beit3_vqa.errors import InputError
from tests.helpers.ensembles import answered, simulated


@pytest.mark.parametrize("count", [40, 1000])
def test_bootstrap_interval_equals_scipys(count):
    rng = np.random.default_rng(3)
    differences = rng.choice([-1.0, 0.0, 1.0, 0.3], size=count, p=[0.1, 0.7, 0.15, 0.05])
    gain = paired_bootstrap(differences, [str(number) for number in range(count)], seed=0)
    theirs = bootstrap((differences,), np.mean, n_resamples=10_000, method="percentile", rng=1).confidence_interval
    assert gain.mean == pytest.approx(100 * differences.mean())
    width = 100 * (theirs.high - theirs.low)
    assert (gain.low, gain.high) == pytest.approx((100 * theirs.low, 100 * theirs.high), abs=0.06 * width)


def test_questions_about_one_image_are_drawn_together():
    differences = np.repeat(np.random.default_rng(0).choice([-1.0, 0.0, 1.0], size=50), 20)
    alone = paired_bootstrap(differences, [str(number) for number in range(1000)], seed=0)
    together = paired_bootstrap(differences, [str(number // 20) for number in range(1000)], seed=0)
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(20**0.5, rel=0.15)


NFC, NFD = "\uac15\uc544\uc9c0", "\u1100\u1161\u11bc\u110b\u1161\u110c\u1175"


def test_members_that_spell_an_answer_in_another_form_vote_for_the_same_one():
    members = [
        [Prediction("1", f"{answer}?", answer, {answer: share, "no": 1 - share}, truth=truth)]
        for answer, share, truth in ((NFC, 0.6, NFD), (NFD, 0.7, NFC), ("no", 0.9, f"{NFC}\u200b"))
    ]
    members[2] = [dataclasses.replace(members[2][0], probabilities={"no": 0.9}, question=members[0][0].question)]
    (question,) = align_predictions(["a", "b", "c"], members, answer_key)
    assert [p.answer for p in question.answers] == [NFC, NFC, "no"]
    assert question.truth_probabilities() == [0.6, 0.7, 0.0]
    assert vote_all([question], "hard")[0].answer == NFC


def test_ids_that_look_alike_are_shown_with_escapes():
    members = [[Prediction(name, "?", "x", {"x": 1.0})] for name in (NFC, NFD)]
    with pytest.raises(InputError, match=r"look alike, but are other characters: '\\uac15.* and '\\u1100"):
        align_predictions(["a", "b"], members)


def test_one_image_alone_gives_the_widest_interval():
    gain = paired_bootstrap(np.array([1.0, 0.0]), ["x", "x"], seed=0)
    assert (gain.mean, gain.low, gain.high) == (50.0, -100.0, 100.0)


@pytest.mark.parametrize("gain", [-1.0, 0.0, 0.5, 1.0])
def test_interval_of_equal_gains_has_a_width_that_shrinks_with_their_number(gain):
    few, many = (paired_bootstrap(np.full(n, gain), [str(i) for i in range(n)], seed=0) for n in (2, 200))
    assert few.mean == many.mean == 100 * gain
    assert -100 <= few.low <= many.low <= 100 * gain <= many.high <= few.high <= 100
    assert many.high - many.low < 4 < 100 < few.high - few.low


def test_degenerate_members_give_finite_weights_and_comparisons():
    """One question, one image, truths that nobody kept, members that are alike: numbers, and none that isn't one."""
    for truth in ("A", "D"):
        one = answered("q", truth, A=1.0, B=0.0)
        for count, image in ((1, ""), (3, "x"), (3, "")):
            rows = [dataclasses.replace(one, id=f"q{n}", image=image) for n in range(count)]
            questions = align_predictions(["m0", "m1"], [rows, rows])
            weights = fit_weights(truth_probabilities(questions))
            assert weights == pytest.approx([0.5, 0.5])
            held_out = cross_fit_weights(truth_probabilities(questions), get_groups(questions), 0)
            assert held_out == pytest.approx(np.full((count, 2), 0.5))
            for vote, used in (("hard", None), ("soft", None), ("weighted", held_out)):
                found = compare(questions, vote, used, seed=0)
                assert np.isfinite([found.ensemble, found.gain.low, found.gain.high, found.log_loss or 0.0]).all()
                assert found.gain.low < 0 < found.gain.high


def test_bootstrap_drawn_in_parts_gives_the_normal_interval(monkeypatch):
    monkeypatch.setattr("beit3_vqa.apps.ensemble.compare._AT_ONCE", 100_000)
    differences = np.random.default_rng(0).uniform(-1, 1, size=700)
    gain = paired_bootstrap(differences, [str(number) for number in range(700)], seed=0)
    half = 196 * differences.std() / 700**0.5
    assert (gain.low, gain.high) == pytest.approx((gain.mean - half, gain.mean + half), abs=0.1 * half)


def test_comparison_depends_on_the_seed_alone():
    questions = simulated(100, [1.0, 1.0, 1.0], seed=0)
    assert compare(questions, "soft", None, seed=5) == compare(questions, "soft", None, seed=5)
    assert compare(questions, "soft", None, seed=5).gain != compare(questions, "soft", None, seed=6).gain


def test_comparison_equals_numbers_computed_by_hand():
    right, wrong = {"A": 0.9, "B": 0.1}, {"A": 0.4, "B": 0.6}
    table = [(right, wrong, wrong), (right, right, wrong), (wrong, right, right), (right, right, right)]
    members = [[answered(str(n), "A", **row[m]) for n, row in enumerate(table)] for m in range(3)]
    questions = align_predictions("abc", members)
    hard = compare(questions, "hard", None, seed=0)
    assert (hard.members, hard.ensemble, hard.best) == ((75.0, 75.0, 50.0), 75.0, 0)
    assert hard.gain.mean == 0
    assert hard.gain.low < 0 < hard.gain.high
    soft = compare(questions, "soft", None, seed=0)
    assert (soft.ensemble, soft.gain.mean) == (100.0, 25.0)
    means = [1.7 / 3, 2.2 / 3, 2.2 / 3, 0.9]
    assert soft.log_loss == pytest.approx(-np.log(means).mean())
    weighted = compare(questions, "weighted", np.array([0.0, 0.0, 1.0]), seed=0)
    assert weighted.ensemble == 50.0
    assert weighted.equal == (100.0, soft.log_loss)
    assert agreement(questions).tolist() == [[1, 0.5, 0.25], [0.5, 1, 0.75], [0.25, 0.75, 1]]


def test_weighted_vote_takes_weights_for_each_question():
    questions = simulated(4, [1.0, 1.0], seed=4)
    weights = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    decided = [p.answer for p in vote_all(questions, "weighted", weights)]
    assert decided == [question.answers[number % 2].answer for number, question in enumerate(questions)]


def test_questions_about_one_image_are_one_group():
    questions = simulated(3, [1.0], seed=0)
    pictured = [
        dataclasses.replace(q, answers=(dataclasses.replace(q.answers[0], image=image),))
        for q, image in zip(questions, ["1.jpg", "", ""], strict=True)
    ]
    groups = get_groups(pictured)
    assert groups[0] == "1.jpg"
    assert len(set(groups)) == 3


@pytest.mark.parametrize("vote", ["hard", "soft", "weighted"])
def test_forward_selection_takes_what_helps_within_the_budget(vote):
    questions = simulated(300, [0.0, 1.5, 0.0, 1.5, 1.5], seed=1)
    sizes = [1, 3, 1, 3, 5]
    steps = forward_selection(questions, vote, lambda subset: sum(sizes[m] for m in subset), most=8, seed=0)
    taken = best_prefix(steps)
    assert steps[0].gain == steps[0].accuracy == max(compare(questions, vote, None, 0).members)
    assert max(step.parameters for step in steps) <= 8
    assert {1, 3} <= {step.member for step in taken} or 4 in {step.member for step in taken}
    assert all(step.gain == pytest.approx(step.accuracy - before.accuracy) for before, step in pairwise(steps))
    assert taken[-1].accuracy == max(step.accuracy for step in steps)
    assert len(taken) == 1 or taken[-1].accuracy > max(step.accuracy for step in taken[:-1])
    assert sum(sizes[step.member] for step in taken) == taken[-1].parameters


def test_forward_selection_stops_when_nothing_fits():
    questions = simulated(20, [1.0, 1.0], seed=1)
    assert len(forward_selection(questions, "soft", lambda subset: len(subset) * 5, most=9, seed=0)) == 1


@pytest.mark.parametrize(("loss", "warned"), [(0.7, True), (0.6, True), (0.5, False)])
def test_text_warns_of_weights_that_are_no_better_than_equal_ones(loss, warned):
    found = Comparison(4, (50.0, 50.0), 50.0, 0, Gain(0.0, -1.0, 1.0), log_loss=loss, equal=(50.0, 0.6))
    said = comparison_text(found, ["one", "two"], "validation", "weighted")
    assert ("the weights are no better than equal ones: prefer --vote soft" in said) == warned


@pytest.mark.parametrize("count", [12, 400])
def test_permutation_p_equals_scipys(count):
    rng = np.random.default_rng(5)
    differences = rng.choice([-1.0, 0.0, 1.0, 0.3], size=count, p=[0.1, 0.6, 0.25, 0.05])
    ours = paired_p(differences, [str(number) for number in range(count)], seed=0)
    theirs = permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=10_000, rng=1).pvalue
    assert ours == pytest.approx(theirs, abs=0.02)


def test_permutation_p_turns_whole_images_around():
    differences = np.repeat([1.0, 1.0, -1.0, 1.0, 1.0], 40)
    images = [str(number // 40) for number in range(200)]
    assert paired_p(differences, images, seed=0) == pytest.approx(12 / 32, abs=0.02)  # 4 or 5 of 5 signs alike
    assert paired_p(differences, [str(number) for number in range(200)], seed=0) < 1e-3
    assert paired_p(np.zeros(9), [str(number) for number in range(9)], seed=0) == 1.0
    assert paired_p(np.array([0.5, -0.5]), ["a", "a"], seed=0) == 1.0


def test_an_answer_that_is_spelt_in_another_way_keeps_its_score():
    members = [
        [Prediction("1", "Q?", said, {said: 0.9}, truth="T-shirt", score=1.0, answer_scores={"T-shirt": 1.0})]
        for said in ("t shirt", "T-shirt")
    ]
    (question,) = align_predictions(["a", "b"], members, answer_key)
    (joined,) = vote_all([question], "soft")
    assert (joined.answer, joined.score) == ("t shirt", 1.0)
