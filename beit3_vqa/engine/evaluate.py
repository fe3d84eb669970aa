"""One pass over a split without training. Knows neither files nor tasks."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from beit3_vqa.engine.precision import Precision
from beit3_vqa.errors import InputError, one_line
from beit3_vqa.schema import Batch, Prediction


@torch.no_grad()
def evaluate_batches(
    model: nn.Module,
    batches: Iterable[Batch],
    predict: Callable[[Tensor, Batch], list[Prediction]],
    precision: Precision,
) -> Iterator[list[Prediction]]:
    """Yields the predictions of each batch, one per example and in their order.

    Args:
        model: called with `batch.inputs`, in evaluation mode.
        batches: the split, in order.
        predict: (outputs as float32, batch) -> predictions.
        precision: autocast.

    Raises:
        InputError: outputs that aren't finite.
    """
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            with precision.autocast():
                outputs = model(**batch.to(precision.device).inputs)
            if not torch.isfinite(outputs).all():
                ids = ", ".join(one_line(example.id) for example in batch.examples[:3])
                raise InputError(
                    f"the model's outputs aren't finite numbers (rows {ids}, ...). In fp16 they may have grown too "
                    "large: try --precision bf16 or fp32. Else the checkpoint is damaged."
                )
            yield predict(outputs.float(), batch)
    finally:
        model.train(was_training)
