"""The file that is handed in."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from beit3_vqa.files import write_text
from beit3_vqa.schema import Prediction

HEADER = "ID,answer"
_FORMULA = re.compile(r"\s*[=+\-@]")  # how a cell begins that a spreadsheet calculates
_NUMBER = re.compile(r"\s*[+-]?[\d.,]+%?\s*")


def write_submission(predictions: Sequence[Prediction], path: Path) -> Path:
    """submission.csv: `ID,answer`, every row once, in input order.

    Ids and answers are written as they are, character for character. The competition's grader compares text: an
    apostrophe before `=1+1`, which keeps a spreadsheet from calculating it, would make the row wrong. The file is for
    the grader; that a spreadsheet would take some cells for formulas is said on the terminal, not mended in the file.
    """
    buffer = io.StringIO()
    plain = csv.writer(buffer, lineterminator="\n")
    quoted = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(HEADER.split(","))
    for p in predictions:
        # Python before 3.13 doesn't quote a lone carriage return, which ends a row for whoever reads the file.
        (quoted if "\r" in p.id + p.answer else plain).writerow((p.id, p.answer))
    write_text(path, buffer.getvalue())
    formulas = sum(is_formula(p.id) or is_formula(p.answer) for p in predictions)
    if formulas:
        print(f"{path.name}: a spreadsheet would take {formulas} rows for formulas; hand it in as it is, unopened")
    return path


def is_formula(text: str) -> bool:
    """Whether a spreadsheet would calculate the text instead of showing it; plain numbers aren't formulas."""
    return bool(_FORMULA.match(text)) and not _NUMBER.fullmatch(text)
