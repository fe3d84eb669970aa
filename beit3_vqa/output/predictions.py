"""Predictions and metrics as JSON, whole or not at all.

Ids, questions and answers are in there as they are in the data; as JSON they survive exactly, and looking at the file
in a terminal is harmless, since every control character is written as an escape.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beit3_vqa.errors import CONTROL
from beit3_vqa.files import write_text
from beit3_vqa.schema import Prediction


def json_text(value: Any, indent: int | None = None, *, allow_nan: bool = False) -> str:
    """JSON that shows every script as it is written, and control characters (C1 and direction marks too) as escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=allow_nan)
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


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
    return write_text(path, json_text(metrics, indent=2) + "\n")


def write_json_rows(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """A JSON list with a row on each line."""
    lines = ",\n".join(json_text(row) for row in rows)
    return write_text(path, f"[\n{lines}\n]\n")
