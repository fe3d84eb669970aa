"""Write a submission as a contest's sample has it: its columns, its ids, its order."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from beit3_vqa.data.predictions import write_submission
from beit3_vqa.data.rows import LETTERS
from beit3_vqa.data.table_files import Cell, read_table
from beit3_vqa.data.tables import csv_line
from beit3_vqa.data.types import Prediction
from beit3_vqa.errors import InputError, short
from beit3_vqa.runtime.files import look_alikes, write_text

logger = logging.getLogger(__name__)

_NAMES_OF_IDS = ("id", "qid", "question_id", "row_id")
_NAMES_OF_ANSWERS = ("answer", "label", "prediction", "target")
_SHOWN = 6


@dataclass(frozen=True)
class Sample:
    """A sample submission.

    Attributes:
        path: its file.
        header: names of its columns.
        rows: the cells of each row.
        id: position of the column of ids.
        answer: position of the column that takes the answers; the others stay as they are.
    """

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    id: int
    answer: int

    def check(self, ids: Sequence[str]) -> None:
        """Raise InputError unless the sample has each of the `ids` once, and no other."""
        own = [row[self.id] for row in self.rows]
        seen: set[str] = set()
        doubled = [name for name in own if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
        known = set(ids)
        missing = [name for name in ids if name not in seen]
        extra = [name for name in own if name not in known]
        parts = [
            f"{what} ({len(names):,}): {', '.join(map(short, names[:_SHOWN]))}{', ...' * (len(names) > _SHOWN)}"
            for what, names in (("twice in it", doubled), ("not in it", missing), ("in it alone", extra))
            if names
        ]
        if parts:
            parts += [f"look alike, but are other characters: {pair}" for pair in look_alikes(missing, extra)[:_SHOWN]]
            raise InputError.of_problems(
                f"--submission_like {self.path}: its ids aren't those of the questions:",
                parts,
                "Is it the sample of another split? Ids must match character for character.",
            )

    def write(self, predictions: Sequence[Prediction], path: Path) -> Path:
        """Write the answers to the questions in the sample's rows; InputError as `check` does."""
        self.check([p.id for p in predictions])
        answers = {p.id: p for p in predictions}
        own = {text for row in self.rows if (text := row[self.answer].strip())}
        if own and all(p.choices for p in predictions) and not set(map(str.upper, own)) & set(LETTERS):
            example = short(min(own))
            logger.warning(f"{self.path}: its answers, such as {example}, aren't letters; those written are letters")
        if (self.header, self.id, self.answer) == (("ID", "answer"), 0, 1):
            return write_submission([answers[row[0]] for row in self.rows], path)
        lines = [csv_line(self.header)]
        for row in self.rows:
            cells = list(row)
            cells[self.answer] = answers[row[self.id]].answer
            lines.append(csv_line(cells))
        return write_text(path, lines)


def read_sample(path: Path) -> Sample:
    """Read a sample submission, a table with a column of ids and one for answers.

    Raises:
        InputError: the file is missing or no table, or nobody can tell which column is which.
    """
    table = read_table(path)
    header = tuple(table.header)
    folded = [name.strip().casefold() for name in header]
    where = f"--submission_like {path}"
    ids = [place for place, name in enumerate(folded) if name in _NAMES_OF_IDS]
    answers = [place for place, name in enumerate(folded) if name in _NAMES_OF_ANSWERS]
    if len(header) == 2 and len(ids) == 1 and not answers:
        answers = [1 - ids[0]]
    if len(ids) != 1 or len(answers) != 1:
        raise InputError(
            f"{where}: needs one column of ids ({', '.join(_NAMES_OF_IDS)}) and one for answers "
            f"({', '.join(_NAMES_OF_ANSWERS)}); it has {', '.join(header)}."
        )
    rows = []
    for origin, cells in table.rows:
        if len(cells) != len(header):
            raise InputError(f"{where}: {origin}: {len(cells)} cells where the header has {len(header)}")
        rows.append(tuple(map(_text, cells)))
    if not rows:
        raise InputError(f"{where}: has a header but no rows")
    return Sample(path, header, tuple(rows), ids[0], answers[0])


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else " ".join(cell)
