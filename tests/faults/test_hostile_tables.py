"""Small files that ask a reader of tables for all memory, or for minutes: one clear error each."""

import io
import json
import resource
import time
import zipfile

import pytest

from beit3_vqa.errors import InputError
from beit3_vqa.preparation import PrepareOptions, prepare
from tests.helpers import tables

SHEET = (
    '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>{}</sheetData></worksheet>'
)
LAUGHS = "<!DOCTYPE x [<!ENTITY a '" + "ha" * 1000 + "'>" + "".join(
    f"<!ENTITY {name} '{f'&{before};' * 100}'>" for before, name in zip("abcdef", "bcdefg", strict=True)
) + "]>"  # fmt: skip


def workbook(**parts):
    """An XLSX file of openpyxl with other content in some of its parts."""
    openpyxl = pytest.importorskip("openpyxl")
    book, good, changed = openpyxl.Workbook(), io.BytesIO(), io.BytesIO()
    book.active.append(["img", "question", "answer"])
    book.active.append(["a.png", "Q?", "x"])
    book.save(good)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            kind = name.rpartition("/")[2].partition(".")[0]
            new.writestr(name, parts.get(kind, old.read(name)))
    return changed.getvalue()


def parquet_of_one_value(rows):
    """A few kilobytes that say they are that many rows."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    buffer = io.BytesIO()
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, "int8"), pyarrow.array(["x"]))
    parquet.write_table(pyarrow.table(dict.fromkeys(("img", "question", "answer"), column)), buffer)
    return buffer.getvalue()


def deep(kind, levels):
    return kind * levels + {"[": "]", '{"a":': "}"}[kind] * levels


FILES = {
    "a workbook of 110 MB of spaces": (lambda: workbook(sheet1=" " * 110_000_000), "as a zip bomb does"),
    "a workbook that laughs": (
        lambda: workbook(sheet1=LAUGHS + SHEET.format('<row><c t="str"><v>&g;</v></c></row>')),
        "can't be read as an Excel workbook",
    ),
    "a workbook of deep XML": (lambda: workbook(sheet1="<a>" * 100_000), "can't be read as an Excel workbook"),
    "a workbook with a row of a billion": (
        lambda: workbook(sheet1=SHEET.format('<row r="1"><c r="A1000000000"><v>1</v></c></row>')),
        "no column for|can't be read as an Excel workbook|is this a table",
    ),
    "a parquet file of one value": (lambda: parquet_of_one_value(1_200_000), "says it has 1,200,000 rows in"),
    "lists in lists": (lambda: deep("[", 100_000).encode(), "isn't JSON"),
    "objects in objects": (lambda: deep('{"a":', 100_000).encode(), "isn't JSON|no column for"),
    "a list in a cell": (
        lambda: (f'[{{"img": "a.png", "question": {deep("[", 400)}, "answer": "x"}}]').encode(),
        "question is empty|doesn't exist",
    ),
    "a giant string": (
        lambda: json.dumps([{"img": "a.png", "question": "x" * 5_000_000, "answer": "x"}]).encode(),
        "'question' has more than 1,000,000 characters",
    ),
    "a name of a million letters": (
        lambda: json.dumps([{"x" * 1_000_000: 1}]).encode(),
        "no column for image, question, answer",
    ),
    "half a surrogate": (
        lambda: rb'[{"img": "a.png", "question": "\ud800", "answer": "x"}]',
        "'question' holds a NUL character or half a surrogate",
    ),
    "a hundred thousand columns": (lambda: ("a," * 100_000).encode(), "columns, more than 10,000"),
    "a zip of zips": (lambda: b"PK\x03\x04" * 1000, "damaged spreadsheet or zip archive"),
}


@pytest.mark.parametrize("name", FILES)
def test_hostile_tables_are_one_error_within_seconds(tmp_path, name):
    make, says = FILES[name]
    path = tmp_path / "x"
    path.write_bytes(make())
    (tmp_path / "images").mkdir()
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(InputError, match=says) as caught:
        prepare("table", {"train": str(path)}, PrepareOptions(str(tmp_path / "out"), str(tmp_path / "images")))
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB
    assert len(str(caught.value)) < 10_000
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["xlsx", "xls", "parquet", "feather"])
def test_a_part_of_a_table_is_one_error(tmp_path, kind, share):
    for module in ("openpyxl", "xlrd", "xlwt", "pyarrow"):
        pytest.importorskip(module)
    whole = getattr(tables, kind)(*([tmp_path] if kind in ("parquet", "feather") else []))
    path = tmp_path / f"x.{kind}"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=rf"x\.{kind}"):
        prepare("table", {"train": str(path)}, PrepareOptions(str(tmp_path / "out"), str(tmp_path)))
