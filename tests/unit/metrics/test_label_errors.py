"""Likely label errors: cleanlab's own, planted ones, and what isn't one."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F

from beit3_vqa.data.types import Prediction
from beit3_vqa.metrics.label_errors import find_label_errors

GOLDEN = Path(__file__).parents[2] / "golden" / "label_errors.json"


def answered(number, truth, shares, choices=("w", "x", "y", "z")):
    answer = max(shares, key=shares.get)
    return Prediction(str(number), "?", answer, shares, truth=truth, score=float(answer == truth), choices=choices)


def test_the_errors_and_their_order_are_those_of_cleanlab():
    golden = json.loads(GOLDEN.read_text())
    rows = [
        answered(number, "ABCD"[label], dict(zip("ABCD", shares, strict=True)))
        for number, (label, shares) in enumerate(zip(golden["labels"], golden["shares"], strict=True))
    ]
    found = find_label_errors(rows)
    assert [int(error.prediction.id) for error in found] == golden["ranked"]
    # Not just the wrong answers: the model is too unsure of some of them.
    assert 10 < len(found) < sum(not row.score for row in rows)


def out_of_fold(features, labels, folds=5):
    """Return what rows get from the means of the others' classes, by distance as probabilities, (N, classes)."""
    shares = torch.empty(len(labels), 4)
    for fold in range(folds):
        held_out = torch.arange(len(labels)) % folds == fold
        means = torch.stack([features[~held_out & (labels == label)].mean(dim=0) for label in range(4)])
        shares[held_out] = (-(torch.cdist(features[held_out], means) ** 2)).softmax(dim=1)
    return shares


def test_planted_wrong_labels_come_first():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(4, (400,), generator=generator)
    features = F.one_hot(truth, 4) * 3 + torch.randn(400, 4, generator=generator) * 0.7
    planted = set(torch.randperm(400, generator=generator)[:20].tolist())
    labels = truth.clone()
    labels[sorted(planted)] = (labels[sorted(planted)] + 1) % 4
    shares = out_of_fold(features, labels).tolist()
    rows = [answered(n, "ABCD"[labels[n]], dict(zip("ABCD", shares[n], strict=True))) for n in range(400)]
    found = [int(error.prediction.id) for error in find_label_errors(rows)]
    assert len(planted & set(found)) >= 14
    assert set(found[:14]) <= planted
    assert len(found) <= 20
    assert all("ABCD"[truth[n]] == rows[n].answer for n in found[:14])


def test_a_model_that_is_unsure_of_an_answer_accuses_nobody_by_it():
    sure = [answered(n, "A", {"A": 0.9, "B": 0.1}, ("w", "x")) for n in range(4)]
    unsure = answered(9, "A", {"A": 0.45, "B": 0.55}, ("w", "x"))
    confident = [answered(n, "B", {"A": 0.1, "B": 0.9}, ("w", "x")) for n in range(10, 14)]
    assert find_label_errors([*sure, unsure, *confident]) == []
    accused = answered(9, "A", {"A": 0.05, "B": 0.95}, ("w", "x"))
    (error,) = find_label_errors([*sure, accused, *confident])
    assert (error.prediction, error.given, error.preferred) == (accused, 0.05, 0.95)


def test_open_answers_are_compared_as_the_official_rules_spell_them():
    red = [Prediction(str(n), "?", "red", {"red": 0.8, "blue": 0.2}, truth="Red.", score=1.0) for n in range(4)]
    wrong = Prediction("9", "?", "red", {"red": 0.9, "blue": 0.1}, truth="The blue", score=0.0)
    (error,) = find_label_errors([*red, wrong])
    assert (error.prediction.id, error.given) == ("9", 0.1)
    # An answer that nobody kept has no probability; one that some annotators gave isn't wrong; no truth, no error.
    (error,) = find_label_errors([*red, Prediction("9", "?", "red", {"red": 0.9}, truth="green", score=0.0)])
    assert error.given == 0.0
    some = Prediction("9", "?", "red", {"red": 0.9}, truth="green", score=0.3, answer_scores={"green": 1, "red": 0.3})
    assert find_label_errors([*red, some, Prediction("10", "?", "red", {"red": 0.9})]) == []
