"""A question with fewer options than the head has outputs is what it would be to a head of its own size."""

import pytest
import torch

from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.rows import LETTERS
from beit3_vqa.data.types import Batch, Example
from beit3_vqa.tasks.vqa import VQACustom
from tests.helpers.options import build_config


def question(options: int, answer: int) -> Example:
    choices = tuple(LETTERS[:options])
    return Example(
        id="1", image_path="x", question="Q?", choices=choices, answer=LETTERS[answer], targets=((answer, 1.0),)
    )


def task(width: int, **options) -> VQACustom:
    return VQACustom(AnswerTable(LETTERS[:width]), build_config(options))


def batch_of(task: VQACustom, *examples: Example) -> Batch:
    return task.attach_targets(Batch({}, examples), [])


LOSSES = [{}, {"label_smoothing": 0.3}, {"vqa_loss": "bce"}]


@pytest.mark.parametrize("options", LOSSES)
def test_loss_of_a_batch_is_the_mean_of_what_heads_of_each_size_have(options):
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    sizes = (5, 2, 3)
    examples = [question(size, size - 1) for size in sizes]
    wide = task(5, **options)
    alone = [
        task(size, **options).loss(row[:size].unsqueeze(0), batch_of(task(size, **options), example))
        for size, row, example in zip(sizes, logits, examples, strict=True)
    ]
    torch.testing.assert_close(wide.loss(logits, batch_of(wide, *examples)), torch.stack(alone).mean())


@pytest.mark.parametrize("options", LOSSES)
def test_outputs_of_options_that_are_not_there_get_no_gradient(options):
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    wide = task(4, **options)
    wide.loss(logits, batch_of(wide, question(4, 1), question(2, 0))).backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[1, 2:] == 0).all()
    assert (logits.grad[0] != 0).all()
    assert (logits.grad[1, :2] != 0).all()


@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 20.0])
def test_options_that_are_not_there_get_no_probability_and_are_never_the_answer(loss, temperature):
    wide = task(4, vqa_loss=loss)
    logits = torch.tensor([[0.1, 0.2, 9.0, 9.0], [0.1, 0.2, 9.0, 8.0]])
    fewer, all_four = wide.predictions(logits, batch_of(wide, question(2, 0), question(4, 0)), temperature)
    assert fewer.answer == "B"
    assert list(fewer.probabilities) == ["A", "B"]
    assert sum(fewer.probabilities.values()) == pytest.approx(1)
    alone = task(2, vqa_loss=loss)
    (expected,) = alone.predictions(logits[:1, :2], batch_of(alone, question(2, 0)), temperature)
    assert list(fewer.probabilities.values()) == pytest.approx(list(expected.probabilities.values()))
    assert fewer.loss == pytest.approx(expected.loss)
    assert all_four.answer == "C"


def test_outputs_of_a_full_batch_are_untouched():
    """Where every question has all options, four wide stays bit for bit what it was."""
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(2))
    wide = task(4, label_smoothing=0.1)
    batch = batch_of(wide, question(4, 1), question(4, 2))
    expected = torch.nn.functional.cross_entropy(logits, batch.targets, label_smoothing=0.1)
    assert torch.equal(wide.loss(logits, batch), expected)


def test_narrower_outputs_are_those_of_a_batch_of_shorter_questions():
    """CLIP has a column for each option of the widest question in a batch."""
    wide = task(5)
    logits = torch.tensor([[0.5, 0.1, 0.3]])
    (prediction,) = wide.predictions(logits, batch_of(wide, question(3, 0)))
    assert list(prediction.probabilities.values()) == pytest.approx(logits.softmax(1)[0].tolist())
