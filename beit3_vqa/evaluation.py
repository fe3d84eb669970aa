"""A split from its first row to its metrics."""

from beit3_vqa.assemble import Parts
from beit3_vqa.data.loader import BatchLoader
from beit3_vqa.engine.evaluate import evaluate_batches
from beit3_vqa.output.logging import Progress
from beit3_vqa.schema import EvalResult, Prediction


def evaluate_split(parts: Parts, loader: BatchLoader, label: str) -> EvalResult:
    """Predictions and metrics of a split, rows in input order."""
    predictions: list[Prediction] = []
    progress = Progress(label, loader.batches.rows, parts.config.run.log_interval)
    for batch in evaluate_batches(parts.model, loader.epoch(0), parts.task.predictions, parts.precision):
        predictions += batch
        progress.update(len(batch), dict)
    progress.close()
    return EvalResult(parts.task.metrics(predictions), predictions)
