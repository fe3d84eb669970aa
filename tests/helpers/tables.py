"""The same few questions as a file of each kind of table; a folder is for what is written on the way."""

import io
import json
from pathlib import Path
from typing import Any

TABLE = [
    ["id", "img", "question", "A", "B", "answer"],
    *([f"Q{i}", "a", "무엇?", "x", "y", "AB"[i % 2]] for i in range(4)),
]


def json_lines() -> bytes:
    rows = (dict(zip(TABLE[0], row, strict=True)) for row in TABLE[1:])
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def xlsx() -> bytes:
    import openpyxl

    book, buffer = openpyxl.Workbook(), io.BytesIO()
    for row in TABLE:
        book.active.append(row)
    book.save(buffer)
    return buffer.getvalue()


def xls() -> bytes:
    import xlwt

    book, buffer = xlwt.Workbook(), io.BytesIO()
    sheet = book.add_sheet("questions")
    for place, row in enumerate(TABLE):
        for column, cell in enumerate(row):
            sheet.write(place, column, cell)
    book.save(buffer)
    return buffer.getvalue()


def _frame() -> Any:
    import pyarrow

    return pyarrow.table({name: [row[place] for row in TABLE[1:]] for place, name in enumerate(TABLE[0])})


def parquet(folder: Path) -> bytes:
    import pyarrow.parquet

    pyarrow.parquet.write_table(_frame(), folder / "t")
    return (folder / "t").read_bytes()


def feather(folder: Path) -> bytes:
    import pyarrow.feather

    pyarrow.feather.write_feather(_frame(), str(folder / "t"))
    return (folder / "t").read_bytes()
