"""Losses and predictions of the task, by hand; folders it must refuse."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.index import DatasetInfo
from beit3_vqa.data.types import Batch, Example
from beit3_vqa.errors import InputError
from beit3_vqa.metrics.calibration import tempered
from beit3_vqa.tasks import find_task
from beit3_vqa.tasks.base import KEPT_ANSWERS
from beit3_vqa.tasks.vqa import VQACustom
from beit3_vqa.tasks.vqav2 import VQAv2
from tests.helpers.options import build_config

CHOICES = ("red", "blue", "green", "teal")
EXAMPLE = Example("0", "x", "q")


def task(answers=("A", "B", "C", "D"), **options) -> VQACustom:
    return VQACustom(AnswerTable(list(answers)), build_config(options))


def batch(*labels, choices=CHOICES):
    examples = tuple(
        Example(str(i), "x", "what?", choices, "ABCD"[label], ((label, 1.0),)) for i, label in enumerate(labels)
    )
    return Batch({}, examples, task().targets(examples))


def test_loss_is_cross_entropy_with_label_smoothing():
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3]))
    torch.testing.assert_close(task().loss(logits, batch(0, 3)), expected)
    smoothed = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3]), label_smoothing=0.1)
    torch.testing.assert_close(task(label_smoothing=0.1).loss(logits, batch(0, 3)), smoothed)


def test_upstreams_loss_is_the_mean_over_classes_times_their_number():
    logits = torch.randn(2, 4)
    wanted = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted) * 4
    torch.testing.assert_close(task(vqa_loss="bce").loss(logits, batch(0, 3)), expected)


def test_soft_scores_become_a_distribution_for_cross_entropy():
    example = Example("0", "x", "q", targets=((0, 0.6), (2, 0.2)))
    logits = torch.randn(1, 4)
    expected = -(torch.tensor([0.75, 0, 0.25, 0]) * logits.log_softmax(1)[0]).sum()
    torch.testing.assert_close(task().loss(logits, Batch({}, (example,), task().targets((example,)))), expected)


@pytest.mark.parametrize("loss", ["ce", "bce"])
@given(
    st.lists(st.lists(st.floats(-30, 30, width=32), min_size=4, max_size=4), min_size=2, max_size=2),
    st.floats(0.05, 1000),
)
def test_a_temperature_changes_probabilities_and_nothing_else(loss, logits, temperature):
    made, rows = task(vqa_loss=loss), torch.tensor(logits)
    plain = made.predictions(rows, batch(1, 3))
    for before, after in zip(plain, made.predictions(rows, batch(1, 3), temperature), strict=True):
        assert (after.answer, after.score, after.loss) == (before.answer, before.score, before.loss)
        assert after.probabilities == pytest.approx(tempered(before, temperature).probabilities, abs=1e-6)


def test_a_temperature_is_over_the_whole_vocabulary():
    made = task(answers=[f"answer {i}" for i in range(9)])
    logits = torch.arange(9.0)[None]
    (found,) = made.predictions(logits, Batch({}, (Example("0", "x", "q"),)), temperature=4.0)
    expected = (logits / 4).softmax(1)[0].flip(0)[:KEPT_ANSWERS].tolist()
    assert list(found.probabilities.values()) == pytest.approx(expected, abs=1e-6)
    assert found.answer == "answer 8"


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_predictions_hold_answer_score_truth_and_probabilities(loss):
    logits = torch.tensor([[0.0, 3.0, 0.0, -1.0], [5.0, 0.0, 0.0, 0.0]])
    first, second = task(vqa_loss=loss).predictions(logits, batch(1, 3))
    assert (first.answer, first.score, first.truth) == ("B", 1.0, "B")
    assert (second.answer, second.score, second.truth) == ("A", 0.0, "D")
    assert list(first.probabilities) == list("ABCD")
    assert sum(first.probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("level", [-1e29, -200.0, 0.0, 200.0, 1e29])
def test_probabilities_sum_to_one_however_large_the_logits(loss, level):
    """The sigmoids of -200 are 0 in float32, and 0 / 0 is no probability."""
    (found,) = task(vqa_loss=loss).predictions(level + torch.tensor([[0.0, 1.0, 0.0, 0.0]]), batch(1))
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert math.isfinite(found.loss)
    assert found.answer == ("B" if abs(level) < 1e29 and (loss, level) != ("bce", 200.0) else "A")


def test_level_answers_are_kept_with_the_one_that_is_given():
    (found,) = task([f"answer {i}" for i in range(300)]).predictions(torch.zeros(1, 300), Batch({}, (EXAMPLE,)))
    assert found.answer == next(iter(found.probabilities)) == "answer 0"


@pytest.mark.parametrize("options", [{"vqa_loss": "ce", "label_smoothing": 0.1}, {"vqa_loss": "bce"}])
def test_validation_loss_equals_training_loss(options):
    made, shown = task(**options), batch(1, 3, 0)
    logits = torch.randn(3, 4)
    predictions = made.predictions(logits, shown)
    result = made.aggregate(predictions, "val", None)
    assert result.metrics["loss"] == pytest.approx(made.loss(logits, shown).item(), abs=1e-5)
    untold = dataclasses.replace(shown.examples[0], answer=None, targets=())
    without = made.predictions(logits, Batch({}, (untold, *shown.examples[1:])))
    assert [p.loss for p in without] == [None, *(p.loss for p in predictions[1:])]


def test_open_ended_predictions_keep_the_likeliest_answers():
    open_ended = task([f"answer {i}" for i in range(20)])
    example = Example("7", "x", "what?", answer="something else")
    (made,) = open_ended.predictions(torch.arange(20.0)[None], Batch({}, (example,)))
    assert made.answer == "answer 19"
    assert list(made.probabilities) == [f"answer {i}" for i in range(19, 19 - KEPT_ANSWERS, -1)]
    assert made.score == 0.0  # an answer outside the table counts as wrong, and isn't lost
    assert not open_ended.answers_are_options


def test_unknown_tasks_name_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'vqacustom'"):
        find_task("vqacustum")


def folder(tmp_path, rows, answers="ABCD"):
    (tmp_path / "vqacustom.train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    AnswerTable(list(answers)).write(tmp_path / "answer2label.txt")
    return VQACustom.from_folder(build_config({"data_path": str(tmp_path)}))


def row(number, **more):
    return {"id": str(number), "image_path": "x.jpg", "question": "q", **more}


def test_another_number_of_options_than_answers_is_an_error(tmp_path):
    made = folder(tmp_path, [row(0, choices=list("abcde"), answer="A")])
    with pytest.raises(InputError, match="row 0: 5 options"):
        made.dataset("train", None, training=True)


def test_rows_of_multiple_choice_and_open_ended_data_are_not_mixed(tmp_path):
    made = folder(tmp_path, [row(0, answer="A"), {**row(1, choices=list(CHOICES)), "qid": "1"}])
    with pytest.raises(InputError, match="row 0: 0 options"):
        made.dataset("train", None, training=True)
    made = folder(tmp_path, [row(0, choices=list(CHOICES), answer="A")], ["red", "blue"])
    with pytest.raises(InputError, match="open-ended questions, without options:\n  row 0: 4 options"):
        made.dataset("train", None, training=True)


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"vqacustom\.train\.jsonl is empty"):
        folder(tmp_path, []).dataset("train", None, training=True)


def test_training_rows_need_an_answer(tmp_path):
    made = folder(tmp_path, [row(0, choices=list(CHOICES), answer="A"), row(1, choices=list(CHOICES))])
    with pytest.raises(InputError, match="training rows without an answer:\n  row 1\n"):
        made.dataset("train", None, training=True)


def test_rows_outside_the_vocabulary_are_reported_and_kept(tmp_path, capsys):
    made = folder(tmp_path, [row(0, answer="red"), row(1, answer="mauve")], ["red", "blue"])
    assert len(made.dataset("train", None, training=True)) == 1
    assert "1 of 2 training rows aren't trained on" in capsys.readouterr().out
    assert len(made.dataset("train", None, training=False)) == 2  # evaluated, as wrong


def test_missing_splits_name_those_there(tmp_path):
    made = folder(tmp_path, [row(0, answer="A", choices=list(CHOICES))])
    with pytest.raises(InputError, match="has no test split; it has train"):
        made.dataset("test", None, training=False)


@pytest.mark.parametrize(
    ("info", "kind", "vouched"),
    [
        (None, VQACustom, True),  # upstream's folder, or a fork's
        (DatasetInfo(Path("x"), "dacon_json", written={"vqacustom.train.jsonl": "0"}), VQACustom, True),
        (DatasetInfo(Path("x"), "dacon_json"), VQACustom, False),  # of version 0.1.0, which kept no record
        (DatasetInfo(Path("x"), "vqav2"), VQACustom, False),
        (DatasetInfo(Path("x"), "vqav2"), VQAv2, True),  # `prepare vqav2` has upstream's own order
    ],
)
def test_what_vouches_for_the_order_of_answers(tmp_path, info, kind, vouched, capsys):
    AnswerTable(["red", "blue"]).write(tmp_path / "answer2label.txt")
    if info:
        info.write(tmp_path)
    made = kind.from_folder(build_config({"data_path": str(tmp_path)}))
    if vouched:
        made.vouch("--resume x")
        assert f"using {tmp_path / 'answer2label.txt'}" in capsys.readouterr().out
        return
    with pytest.raises(InputError, match=r"--resume x has no answer table.*--answer2label FILE"):
        made.vouch("--resume x")


def test_forks_folders_are_read_as_they_are(tmp_path):
    for name, split in (("vqa.train", 0), ("vqa.trainable_val", 1), ("vqa.rest_val", 2), ("vqa.test", 3)):
        line = {"image_path": "train/x.jpg", "text_segment": [7, 8], "labels": [1], "scores": [1.0], "qid": split}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    AnswerTable(["red", "blue"]).write(tmp_path / "answer2label.txt")
    made = VQACustom.from_folder(build_config({"data_path": str(tmp_path)}))
    assert made.folder.splits() == ["train", "val", "test"]
    train = made.dataset("train", None, training=True)
    assert [train.example(i).id for i in range(len(train))] == ["0", "1"]
    assert train.example(0).image_path == str(tmp_path / "train" / "x.jpg")
    assert made.aggregate([], "val", None, full=True).chance == 100.0  # both training answers are `blue`
    other = {"image_path": "x.jpg", "text_segment": [7], "labels": [0], "scores": [1.0], "qid": 9}
    (tmp_path / "vqa.trainable_val.jsonl").write_text(json.dumps(other) + "\n")
    assert made.aggregate([], "val", None, full=True).chance == 50.0
