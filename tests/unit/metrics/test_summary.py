"""Calibration, coverage, positions, baselines and temperature, by hand and as properties."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.data.types import Prediction
from beit3_vqa.engine.evaluator import _fit
from beit3_vqa.metrics.accuracy import accuracy_metrics, confusion, positions
from beit3_vqa.metrics.baselines import baselines
from beit3_vqa.metrics.calibration import (
    HIGHEST,
    LOWEST,
    accuracy_at_coverage,
    calibration,
    fit_temperature,
    mean_nll,
    tempered,
)
from beit3_vqa.metrics.summary import full_metrics, metrics_table

CHOICES = ("a red cat", "dog", "owl", "ox")


def choice(answer, truth, confidence=0.7, choices=CHOICES, **more):
    rest = (1 - confidence) / (len(choices) - 1)
    shares = {letter: confidence if letter == answer else rest for letter in "ABCDEFGHIJ"[: len(choices)]}
    score = None if truth is None else float(answer == truth)
    return Prediction("0", "what?", answer, shares, truth, score, choices=choices, **more)


def test_calibration_and_brier_equal_hand_computed_values():
    rows = [choice("A", "A", 0.85), choice("A", "B", 0.85), choice("B", "B", 0.55), choice("C", "C", 0.55)]
    found = calibration(rows, bins=10)
    # bin (0.8, 0.9]: accuracy 0.5, confidence 0.85; bin (0.5, 0.6]: 1.0 and 0.55
    assert found["ece"] == pytest.approx(100 * (2 * 0.35 + 2 * 0.45) / 4)
    assert [(part["from"], part["to"], part["questions"]) for part in found["reliability"]] == [
        (50, 60, 2),
        (80, 90, 2),
    ]
    right, wrong = 0.15**2 + 3 * 0.05**2, 0.85**2 + 0.95**2 + 2 * 0.05**2
    unsure = 0.45**2 + 3 * 0.15**2
    assert found["brier"] == pytest.approx((right + wrong + 2 * unsure) / 4, abs=1e-4)
    assert found["confidence"] == 70


@pytest.mark.parametrize(("confidence", "place"), [(0.5, 40), (0.5000001, 40), (0.50002, 50), (1.0, 90), (0.0, 0)])
def test_calibration_bins_include_their_upper_end(confidence, place):
    assert calibration([choice("A", "A", confidence)], bins=10)["reliability"][0]["from"] == place


def test_accuracy_at_coverage_equals_hand_computed_values():
    rows = [choice("A", "A", 0.9), choice("A", "B", 0.5), choice("A", "A", 0.5), choice("A", "B", 0.3)]
    points = {point["coverage"]: point for point in accuracy_at_coverage(rows)}
    assert points[100]["accuracy"] == 50
    assert points[10] == {"coverage": 10, "questions": 1, "accuracy": 100.0, "confidence": 90.0}
    assert points[50] == {"coverage": 50, "questions": 2, "accuracy": 75.0, "confidence": 50.0}  # one of the two level


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50), st.randoms())
def test_accuracy_at_coverage_does_not_depend_on_the_order_of_rows(rows, rng):
    predictions = [choice("A", "A" if right else "B", confidence) for confidence, right in rows]
    before = accuracy_at_coverage(predictions)
    assert before[0]["accuracy"] == pytest.approx(accuracy_metrics(predictions)["accuracy"])
    rng.shuffle(predictions)
    assert [p["accuracy"] for p in accuracy_at_coverage(predictions)] == pytest.approx([p["accuracy"] for p in before])


def test_confusion_and_positions_equal_hand_counts():
    rows = [choice("A", "A"), choice("A", "B"), choice("A", "B"), choice("B", "B")]
    assert confusion(rows)["B"] == {"A": 2, "B": 1, "C": 0, "D": 0}
    found = positions(rows)
    assert found["A"] == {"true": 1, "answered": 3, "recall": 100.0, "precision": pytest.approx(100 / 3)}
    assert found["D"] == {"true": 0, "answered": 0, "recall": None, "precision": None}


def test_multiple_choice_baselines_equal_hand_computed_values():
    rows = [choice("A", "B"), choice("A", "B"), choice("A", "C")]
    found = baselines(rows)
    # Among the others, dog and owl are level for the first two questions; for the third it is dog.
    assert found["most_frequent_answer"]["accuracy"] == pytest.approx(100 * (0.5 + 0.5 + 0) / 3)
    assert found["most_frequent_position"] == {"accuracy": pytest.approx(200 / 3), "answer": "B"}
    assert found["longest_option"]["accuracy"] == 0
    trained = baselines(rows, {"owl": 5, "dog": 1})
    assert trained["most_frequent_answer"] == {
        "accuracy": pytest.approx(100 / 3),
        "counted_in": "the training answers",
    }
    level = baselines([choice("A", "B", choices=("ab", "cd", "e", "f"))])
    assert level["longest_option"]["accuracy"] == 50
    assert level["most_frequent_answer"]["accuracy"] == 25


def test_open_ended_baselines_equal_hand_computed_values():
    rows = [Prediction("0", "q", "x", {"x": 1.0}, truth, 0.0) for truth in ("Yes", "yes", "no")]
    assert baselines(rows)["most_frequent_answer"]["accuracy"] == pytest.approx(200 / 3)
    assert baselines(rows, {"no": 3})["most_frequent_answer"]["accuracy"] == pytest.approx(100 / 3)
    assert "longest_option" not in baselines(rows)


def of_logits(logits, truths):
    shares = torch.tensor(logits).softmax(1).tolist()
    letters = "ABCD"
    return [
        Prediction(str(i), "q", letters[int(np.argmax(p))], dict(zip(letters, p, strict=True)), letters[t], 0.0,
                   choices=CHOICES)
        for i, (p, t) in enumerate(zip(shares, truths, strict=True))
    ]  # fmt: skip


def test_fit_temperature_finds_the_temperature_that_made_the_answers():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1500, 4, generator=generator)
    truths = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0].tolist()
    for temperature in (0.5, 1.0, 2.5):
        rows = of_logits((logits * temperature).tolist(), truths)
        found = fit_temperature(rows)
        assert found == pytest.approx(temperature, rel=0.1)
        # no other is better: a grid that the search doesn't know
        assert mean_nll(rows, found) == min(mean_nll(rows, found), *(mean_nll(rows, found * f) for f in (0.9, 1.1)))


def test_mean_nll_equals_torchs():
    logits, truths = [[1.0, 0.2, -3.0, 0.0], [0.3, 0.1, 0.9, 2.0]], [1, 3]
    for temperature in (1.0, 0.4, 3.0):
        expected = torch.nn.functional.cross_entropy(torch.tensor(logits) / temperature, torch.tensor(truths))
        assert mean_nll(of_logits(logits, truths), temperature) == pytest.approx(expected.item(), abs=1e-4)


@given(st.lists(st.floats(-20, 20), min_size=4, max_size=4), st.floats(0.1, 10))
def test_tempered_equals_softmax_of_divided_logits(logits, temperature):
    row = of_logits([logits], [0])[0]
    expected = (torch.tensor([logits], dtype=torch.float64) / temperature).softmax(1)[0].tolist()
    changed = tempered(row, temperature)
    assert list(changed.probabilities.values()) == pytest.approx(expected, abs=1e-4)
    assert (changed.answer, changed.score) == (row.answer, row.score)
    assert math.fsum(changed.probabilities.values()) == pytest.approx(1)


def test_fit_temperature_is_one_without_evidence_and_at_an_end_of_the_range_without_a_bound():
    level, sure = choice("A", "B", 0.25), choice("A", "A", 1.0)
    assert fit_temperature([level]) == fit_temperature([level] * 50) == 1.0
    assert fit_temperature([sure]) == fit_temperature([sure] * 9) == 1.0
    assert fit_temperature([sure, choice("A", "B", 1.0)]) == HIGHEST  # a truth of probability 0
    assert fit_temperature([choice("A", "B", 0.9)]) == HIGHEST
    assert fit_temperature([choice("A", "A", 0.5)] * 5) == LOWEST


def test_a_temperature_at_the_lower_end_of_the_range_is_not_kept(capsys):
    """Five questions that are all right would make every later answer 100% sure."""
    fitted = _fit([choice("A", "A", 0.5)] * 5)
    assert (fitted["temperature"], fitted["questions"]) == (1.0, 5)
    assert fitted["nll_before"] == fitted["nll_after"]
    assert "the temperature stays 1" in capsys.readouterr().out


def test_fit_temperature_is_none_without_truths_or_options():
    assert fit_temperature([choice("A", None)]) is None
    assert fit_temperature([Prediction("0", "q", "yes", {"yes": 1.0}, "yes", 1.0)]) is None


def test_full_metrics_contain_accuracy_metrics_and_are_json():
    rows = [choice("A", "A", weight=2.0), choice("B", "A", weight=1.0), choice("C", None)]
    found = full_metrics(rows)
    short = accuracy_metrics(rows)
    assert {name: found[name] for name in short} == short
    beyond = set(found) - set(short)
    assert beyond == {
        "accuracy_interval", "interval_by_question_word", "calibration", "accuracy_at_coverage", "positions",
        "confusion", "baselines",
    }  # fmt: skip
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert full_metrics([choice("A", None)]) == {}


def test_last_bits_of_probabilities_do_not_change_full_metrics():
    rows = [choice("ABCD"[i % 4], "ABCD"[i % 3], 0.3 + i / 150) for i in range(100)]
    noisy = [choice("ABCD"[i % 4], "ABCD"[i % 3], 0.3 + i / 150 + (-1) ** i * 1e-8) for i in range(100)]
    assert full_metrics(rows) == full_metrics(noisy)


def test_metrics_table_has_every_part_and_short_lines():
    text = metrics_table(full_metrics([choice("A", "A", 0.9), choice("B", "A", 0.6)]))
    assert "accuracy                        50.00  9.45 to 90.55 (95%, wilson)" in text
    for word in ("what", "longest option", "calibration", "surest are answered", "recall", "least confidence"):
        assert word in text
    assert "nothing to score" in metrics_table({})
    hostile = [Prediction("0", "q", "x", {"x": 1.0}, "line\nbreak" * 30, 0.0)]
    assert max(map(len, metrics_table(full_metrics(hostile)).split("\n"))) < 120


def test_the_open_ended_baseline_is_scored_as_answers_are():
    rows = [Prediction("0", "q", "x", {"x": 1.0}, truth, 0.0) for truth in ("a dog", "dog", "Dog.", "cat", "cat")]
    found = baselines(rows)["most_frequent_answer"]
    assert (found["accuracy"], found["answer"]) == (pytest.approx(60), "a dog")
    people = Prediction("0", "q", "x", {"x": 1.0}, "cat", 0.0, answer_scores={"cat": 1.0, "Dog": 0.6})
    assert baselines([people], {"dog": 2})["most_frequent_answer"]["accuracy"] == pytest.approx(60)
