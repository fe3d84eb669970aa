"""Multiple choice in CSV files: `ID,img_path,Question,A,B,C,D[,answer][,weight]`, the format of SCPC."""

import csv
import io
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from beit3_vqa.data.index import SPLITS
from beit3_vqa.data.rows import Row
from beit3_vqa.errors import MAX_PROBLEMS, InputError
from beit3_vqa.prepare import Argument
from beit3_vqa.prepare.source import read_source
from beit3_vqa.prepare.writer import Prepared, PrepareOptions

ARGUMENTS = (
    Argument("train", "CSV of training questions: ID,img_path,Question,A,B,C,D,answer[,weight]", required=True),
    Argument("val", "CSV of validation questions; default: --val_ratio of the training images"),
    Argument("test", "CSV of test questions; its answer column may be missing"),
)

LETTERS = ("A", "B", "C", "D")
COLUMNS = ("ID", "img_path", "Question", *LETTERS)
OPTIONAL_COLUMNS = ("answer", "weight")
MAX_SHOWN = 500  # characters of a header, in a message
MAX_CELL = 1_000_000
"""Characters of the longest cell that is read."""
MAX_LINE = 4_000_000
"""Characters of the longest line: a hundred million commas would be as many cells."""
MAX_BLANK_LINES = 100_000
"""Blank lines one after the other: a hundred million take minutes to pass over."""


def read(values: Mapping[str, Any], options: PrepareOptions) -> Prepared:
    """Read the CSV of each split; rows of train and val need an answer, those of test may have one."""
    prepared = Prepared("choices", list(LETTERS), options.image_root)
    for split in SPLITS:
        if values[split]:
            path = Path(values[split])
            try:
                _read_split(path, split, prepared)
            except InputError as error:
                prepared.problems.append(str(error))
    return prepared


def _read_split(path: Path, split: str, prepared: Prepared) -> None:
    text, encoding = _decode(read_source(path), path)
    if encoding != "UTF-8":
        prepared.notes.append(f"{path} read as {encoding}")
    lines = _parse(text, path)
    _, header = next(lines, (1, []))
    columns = _find_columns(header, path, required=(*COLUMNS, *(["answer"] if split != "test" else [])))
    ignored = [name.strip() for index, name in enumerate(header) if index not in columns.values()]
    if ignored:
        prepared.notes.append(f"{path}: columns ignored: {', '.join(name or '(no name)' for name in ignored)}")

    counts: Counter[str] = Counter()
    for line, cells in lines:
        origin = f"{path}:{line}"
        counts["rows"] += 1
        if len(prepared.problems) >= MAX_PROBLEMS:
            raise InputError(f"{origin}: too many problems before this row; the rest of the file wasn't read")
        if len(cells) != len(header):
            prepared.problems.append(
                f"{origin}: {len(cells)} cells where the header has {len(header)} (text with a comma needs quotes)"
            )
            continue
        row, problems = _read_row({name: cells[index] for name, index in columns.items()}, split != "test", counts)
        if problems:
            prepared.problems.append(f"{origin}: {'; '.join(problems)}")
        if row["id"] and row["image_path"]:
            prepared.add(split, row, origin)
    if not counts["rows"]:
        raise InputError(f"{path} has a header but no rows")
    if counts["answers given as text"]:
        prepared.notes.append(f"{split}: {counts['answers given as text']:,} answers given as the option's text")
    if counts["repeated options"]:
        prepared.notes.append(f"{split}: {counts['repeated options']:,} rows have the same text in two options")


def _decode(content: bytes, path: Path) -> tuple[str, str]:
    """The text of a CSV file and its encoding: UTF-8 with or without a byte order mark, or CP949."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path} is in UTF-16: save it as UTF-8 (in Excel: CSV UTF-8)")
    if b"\0" in content:
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        raise InputError(f"{path}:{line}: a NUL byte, which no text has: is this a CSV file? Save it as CSV, UTF-8")
    try:
        return content.decode("utf-8-sig"), "UTF-8"
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
    replaced = content.decode("utf-8-sig", errors="replace")
    damaged = replaced.count("\ufffd")
    if sum(character > "\x7f" for character in replaced) > 2 * damaged:
        # Most of it is good UTF-8. As CP949 it would often decode too, to gibberish.
        raise InputError(f"{path}:{line}: damaged UTF-8, as a cut or badly merged file has: save it as UTF-8 again")
    try:
        return content.decode("cp949"), "CP949"
    except UnicodeDecodeError:
        raise InputError(
            f"{path}:{line}: neither UTF-8 nor CP949: save the file as UTF-8 (in Excel: CSV UTF-8)"
        ) from None


@contextmanager
def _cell_limit(characters: int) -> Iterator[None]:
    """The csv module has one limit for the whole process: give it back as it was."""
    before = csv.field_size_limit(characters)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parse(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line where it starts, cells) of every row that isn't blank."""
    # newline="" keeps line breaks inside quotes as they are.
    reader = csv.reader(_bounded_lines(text, path), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            with _cell_limit(MAX_CELL):
                cells = next(reader)
                while not cells:  # a blank line
                    line = reader.line_num + 1
                    cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path}:{line}: {_explain(str(error))}; the rest of the file wasn't read") from error
        if "".join(cells).strip() or len(cells) > 1:
            yield line, cells


def _bounded_lines(text: str, path: Path) -> Iterator[str]:
    blank = 0
    for number, line in enumerate(io.StringIO(text, newline=""), start=1):
        if len(line) > MAX_LINE:
            raise InputError(f"{path}:{number}: a line of more than {MAX_LINE:,} characters: is this a CSV file?")
        blank = blank + 1 if line.isspace() else 0
        if blank > MAX_BLANK_LINES:
            raise InputError(f"{path}:{number}: {MAX_BLANK_LINES:,} blank lines before this one: is this a CSV file?")
        yield line


def _explain(error: str) -> str:
    if "field larger" in error:
        return f"a cell has more than {MAX_CELL:,} characters: is a quote missing its partner?"
    if "unexpected end" in error:
        return "a quote opens in the row that starts here and never closes"
    return f"the row that starts here isn't valid CSV ({error}): double the quotes inside a quoted cell"


def _find_columns(header: Sequence[str], path: Path, required: Iterable[str]) -> dict[str, int]:
    """Column name -> position, ignoring case and surrounding space."""
    found = [name.strip().casefold() for name in header]
    shown = ", ".join(name.strip() for name in header)
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]} ..."
    missing = [name for name in required if name.casefold() not in found]
    separator = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
    if missing and separator:
        name = {";": "semicolons", "\t": "tabs", "|": "bars"}[separator]
        raise InputError(f"{path}:1: its cells stand between {name}: save it with commas (CSV, comma delimited)")
    if missing:
        raise InputError(f"{path}:1: columns missing: {', '.join(missing)}; columns found: {shown}")
    known = [name for name in (*COLUMNS, *OPTIONAL_COLUMNS) if name.casefold() in found]
    twice = [name for name in known if found.count(name.casefold()) > 1]
    if twice:
        raise InputError(f"{path}:1: columns that are there twice: {', '.join(twice)}; columns found: {shown}")
    return {name: found.index(name.casefold()) for name in known}


def _read_row(cells: Mapping[str, str], needs_answer: bool, counts: Counter[str]) -> tuple[Row, list[str]]:
    """The index row of one CSV row, and what is wrong with it."""
    empty = [name for name in COLUMNS if not cells[name].strip()]
    problems = [f"{', '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty"] if empty else []
    choices = [cells[letter] for letter in LETTERS]
    row: Row = {
        "id": cells["ID"] if cells["ID"].strip() else "",
        "image_path": cells["img_path"].strip(),
        "question": cells["Question"],
        "choices": choices,
    }
    counts["repeated options"] += len({_comparable(choice) for choice in choices}) < len(choices)
    given = cells.get("answer", "").strip()
    if given:
        letter, problem = _match_answer(given, choices)
        problems += [problem] if problem else []
        if letter:
            row["answer"] = letter
            counts["answers given as text"] += given.upper() != letter
    elif needs_answer:
        problems.append("answer is empty")
    if "weight" in cells:
        weight = _read_weight(cells["weight"])
        if weight is None:
            problems.append(f"weight {cells['weight'].strip()!r} isn't a number that is 0 or more")
        else:
            row["weight"] = weight
    return row, problems


def _match_answer(given: str, choices: Sequence[str]) -> tuple[str, str]:
    """The letter of an answer given as a letter or as an option's text; else an empty string and the problem."""
    matches = [
        letter for letter, choice in zip(LETTERS, choices, strict=True) if _comparable(choice) == _comparable(given)
    ]
    if given.upper() in LETTERS:
        letter = given.upper()
        others = [match for match in matches if match != letter]
        if others:
            return "", (
                f"answer {given!r} is ambiguous: the letter {letter}, or the text of option {others[0]}? "
                f"Reword the option, for example as 'letter {letter}'"
            )
        return letter, ""
    if len(matches) > 1:
        return "", f"answer {given!r} is ambiguous: the text of options {' and '.join(matches)}; give the letter"
    if not matches:
        shown = ", ".join(f"{letter} {choice!r}" for letter, choice in zip(LETTERS, choices, strict=True))
        return "", f"answer {given!r} is none of the options ({shown})"
    return matches[0], ""


def _comparable(text: str) -> str:
    # macOS and Windows spell Korean syllables in different code points.
    return unicodedata.normalize("NFC", text).strip().casefold()


def _read_weight(cell: str) -> float | None:
    try:
        weight = float(cell)
    except ValueError:
        return None
    return weight if 0 <= weight < math.inf and "_" not in cell else None


def write_csv(rows: Iterable[Row]) -> str:
    """Rows with options as the CSV text that `read` turns back into the same rows."""
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
