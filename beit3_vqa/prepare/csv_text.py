"""CSV files of others: their rows and their columns, bounded. Their encoding: see source.py."""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from beit3_vqa.errors import InputError
from beit3_vqa.files import one_form

MAX_SHOWN = 500  # characters of a header, in a message
MAX_CELL = 1_000_000
"""Characters of the longest cell that is read."""
MAX_LINE = 4_000_000
"""Characters of the longest line: a hundred million commas would be as many cells."""
MAX_BLANK_LINES = 100_000
"""Blank lines one after the other: a hundred million take minutes to pass over."""


@contextmanager
def _cell_limit(characters: int) -> Iterator[None]:
    """The csv module has one limit for the whole process: give it back as it was."""
    before = csv.field_size_limit(characters)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def parse_csv(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line where it starts, cells) of every row that isn't blank.

    Raises:
        InputError: a line, a cell or the quotes aren't what a CSV file has.
    """
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


def find_columns(
    header: Sequence[str], path: Path, required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, int]:
    """Column name -> position, ignoring case, Unicode form and surrounding space; optional ones only where they are.

    Raises:
        InputError: a required column is missing, or one is there twice.
    """
    found = [one_form(name).strip().casefold() for name in header]
    shown = ", ".join(name.strip() for name in header)
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]} ..."
    missing = [name for name in required if name.casefold() not in found]
    separator = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
    if missing and separator:
        name = {";": "semicolons", "\t": "tabs", "|": "bars"}[separator]
        raise InputError(f"{path}:1: its cells stand between {name}: save it with commas (CSV, comma delimited)")
    if missing:
        raise InputError(f"{path}:1: columns missing: {', '.join(missing)}; columns found: {shown}")
    known = [name for name in dict.fromkeys((*required, *optional)) if name.casefold() in found]
    twice = [name for name in known if found.count(name.casefold()) > 1]
    if twice:
        raise InputError(f"{path}:1: columns that are there twice: {', '.join(twice)}; columns found: {shown}")
    return {name: found.index(name.casefold()) for name in known}
