"""Predictions and metrics as JSON, whole or not at all."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beit3_vqa.files import write_text
from beit3_vqa.schema import Prediction


def write_predictions(predictions: Sequence[Prediction], path: Path) -> Path:
    """predictions.json: one object per row, in input order, what isn't known left out, and the loss."""
    rows = [{name: v for name, v in vars(p).items() if v is not None and name != "loss"} for p in predictions]
    return write_json_rows(rows, path)


def write_upstream_results(predictions: Sequence[Prediction], path: Path) -> Path:
    """Upstream's result file: `[{"question_id": ..., "answer": ...}, ...]`; ids that are numbers stay numbers."""
    rows = [
        {"question_id": int(p.id) if p.id.isdecimal() and str(int(p.id)) == p.id else p.id, "answer": p.answer}
        for p in predictions
    ]
    return write_json_rows(rows, path)


def write_metrics(metrics: dict[str, Any], path: Path) -> Path:
    """metrics.json."""
    return write_text(path, json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_rows(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """A JSON list with a row on each line."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    return write_text(path, f"[\n{lines}\n]\n")
