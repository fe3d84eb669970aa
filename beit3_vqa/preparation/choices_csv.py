"""Multiple choice in tables: `ID,img_path,Question,A,B,C,D[,answer][,weight]`, the format of SCPC.

It is `table` for files whose columns have these names, whatever else stands beside them: they win over other columns
that might mean the same, and an answer that is an option's text is that option, also if it is a number.
"""

import csv
import io
from collections.abc import Iterable

from beit3_vqa.data.rows import LETTERS as ALL_LETTERS
from beit3_vqa.data.rows import Row
from beit3_vqa.preparation.table import Arguments, Dialect, read_tables
from beit3_vqa.preparation.writer import Prepared, PrepareOptions

__all__ = ["Arguments", "read", "write_csv"]

LETTERS = tuple(ALL_LETTERS[:4])
COLUMNS = ("ID", "img_path", "Question", *LETTERS)
_OWN = {"id": "ID", "image": "img_path", "question": "Question", "answer": "answer", "weight": "weight"}


def read(arguments: Arguments, options: PrepareOptions) -> Prepared:
    """Read the table of each split; rows of train and val need an answer, those of test may have one."""
    return read_tables(arguments, options, Dialect("choices", _OWN, needs_options=True, texts_before_places=True))


def write_csv(rows: Iterable[Row]) -> str:
    """Return rows with options as CSV text, which `read` turns back into the same rows."""
    rows = list(rows)
    has_answer = any("answer" in row for row in rows)
    text = io.StringIO(newline="")
    # Quotes everywhere: a lone carriage return, a leading space or a "=1+1" then survives any reader as it is.
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow([*COLUMNS, "answer"] if has_answer else COLUMNS)
    for row in rows:
        answer = [row.get("answer", "")] if has_answer else []
        writer.writerow([row["id"], row["image_path"], row["question"], *row["choices"], *answer])
    return text.getvalue()
