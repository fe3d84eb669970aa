import pytest

from beit3_vqa.data.question_words import question_word
from beit3_vqa.data.types import Prediction
from beit3_vqa.metrics.accuracy import accuracy_metrics


def prediction(question, answer, truth, weight=None):
    score = None if truth is None else float(answer == truth)
    return Prediction("0", question, answer, {answer: 1.0}, truth, score, weight)


def test_accuracy_metrics_equal_hand_computed_values():
    metrics = accuracy_metrics(
        [
            prediction("What is it?", "A", "A", 1.0),
            prediction("what colour", "B", "A", 3.0),
            prediction("How many?", "C", "C", 4.0),
            prediction("Is it?", "D", None),
        ]
    )
    assert metrics["questions"] == 3
    assert metrics["accuracy"] == pytest.approx(200 / 3)
    assert metrics["weighted_accuracy"] == pytest.approx(100 * 5 / 8)
    assert metrics["accuracy_by_question_word"] == {
        "how": {"questions": 1, "accuracy": 100.0},
        "what": {"questions": 2, "accuracy": 50.0},
    }
    assert metrics["answers"] == {"A": 1, "B": 1, "C": 1}
    assert metrics["truths"] == {"A": 2, "C": 1}


def test_accuracy_metrics_are_empty_without_truths_and_unweighted_without_weights():
    assert accuracy_metrics([prediction("q", "A", None)]) == {}
    assert "weighted_accuracy" not in accuracy_metrics([prediction("q", "A", "A")])


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("What is it?", "what"),
        ("In which year", "which"),
        ("Is this a whatnot?", "other"),
        ("", "other"),
        ("WHO?", "who"),
    ],
)
def test_first_question_word_in_english_is_found(question, word):
    assert question_word(question) == word
