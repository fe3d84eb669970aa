"""Read a table from any kind of file that people keep one in: a header, and the cells of each row as text.

Text stays text: "None", "NA", "007" and "1.0" are what they are in the file. A spreadsheet's numbers are taken as the
spreadsheet shows them. What kind a file is says its content, not its name.
"""

import datetime
import io
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beit3_vqa.data.file_kinds import KINDS, file_kind
from beit3_vqa.data.shown_values import as_shown
from beit3_vqa.data.tables import MAX_CELL, MAX_SOURCE, parse_csv, read_text
from beit3_vqa.errors import InputError, first_line, short
from beit3_vqa.runtime.archives import require_no_bomb, zip_entries
from beit3_vqa.runtime.extras import import_extra
from beit3_vqa.runtime.files import is_text, require_bounded

Cell = str | list[str]  # a list in JSON, Parquet or a DataFrame
Read = Iterator[tuple[str, Sequence[Cell]]]

MAX_COLUMNS = 10_000
MAX_ROWS = 20_000_000
_MANY_ROWS = 1_000_000
_DELIMITERS = ",\t;|"
_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


@dataclass
class Table:
    """A table whose rows are read while they are asked for.

    Attributes:
        header: the names of the columns, as in the file.
        rows: (where it is, such as `train.csv:12`; its cells) of each row that isn't blank; no cells at all for an
            item of JSON that isn't an object.
        blank: how many blank rows were passed over; complete when `rows` is at its end.
    """

    header: tuple[str, ...]
    rows: Read
    blank: int = field(default=0)

    def __post_init__(self) -> None:
        self.rows = self._full_rows(self.rows)

    def _full_rows(self, rows: Read) -> Read:
        for number, (origin, cells) in enumerate(rows):
            if number == MAX_ROWS:
                raise InputError(f"{origin}: more than {MAX_ROWS:,} rows before this one: split the file")
            if not cells or any(isinstance(cell, list) or cell.strip() for cell in cells):
                yield origin, cells
            else:
                self.blank += 1


def read_table(path: Path, encoding: str = "", sheet: str = "", notes: list[str] | None = None) -> Table:
    """Open a CSV (commas, tabs, semicolons or bars, `sep=` first), XLSX, XLS, Parquet, Feather or JSON file.

    Args:
        path: the file.
        encoding: of a text file; see `tables.read_text`.
        sheet: name of the sheet of a spreadsheet; empty: its only or first visible one.
        notes: gets a line for each thing that was decided in the user's place.

    Raises:
        InputError: the file is missing, damaged, too large or no table, or needs a package that isn't installed; rows
            may raise it too, while they are read.
    """
    notes = [] if notes is None else notes
    require_bounded(path, MAX_SOURCE)
    kind = _kind(path)
    if kind in _BINARY:
        with _explained(path, kind):
            table = _BINARY[kind](path, sheet, notes)
        table.rows = _guarded(table.rows, path, kind)
    else:
        if sheet:
            raise InputError(f"--sheet {sheet}: {path} has no sheets; only spreadsheets do.")
        text = read_text(path, encoding, notes)
        is_json = text.lstrip()[:1] in ("[", "{")
        table = _from_json(text, path) if is_json else _from_text(text, path, notes)
    if len(table.header) > MAX_COLUMNS:
        raise InputError(f"{path}: {len(table.header):,} columns, more than {MAX_COLUMNS:,}: is this a table?")
    return table


@contextmanager
def _explained(path: Path, kind: str) -> Iterator[None]:
    """Turn what other people's libraries raise for a damaged file, which may be anything, into an InputError."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path} needs more memory than there is: split the file") from error
    except Exception as error:
        raise InputError(f"{path} can't be read as {KINDS[kind]}: {first_line(error)}") from error


def _guarded(rows: Read, path: Path, kind: str) -> Read:
    while True:
        with _explained(path, kind):
            row = next(rows, None)
        if row is None:
            return
        yield row


def _kind(path: Path) -> str:
    """Return the key of `_BINARY` for a file, or an empty string for text; InputError for what is no table."""
    kind = file_kind(path)
    if kind and kind not in _BINARY:
        raise InputError(f"{path} is {KINDS[kind]}; a table is needed: CSV, XLSX, XLS, Parquet, Feather or JSON")
    if kind == "xlsx":
        require_no_bomb(path, zip_entries(path), MAX_SOURCE)
    return kind


# Text


def _from_text(text: str, path: Path, notes: list[str]) -> Table:
    found = re.search(r"\S[^\r\n]*", text)
    first = found[0] if found else ""
    said = re.fullmatch(r'"?sep=(.)"?', first)
    if said:  # Excel's first line; what takes its place is blank, so that lines keep their numbers
        text = text.replace(first, "", 1)
        delimiter = said[1]
    else:
        outside = re.sub(r'"[^"]*"', "", first)
        delimiter = max(_DELIMITERS, key=outside.count) if any(d in outside for d in _DELIMITERS) else ","
    if delimiter != ",":
        notes.append(f"{path}: cells are separated by {_NAMES.get(delimiter, repr(delimiter))}")
    lines = parse_csv(text, path, delimiter)
    _, header = next(lines, (1, []))
    return Table(tuple(header), ((f"{path}:{line}", cells) for line, cells in lines))


# JSON


_LINE_END = re.compile(r"\r\n|\r|\n")  # not Unicode's others, which a text may hold


def _from_json(text: str, path: Path) -> Table:
    """Read a list of objects, an object that holds one such list, pandas' columns, or an object on each line.

    A single line is a row only in a file of JSON lines; elsewhere it may be any of the others.
    """
    lines = _LINE_END.split(text)
    first, *more = filter(str.strip, lines) if text.strip() else [""]
    several = bool(more) or path.suffix.lower() in (".jsonl", ".ndjson")
    if text.lstrip().startswith("{") and several and _is_json(first):
        items = [
            (f"{path}:{number}", _parse(line, path, f":{number}"))
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
    else:
        items = [(f"{path}: item {place}", item) for place, item in enumerate(_records(_parse(text, path), path), 1)]
    header = tuple(dict.fromkeys(name for _, item in items if isinstance(item, dict) for name in item))
    if not header:
        raise InputError(f"{items[0][0]} isn't an object with a name for each cell")
    objects = ((where, item if isinstance(item, dict) else None) for where, item in items)
    return Table(
        header,
        (
            (where, [] if item is None else [_cell(item.get(name), where, name) for name in header])
            for where, item in objects
        ),
    )


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parse(text: str, path: Path, where: str = "") -> Any:
    """Parse JSON and keep its numbers as they are written."""
    try:
        return json.loads(
            text, parse_int=str, parse_float=str, parse_constant=lambda name: "" if name == "NaN" else name
        )
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}{where} isn't JSON: {error}.") from error


def _records(content: Any, path: Path) -> list[Any]:
    """Return the objects in a JSON file."""
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list) and value]
        if len(lists) == 1:  # {"annotations": [...]}
            return lists[0]
        columns = list(content.values())
        if columns and all(isinstance(c, dict) and c for c in columns) and len({tuple(c) for c in columns}) == 1:
            return [{name: column[key] for name, column in content.items()} for key in columns[0]]  # DataFrame.to_json
        raise InputError(f"{path} holds no list of questions; its names are {short(list(content))}")
    if not isinstance(content, list) or not content:
        raise InputError(f"{path} isn't a list of questions")
    return content


def _cell(value: Any, where: str, name: str) -> Cell:
    """Return what JSON, Parquet or a DataFrame has in a cell as text, or a list as a list of texts."""
    if value is None:
        return ""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif hasattr(value, "tolist"):  # numpy's numbers and arrays
        value = value.tolist()
    if isinstance(value, str):
        if len(value) > MAX_CELL:
            raise InputError(f"{where}: {short(name)} has more than {MAX_CELL:,} characters")
        if not is_text(value):
            raise InputError(f"{where}: {short(name)} holds a NUL character or half a surrogate, which no text has")
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        flat = (item for item in value if not isinstance(item, (list, tuple)))
        return [text for item in flat if isinstance(text := _cell(item, where, name), str)]
    if isinstance(value, (int, float, datetime.date)):
        return "" if value != value else str(value)  # NaN
    if isinstance(value, dict):
        with suppress(ValueError, TypeError, RecursionError):
            return str(_cell(json.dumps(value, ensure_ascii=False), where, name))
    raise InputError(f"{where}: {short(name)} holds {short(value)}, which is no text")


# Spreadsheets


def _from_xlsx(path: Path, sheet: str, notes: list[str]) -> Table:
    openpyxl = import_extra("openpyxl", "excel", str(path))
    # From memory: a file that is read row by row would stay open if the rows aren't read to their end.
    content = io.BytesIO(path.read_bytes())
    book = openpyxl.load_workbook(content, read_only=True, data_only=True, keep_links=False)
    names = [s.title for s in book.worksheets if s.sheet_state == "visible"]
    chosen = book[_choose(names, sheet, path, notes)]
    # A file may claim a million rows of which a hundred hold anything.
    chosen.reset_dimensions()

    def lines() -> Iterator[tuple[int, list[str]]]:
        for number, cells in enumerate(chosen.iter_rows(), start=1):
            yield number, [_shown_xlsx(cell, f"{path}, sheet {chosen.title!r}") for cell in cells]

    return _from_sheet(lines(), f"{path}, sheet {chosen.title!r}")


def _shown_xlsx(cell: Any, where: str) -> str:
    if cell.value is None:
        return ""
    if cell.data_type == "e":
        raise InputError(f"{where}, cell {cell.coordinate}: holds the error {cell.value}: mend the formula")
    return as_shown(cell.value, cell.number_format or "General")


def _from_xls(path: Path, sheet: str, notes: list[str]) -> Table:
    xlrd = import_extra("xlrd", "excel", str(path))
    book = xlrd.open_workbook(str(path), formatting_info=True, logfile=io.StringIO())
    names = [s.name for s in book.sheets() if not s.visibility]
    chosen = book.sheet_by_name(_choose(names, sheet, path, notes))
    where = f"{path}, sheet {chosen.name!r}"

    def shown(row: int, column: int) -> str:
        cell = chosen.cell(row, column)
        if cell.ctype == xlrd.XL_CELL_ERROR:
            raise InputError(f"{where}, row {row + 1}, column {column + 1}: holds an error: mend the formula")
        value = cell.value
        if cell.ctype == xlrd.XL_CELL_DATE:
            moment = xlrd.xldate_as_datetime(value, book.datemode)
            value = moment.time() if 0 <= value < 1 else moment
        elif cell.ctype == xlrd.XL_CELL_BOOLEAN:
            value = bool(value)
        return as_shown(value, book.format_map[book.xf_list[cell.xf_index].format_key].format_str)

    lines = ((row + 1, [shown(row, column) for column in range(chosen.row_len(row))]) for row in range(chosen.nrows))
    return _from_sheet(lines, where)


def _choose(names: Sequence[str], wanted: str, path: Path, notes: list[str]) -> str:
    """Return the name of the sheet to read; InputError if there is none of that name."""
    if wanted and wanted not in names:
        raise InputError(f"--sheet {wanted}: {path} has no such sheet; it has {', '.join(names)}.")
    if not names:
        raise InputError(f"{path} has no visible sheet")
    if not wanted and len(names) > 1:
        notes.append(f"{path}: sheet {names[0]!r} was read, of {', '.join(names)}; --sheet names another")
    return wanted or names[0]


def _from_sheet(lines: Iterator[tuple[int, list[str]]], where: str) -> Table:
    header: list[str] = []
    for _, cells in lines:
        if any(cell.strip() for cell in cells):
            header = cells
            break
    while header and not header[-1].strip():
        header.pop()
    width = len(header)

    def rows() -> Read:
        for number, cells in lines:
            beyond = next((place for place, cell in enumerate(cells[width:], width) if cell.strip()), None)
            if beyond is not None:
                raise InputError(
                    f"{where}, row {number}: a cell in column {beyond + 1}, which has no name in the header"
                )
            yield f"{where}, row {number}", (cells + [""] * width)[:width]

    return Table(tuple(header), rows())


# Columnar files and frames


def _from_parquet(path: Path, sheet: str, notes: list[str]) -> Table:
    parquet = import_extra("pyarrow.parquet", "parquet", str(path))
    file = parquet.ParquetFile(path)
    number, size = file.metadata.num_rows, path.stat().st_size
    if number > max(_MANY_ROWS, size):  # no questions can be packed so well
        raise InputError(f"{path} says it has {number:,} rows in {size:,} bytes: is this a table of questions?")
    names = file.schema_arrow.names
    floats = [name for name in names if str(file.schema_arrow.types[names.index(name)]) in _FLOATS]
    whole = {name for name in floats if names.count(name) == 1 and _is_whole(file.read(columns=[name]).columns[0])}
    return _from_batches(names, file.iter_batches(), path, whole)


def _from_feather(path: Path, sheet: str, notes: list[str]) -> Table:
    table = import_extra("pyarrow.feather", "parquet", str(path)).read_table(path, memory_map=False)
    names = table.schema.names
    whole = {name for name, column in zip(names, table.columns, strict=True) if _is_whole(column)}
    return _from_batches(names, table.to_batches(), path, whole)


_FLOATS = ("halffloat", "float", "double")  # pyarrow's types


def _is_whole(column: Any) -> bool:
    """Return whether a column is of floats that are all whole: pandas makes such a one of whole numbers with gaps."""
    return str(column.type) in _FLOATS and _all_whole(
        [value for value in column.to_pylist() if value is not None and value == value]
    )


def _all_whole(known: Sequence[Any]) -> bool:
    return bool(known) and all(type(value) is float and value.is_integer() for value in known)


def _from_batches(names: Sequence[str], batches: Iterable[Any], path: Path, whole: Collection[str]) -> Table:
    # pandas keeps an index beside the columns under such a name.
    kept = [place for place, name in enumerate(names) if not re.fullmatch(r"__index_level_\d+__", name)]

    def rows() -> Read:
        number = 0
        for batch in batches:
            columns = [batch.column(place).to_pylist() for place in kept]
            for place, column in zip(kept, columns, strict=True):
                if names[place] in whole:
                    column[:] = [None if value is None or value != value else int(value) for value in column]
            for values in zip(*columns, strict=True):
                number += 1
                where = f"{path}: row {number}"
                yield where, [_cell(value, where, names[place]) for place, value in zip(kept, values, strict=True)]

    return Table(tuple(names[place] for place in kept), rows())


def read_frame(frame: Any, name: str) -> Table:
    """Return the rows of a pandas DataFrame; `name` stands for the file in messages.

    A column of whole numbers that has or had gaps is one of floats in pandas: its numbers are shown without ".0".
    """
    columns = [_column(frame.iloc[:, place]) for place in range(frame.shape[1])]
    header = tuple(str(column) for column in frame.columns)

    def rows() -> Read:
        for label, values in zip(frame.index, zip(*columns, strict=True), strict=True):
            where = f"{name}, row {short(label)}"
            yield where, [_cell(value, where, column) for column, value in zip(header, values, strict=True)]

    return Table(header, rows())


def _column(series: Any) -> list[Any]:
    """Return the values of a Series as Python's own; None for each missing one."""
    gaps = series.isna().tolist()
    values = series.tolist()
    known = [value for value, gap in zip(values, gaps, strict=True) if not gap]
    if _all_whole(known):
        values = [None if gap else int(value) for value, gap in zip(values, gaps, strict=True)]
    return [None if gap is True else value for value, gap in zip(values, gaps, strict=True)]


_BINARY: dict[str, Callable[[Path, str, list[str]], Table]] = {
    "xlsx": _from_xlsx,
    "xls": _from_xls,
    "parquet": _from_parquet,
    "feather": _from_feather,
}
