"""Tables of every kind hold the same rows, and text in them stays text."""

import datetime
import io
import json
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beit3_vqa.data.shown_values import as_shown
from beit3_vqa.data.table_files import read_frame, read_table
from beit3_vqa.errors import InputError

HEADER = ("ID", "img", "question")
ROWS = [("None", "a.png", "NA"), ("007", "b.png", "1.0"), ("é 가", "c, d.png", 'say "hi"\nand go'), ("null", "x", "")]


def cells(table):
    return [tuple(row) for _, row in table.rows]


def write_delimited(path, header, rows, mark):
    def quoted(cell):
        return '"' + cell.replace('"', '""') + '"'

    path.write_text("\n".join(mark.join(map(quoted, row)) for row in (header, *rows)), encoding="utf-8", newline="")


def write_xlsx(path, header, rows):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (header, *rows):
        book.active.append(row)
        for cell in book.active[book.active.max_row]:
            cell.data_type = "s" if isinstance(cell.value, str) else cell.data_type
    book.save(path)


def write_xls(path, header, rows):
    book = pytest.importorskip("xlwt").Workbook()
    sheet = book.add_sheet("one")
    for place, row in enumerate((header, *rows)):
        for column, cell in enumerate(row):
            sheet.write(place, column, cell)
    book.save(str(path))


def write_arrow(path, header, rows, kind):
    pa = pytest.importorskip("pyarrow")
    table = pa.table(
        [pa.array([row[place] for row in rows], pa.string()) for place in range(len(header))], list(header)
    )
    if kind == "parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(table, path)
    else:
        import pyarrow.feather

        pyarrow.feather.write_feather(table, path)


WRITERS = {
    "csv": lambda path, header, rows: write_delimited(path, header, rows, ","),
    "tsv": lambda path, header, rows: write_delimited(path, header, rows, "\t"),
    "semicolons": lambda path, header, rows: write_delimited(path, header, rows, ";"),
    "xlsx": write_xlsx,
    "xls": write_xls,
    "parquet": lambda path, header, rows: write_arrow(path, header, rows, "parquet"),
    "feather": lambda path, header, rows: write_arrow(path, header, rows, "feather"),
    "json": lambda path, header, rows: path.write_text(
        json.dumps([dict(zip(header, row, strict=True)) for row in rows], ensure_ascii=False), encoding="utf-8"
    ),
    "jsonl": lambda path, header, rows: path.write_text(
        "\n".join(json.dumps(dict(zip(header, row, strict=True))) for row in rows)
    ),
    "columns": lambda path, header, rows: path.write_text(
        json.dumps({name: {str(n): row[place] for n, row in enumerate(rows)} for place, name in enumerate(header)})
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_rows_come_out_of_every_kind_of_file(tmp_path, kind):
    path = tmp_path / "no ending tells"
    WRITERS[kind](path, HEADER, ROWS)
    table = read_table(path)
    assert table.header == HEADER
    assert cells(table) == ROWS


# What XML and CSV can hold; a row of blanks is passed over.
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=8)
SOLID = TEXT.filter(lambda text: text.strip() == text and not text.startswith("_x"))


@pytest.mark.parametrize("kind", WRITERS)
@given(rows=st.lists(st.tuples(SOLID, TEXT, TEXT), min_size=2, max_size=5))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_text_survives_every_kind_of_file(tmp_path, kind, rows):
    path = tmp_path / "table"
    WRITERS[kind](path, HEADER, rows)
    assert cells(read_table(path)) == rows


def test_a_frame_gives_the_same_cells_and_gaps_are_empty():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(ROWS, columns=HEADER, index=[5, 3, "x", 1])
    assert cells(read_frame(frame, "train")) == ROWS
    frame = pd.DataFrame(
        {"a": [1, None, 3], "b": [1.5, 2.0, None], "c": ["007", None, float("nan")], "d": [True, 0, "1.0"]}
    )
    assert cells(read_frame(frame, "train")) == [
        ("1", "1.5", "007", "true"),
        ("", "2.0", "", "0"),
        ("3", "", "", "1.0"),
    ]


def test_lists_stay_lists(tmp_path):
    (tmp_path / "t.json").write_text('[{"q": "a", "options": ["x", 2, 1.0]}]')
    assert cells(read_table(tmp_path / "t.json")) == [("a", ["x", "2", "1.0"])]


def test_numbers_in_json_are_as_they_are_written(tmp_path):
    (tmp_path / "t.json").write_text(
        '{"annotations": [{"a": 1.0, "b": 10000000000000000000001, "c": null, "d": true}]}'
    )
    assert cells(read_table(tmp_path / "t.json")) == [("1.0", "10000000000000000000001", "", "true")]


@pytest.mark.parametrize(
    ("value", "code", "shown"),
    [
        (7, "000", "007"),
        (7.0, "General", "7"),
        (0.1, "General", "0.1"),
        (1.5, "0.00", "1.50"),
        (0.25, "0%", "25%"),
        (1234.5, "#,##0.0", "1,234.5"),
        (-7, "000", "-007"),
        (2.5, "0", "3"),  # halves go away from zero, as in spreadsheets; Python's own would go to the even digit
        (-2.5, "0", "-3"),
        (0.125, "0.00", "0.13"),
        (0.125, "0%", "13%"),
        (1.005, "0.00", "1.01"),  # whose float is a little less
        (1e300, "#,##0", f"{10**300:,}"),
        (True, "General", "TRUE"),
        ("007", "General", "007"),
        (datetime.datetime(2024, 1, 31), "dd/mm/yy", "2024-01-31"),
        (2.5, "[Red]weird", "2.5"),
        (2 / 3, "General", "0.6666666667"),
        (202401310001, "General", "202401310001"),
        (12345678901.0, "General", "12345678901"),
        (datetime.time(9, 5), "[$-en-US]h:mm AM/PM;@", "9:05 AM"),
        (datetime.time(0, 5, 30), "mm:ss", "00:05:30"),
        (0.1 + 0.2, "General", "0.3"),
        (datetime.time(9, 5), "h:mm", "9:05"),
        (datetime.time(9, 5), "hh:mm;@", "09:05"),
        (datetime.time(12, 30, 15), "h:mm:ss", "12:30:15"),
        (datetime.time(0, 30), "h:mm AM/PM", "12:30 AM"),
    ],
)
def test_numbers_are_as_the_spreadsheet_shows_them(value, code, shown):
    assert as_shown(value, code) == shown


@pytest.mark.parametrize("kind", ["xlsx", "xls"])
def test_numbers_of_a_spreadsheet_keep_their_format(tmp_path, kind):
    path = tmp_path / "t"
    if kind == "xlsx":
        openpyxl = pytest.importorskip("openpyxl")
        book = openpyxl.Workbook()
        book.active.append(["id", "n", "t"])
        book.active.append([7, 3, datetime.time(9, 5)])
        book.active["A2"].number_format, book.active["C2"].number_format = "000", "h:mm"
        book.save(path)
    else:
        xlwt = pytest.importorskip("xlwt")
        book = xlwt.Workbook()
        sheet = book.add_sheet("s")
        sheet.write(0, 0, "id")
        sheet.write(0, 1, "n")
        sheet.write(0, 2, "t")
        sheet.write(1, 2, datetime.time(9, 5), xlwt.easyxf(num_format_str="h:mm"))
        sheet.write(1, 0, 7, xlwt.easyxf(num_format_str="000"))
        sheet.write(1, 1, 3)
        book.save(str(path))
    assert cells(read_table(path)) == [("007", "3", "9:05")]


def test_a_sheet_is_named_or_the_first_is_taken_with_a_line(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "notes"
    book.active.append(["a"])
    book.active.append(["1"])
    second = book.create_sheet("questions")
    second.append(["b"])
    second.append(["2"])
    book.save(tmp_path / "t.xlsx")
    notes: list[str] = []
    assert read_table(tmp_path / "t.xlsx", notes=notes).header == ("a",)
    assert "--sheet" in notes[0]
    assert cells(read_table(tmp_path / "t.xlsx", sheet="questions")) == [("2",)]
    with pytest.raises(InputError, match="no such sheet; it has notes, questions"):
        read_table(tmp_path / "t.xlsx", sheet="x")


def test_an_error_in_a_cell_is_named(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["a"])
    book.active.append(["#N/A"])
    book.save(tmp_path / "t.xlsx")
    with pytest.raises(InputError, match=r"sheet 'Sheet', cell A2: holds the error #N/A"):
        cells(read_table(tmp_path / "t.xlsx"))


def test_one_line_is_a_row_in_a_file_of_json_lines_alone(tmp_path):
    for name in ("t.jsonl", "t.NDJSON", "t.json"):
        (tmp_path / name).write_text('{"q": "a", "n": 1}\n')
    assert cells(read_table(tmp_path / "t.jsonl")) == cells(read_table(tmp_path / "t.NDJSON")) == [("a", "1")]
    with pytest.raises(InputError, match="holds no list of questions"):
        read_table(tmp_path / "t.json")


def test_blank_rows_are_passed_over_and_counted_and_lines_keep_their_numbers(tmp_path):
    (tmp_path / "t.csv").write_text("sep=;\na;b\n1;2\n;\n\n3;4\n")
    table = read_table(tmp_path / "t.csv")
    assert list(table.rows) == [(f"{tmp_path}/t.csv:3", ["1", "2"]), (f"{tmp_path}/t.csv:6", ["3", "4"])]
    assert table.blank == 1


def archive(entries):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"%PDF-1.7", "is a PDF file"),
        (b"\x89PNG\r\n\x1a\n", "is an image"),
        (b"\x1f\x8b\x08", "gzip"),
        (archive({"train.csv": "a"}), "is a zip archive: unpack it"),
        (archive({"a.png": "a", "b.txt": "b", "c.PNG": "c"}), "is a zip archive of images: give it as --image_root"),
        (archive({"mimetype": "x", "content.xml": "x"}), "is an OpenDocument spreadsheet: save it as XLSX or CSV"),
        (archive({"word/document.xml": "x"}), "is a Word document"),
        (b"\xd0\xcf\x11\xe0" + "EncryptedPackage".encode("utf-16-le"), "an Excel workbook with a password"),
        (b"PK\x03\x04 and no more", "damaged spreadsheet or zip archive"),
        (archive({"xl/workbook.xml": "<"}), "can't be read as an Excel workbook"),
        (b"PAR1 and no more", "can't be read as a Parquet file"),
        (b"ARROW1 and no more", "can't be read as a Feather file"),
        (b"\xd0\xcf\x11\xe0 and no more", "can't be read as an Excel workbook"),
        (b"[1, 2]", "item 1 isn't an object"),
        (b"[]", "isn't a list of questions"),
        (b'{"a": 1}', "holds no list of questions; its names are"),
        (b'[{"a": ', "isn't JSON"),
        (b"", "is empty"),
        (b"a\n" + b"x" * 5_000_000, "a line of more than"),
    ],
)
def test_what_is_no_table_is_called_what_it_is(tmp_path, content, message):
    for module in ("openpyxl", "xlrd", "pyarrow"):
        pytest.importorskip(module)
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        cells(read_table(tmp_path / "t.csv"))


def test_a_spreadsheet_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("beit3_vqa.data.table_files.MAX_SOURCE", 10_000)
    (tmp_path / "t.xlsx").write_bytes(archive({"xl/workbook.xml": "x" * 20_000}))
    with pytest.raises(InputError, match="would unpack to 20,000 bytes, more than 10,000"):
        read_table(tmp_path / "t.xlsx")


def test_a_missing_package_is_an_error_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    (tmp_path / "t.xlsx").write_bytes(archive({"xl/workbook.xml": "x"}))
    with pytest.raises(InputError, match=r't\.xlsx needs openpyxl, .*: pip install "beit3_vqa\[excel\]"'):
        read_table(tmp_path / "t.xlsx")


@pytest.mark.parametrize("kind", ["parquet", "feather"])
@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [1.0, None, 3.0], [1.0, 2.5, 3.0]])
def test_whole_numbers_that_pandas_made_floats_are_whole(tmp_path, kind, values):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"answer": pa.array(values, pa.float64()), "question": ["a", "b", "c"]})
    if kind == "parquet":
        pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "t")
    else:
        pytest.importorskip("pyarrow.feather").write_feather(table, tmp_path / "t")
    found = [row[0] for row in cells(read_table(tmp_path / "t"))]
    shown = [str(value) if 2.5 in values else str(int(value)) if value else "" for value in values]
    assert found == shown
    assert [row[0] for row in cells(read_frame(table.to_pandas(), "frame"))] == shown
