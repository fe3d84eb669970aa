"""The file that is handed in."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from beit3_vqa.files import write_text
from beit3_vqa.schema import Prediction


def write_submission(predictions: Sequence[Prediction], path: Path) -> Path:
    """submission.csv: `ID,answer`, every row once, in input order."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["ID", "answer"])
    writer.writerows((p.id, p.answer) for p in predictions)
    return write_text(path, buffer.getvalue())
