"""Read the questions of one table for a model that is trained already: nothing is written, no split is made."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from beit3_vqa.data.images import resolve_image_path
from beit3_vqa.data.rows import Row
from beit3_vqa.data.table_files import Cell, Read, Table
from beit3_vqa.errors import InputError
from beit3_vqa.preparation import table as table_format
from beit3_vqa.preparation.columns import as_flag, find_columns
from beit3_vqa.preparation.writer import PrepareOptions
from beit3_vqa.runtime.files import is_file, missing

_SPLIT = re.compile(r"(?<![a-z])(?:(test)|(val)(?:id|idation)?|(train)(?:ing)?)(?![a-z])")  # in the name of a table


@dataclass
class Questions:
    """The questions of a table, in order.

    Attributes:
        where: name of the table, for messages.
        header: names of its columns.
        rows: index rows, the same that `prepare table` writes, but `id` says where the row is.
        origins: where each row is, such as `test.csv:12`.
        cells: the table's own cells of each row.
        problems: what is wrong, one line each, with its origin; the other lists may be incomplete then.
        absent: the same for each image that isn't there, a line for each of its rows.
        notes: what was interpreted.
        image_root: the folder that image paths start from.
    """

    where: str
    header: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    cells: list[Sequence[Cell]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    absent: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    image_root: Path = Path()

    def check(self, absent_allowed: int = 0) -> None:
        """Raise InputError with every problem, if there is one, or if more images are absent than may be."""
        problems = self.problems + [line for lines in self.absent.values() for line in lines]
        if self.problems or len(self.absent) > absent_allowed:
            raise InputError.of_problems(f"{self.where} can't be answered:", problems)


def read_questions(
    table: Table,
    where: str,
    image_root: str | PathLike[str],
    columns: str | Mapping[str, str | Sequence[str]] = "",
    answer_from: str = "auto",
    *,
    answers: bool = False,
) -> Questions:
    """Read a table as `prepare table` does, and look whether the images are there.

    Args:
        table: the table; its rows are used up.
        where: its name, for messages.
        image_root: the folder that image paths start from.
        columns: what columns mean, see `--columns`; a mapping from meaning to a column's name, or for options to a
            list of the first column and the last, says the same.
        answer_from: see `--answer_from`.
        answers: whether each row needs an answer; else an answer column is left alone.

    Returns:
        the questions, with every problem of theirs in `problems`.

    Raises:
        InputError: the columns can't be recognised, or the table can't be read.
    """
    said = as_flag(columns)
    questions = Questions(where, table.header, image_root=Path(image_root))
    split = "val" if answers else "test"
    found = None if answers else find_columns(table.header, f"{where}:1", said, needs_answer=False)
    watched = _watched(table.rows, questions, found.places.get("answer") if found else None)
    source: Any = (Table(table.header, watched), where)
    given = {"train": "", split: source, "columns": said, "answer_from": answer_from}
    arguments = table_format.Arguments(**given)
    named = _SPLIT.search(Path(where).stem.casefold())
    known = next(filter(None, named.groups())) if named else ""
    dialect = table_format.Dialect("table", images_of=known, split_known=bool(known))
    options = PrepareOptions(data_path="-", image_root=fspath(image_root))
    prepared = table_format.read_tables(arguments, options, dialect)
    questions.problems, questions.notes = prepared.problems, prepared.notes
    questions.rows = prepared.splits.get(split, [])
    if not questions.image_root.is_dir():
        questions.problems.append(f"{missing('image folder', questions.image_root)} Give image_root.")
    else:
        places = zip(questions.rows, prepared.origins.get(split, ()), strict=True)
        _look_for_images(places, questions)
    for row, origin in zip(questions.rows, prepared.origins.get(split, ()), strict=True):
        row["id"] = origin.removeprefix(f"{where}, row ")
    return questions


def _watched(rows: Read, questions: Questions, answer: int | None) -> Iterator[tuple[str, Sequence[Cell]]]:
    """Yield the rows and keep their cells; the cell at `answer`, if there is one, is empty then."""
    for origin, cells in rows:
        questions.origins.append(origin)
        questions.cells.append(cells)
        if answer is not None and answer < len(cells):
            cells = [*cells[:answer], "", *cells[answer + 1 :]]
        yield origin, cells


def _look_for_images(rows: Iterator[tuple[Row, str]], questions: Questions) -> None:
    """Note each row whose image isn't there, or whose image path can't be used; those with a problem have enough."""
    told = {problem.partition(": ")[0] for problem in questions.problems}
    there: dict[str, bool] = {}
    for row, origin in rows:
        path = row["image_path"]
        if origin in told:
            continue
        try:
            if path not in there:
                there[path] = is_file(resolve_image_path(questions.image_root, path))
            if not there[path]:
                line = f"{origin}: image {path!r} doesn't exist in {questions.image_root}"
                questions.absent.setdefault(path, []).append(line)
        except InputError as error:
            questions.problems.append(f"{origin}: {error}")
