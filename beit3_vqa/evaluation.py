"""A split from its first row to its metrics."""

from collections.abc import Callable
from typing import Any

from beit3_vqa.assemble import Parts
from beit3_vqa.data.loader import BatchLoader
from beit3_vqa.engine import distributed
from beit3_vqa.engine.distributed import own_part
from beit3_vqa.engine.evaluate import evaluate_batches
from beit3_vqa.engine.interrupt import Stopped
from beit3_vqa.output.logging import Progress
from beit3_vqa.schema import EvalResult


def evaluate_split(parts: Parts, loader: BatchLoader, label: str, stop: Callable[[], int] | None = None) -> EvalResult:
    """Predictions and metrics of a split, rows in input order, each once, however many processes share it.

    Args:
        parts: task, model and precision.
        loader: of the split; this process's part of each batch.
        label: for the progress display.
        stop: asked after each batch for the number of a signal that came.

    Raises:
        Stopped: a signal came.
    """
    rows, together = loader.batches.rows, loader.batches.batch_size * distributed.size()
    own: list[list[Any]] = []
    progress = Progress(label, rows, parts.config.run.log_interval)
    task = parts.task
    for batch in evaluate_batches(parts.model, loader.epoch(0), task.predictions, parts.precision, task.infer):
        in_batch = min(together, rows - len(own) * together)
        own.append(batch[: own_part(in_batch)])
        progress.update(in_batch, dict)
        number = stop() if stop else 0
        if number:
            raise Stopped(number)
    progress.close()
    by_batch = zip(*distributed.gathered(own), strict=True)
    return task.conclude([prediction for shares in by_batch for share in shares for prediction in share])
