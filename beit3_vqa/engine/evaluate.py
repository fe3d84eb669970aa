"""One pass over a split without training. Knows neither files nor tasks."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from beit3_vqa.engine.precision import Precision, all_finite, in_float32
from beit3_vqa.errors import InputError, one_line
from beit3_vqa.schema import Batch


class NotFiniteError(InputError):
    """A model's outputs aren't finite numbers, so that there is no answer in them."""


@contextmanager
def naming(checkpoint: str) -> Iterator[None]:
    """Say of which checkpoint outputs are that aren't finite."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(f"{checkpoint}: {error}") from None


@torch.no_grad()
def evaluate_batches(
    model: nn.Module,
    batches: Iterable[Batch],
    predict: Callable[[Any, Batch], list[Any]],
    precision: Precision,
    infer: Callable[[Any, Batch], Any] | None = None,
) -> Iterator[list[Any]]:
    """Yields the predictions of each batch, one per example and in their order.

    Args:
        model: in evaluation mode.
        batches: the split, in order.
        predict: (outputs as float32, batch) -> predictions.
        precision: autocast.
        infer: (model, batch) -> outputs; by default the model is called with `batch.inputs`.

    Raises:
        NotFiniteError: outputs that aren't finite.
    """
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            there = batch.to(precision.device)
            with precision.autocast():
                outputs = infer(model, there) if infer else model(**there.inputs)
            outputs = in_float32(outputs)
            if not all_finite(outputs):
                raise not_finite(batch)
            yield predict(outputs, batch)
    finally:
        model.train(was_training)


def finite(outputs: Any, checkpoint: str) -> Any:
    """Return outputs as float32; NotFiniteError, naming the checkpoint, if they hold no answer."""
    outputs = in_float32(outputs)
    if not all_finite(outputs):
        raise NotFiniteError(
            f"{checkpoint}: the model's outputs aren't finite numbers, so there is no answer. Its weights have grown "
            "too large, for fp16 or at all, or the file is damaged: take another checkpoint."
        )
    return outputs


def not_finite(batch: Batch) -> NotFiniteError:
    """Say that a model's outputs aren't finite, or what was made of them on the way."""
    ids = ", ".join(one_line(example.id) for example in batch.examples[:3])
    return NotFiniteError(
        f"the model's outputs aren't finite numbers (rows {ids}, ...). In fp16 they may have grown too large: try "
        "--precision bf16 or fp32. Else the checkpoint is damaged."
    )
