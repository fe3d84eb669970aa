"""Read index rows and check every one; keep a million of them in little memory.

One row is one question, a JSON object on one line of UTF-8:

* multiple choice: `{"id", "image_path", "question", "choices": [4 texts], "answer": "C", "weight": 2.0, "fold": 3}`,
  where `answer` is a letter, absent if unknown; `weight` and `fold` are optional;
* open-ended: `{"id", "image_path", "question", "answer": "teal"}`; an answer outside the label table keeps its row;
* either may have `"wordings": [texts]`, the same question in other words or another language;
* upstream's own: `{"image_path", "text_segment": [ids], "labels": [..], "scores": [..], "qid"}`; forks put text in
  `text_segment`, or call it `text`.

Image paths are relative to `DatasetInfo.image_root`. A task whose rows are something else has a `RowFormat`.
"""

import codecs
import hashlib
import json
import logging
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from beit3_vqa.errors import MAX_PROBLEMS, InputError, one_line, plural
from beit3_vqa.runtime.files import is_text, missing, require_bounded, write_text

logger = logging.getLogger(__name__)

Row = dict[str, Any]

MAX_WEIGHT = 1e12  # sums over millions of rows stay finite
MAX_ID = 1000  # characters
MAX_ROW = 10_000_000  # bytes
MAX_INDEX = 10**12  # bytes
_CHUNK = 2**20  # bytes
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Rows(Sequence[Row]):
    """The rows of index files; each is parsed when it is asked for.

    A million dictionaries take a gigabyte, and each worker process would soon have its own copy, since Python counts
    references even to objects that are only read. Here a process keeps the beginning and end of each row, 17 bytes, and
    the text stays in the file, mapped into memory that all processes share.

    Args:
        paths: the files.
        file: uint8 (rows,), the number of each row's file in `paths`.
        start: int64 (rows,), the byte where the row begins there.
        end: int64 (rows,), the byte where it ends.
        maps: the files' bytes, if they are mapped already: by now the path may name another file.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        file: NDArray[np.uint8],
        start: NDArray[np.int64],
        end: NDArray[np.int64],
        maps: tuple[mmap.mmap | bytes, ...] | None = None,
    ):
        self.paths = tuple(paths)
        self.file, self.start, self.end = file, start, end
        self._maps = maps or tuple(map(_map, self.paths))

    def __len__(self) -> int:
        return len(self.start)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "Row | Rows":
        if isinstance(index, slice):
            return self._chosen(index)
        # From bytes, json would first guess the encoding, which takes a third of the time.
        row: Row = json.loads(str(self._maps[self.file[index]][self.start[index] : self.end[index]], "utf-8"))
        return row

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(dict.__eq__, self, other))

    def __add__(self, other: "Rows") -> "Rows":
        file = np.concatenate([self.file, other.file + np.uint8(len(self.paths))])
        start, end = np.concatenate([self.start, other.start]), np.concatenate([self.end, other.end])
        return Rows(self.paths + other.paths, file, start, end, self._maps + other._maps)

    def where(self, wanted: Iterable[bool]) -> "Rows":
        """Return the rows for which `wanted`, one value for each row, is true; in order."""
        return self._chosen(np.fromiter(wanted, bool, len(self)))

    def _chosen(self, choice: slice | NDArray[np.bool_]) -> "Rows":
        return Rows(self.paths, self.file[choice], self.start[choice], self.end[choice], self._maps)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:  # a map can't be pickled; a spawned process makes its own
        return Rows, (self.paths, self.file, self.start, self.end)


def _map(path: Path) -> mmap.mmap | bytes:
    """Map a file into memory; return its bytes if that isn't possible."""
    with path.open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # an empty file, or a file system that can't
            return file.read()


def row_id(row: Row) -> str:
    """Return the id of a row, which upstream calls qid."""
    return str(row["id"] if "id" in row else row["qid"])


@dataclass(frozen=True)
class RowFormat:
    """How to check the rows of a task.

    Attributes:
        problem: JSON object of an index file -> what is wrong with it, or an empty string.
        name: row without a problem -> its id, unique in its file; None if rows have none.
    """

    problem: Callable[[Row], str]
    name: Callable[[Row], str | None] = row_id


def read_rows(path: Path, row_format: RowFormat | None = None, *, keep_first: bool = False) -> Rows:
    """Read the rows of an index file and check every one; blank lines are skipped.

    Args:
        path: the file, ours or upstream's.
        row_format: how to check a row; None: as a question.
        keep_first: of rows with the same id keep the first, and print how many were left out.

    Raises:
        InputError: rows, listed as `FILE:LINE`, aren't JSON objects, lack a field, have one of a wrong type or repeat
            an id; or the file is missing, too large or can't be read.
    """
    repeated: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    problems: list[str] = []
    first_line: dict[str, int] = {}
    row_format = row_format or QUESTIONS
    end = 0
    require_bounded(path, MAX_INDEX)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_ROW + 1), b""), start=1):
                if len(line) > MAX_ROW:  # `readline` above stops there, so that such a line never fills the memory
                    raise InputError(f"{path}:{number}: a row of more than {MAX_ROW:,} bytes: is this an index?")
                # Offsets are the file's: a byte order mark and blank lines count.
                start, end = end, end + len(line)
                if number == 1 and line.startswith(codecs.BOM_UTF8):
                    start += len(codecs.BOM_UTF8)
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.isspace():
                    continue
                row, problem = _parse(line, row_format)
                if problem:
                    problems.append(f"{path}:{number}: {problem}")
                    if len(problems) == MAX_PROBLEMS:
                        break
                    continue
                name = row_format.name(row)
                if name is not None and first_line.setdefault(name, number) != number:
                    repeated.append(f"{path}:{number}: the id {name!r} is on line {first_line[name]} too")
                    if keep_first:
                        continue
                    problems.append(repeated[-1])
                starts.append(start)
                ends.append(end)
    except FileNotFoundError:
        raise InputError(missing("index file", path)) from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    if problems:
        raise InputError.of_problems(f"{path} is no index that can be used:", problems)
    if repeated:
        logger.info(
            f"left out {plural(len(repeated), 'row')} that repeat{'s' * (len(repeated) == 1)} the id of "
            f"an earlier row, such as {one_line(repeated[0])}"
        )
    return Rows([path], np.zeros(len(starts), np.uint8), np.array(starts, np.int64), np.array(ends, np.int64))


def read_prepared_rows(path: Path, sha256: str) -> Rows | None:
    """Read the rows of an index file that `prepare` wrote, which checked each and gave it a line of its own.

    So only the ends of lines are looked for, and no row is parsed.

    Args:
        path: the file.
        sha256: of what `prepare` wrote, in hexadecimal digits.

    Returns:
        the rows; None if the file has other bytes by now, or can't be read: `read_rows` says what is wrong.
    """
    checksum, ends, length = hashlib.sha256(), [np.zeros(1, np.int64)], 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                checksum.update(chunk)
                ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + (length + 1))
                length += len(chunk)
    except OSError:
        return None
    if checksum.hexdigest() != sha256:
        return None
    borders = np.concatenate(ends)
    return Rows([path], np.zeros(len(borders) - 1, np.uint8), borders[:-1], borders[1:])


def _parse(line: bytes, row_format: RowFormat) -> tuple[Row, str]:
    """Return the row on a line, and what is wrong with it (empty: nothing)."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return {}, f"isn't JSON in UTF-8: {error}"
    return row, row_format.problem(row) if isinstance(row, dict) else "isn't a JSON object"


def image_problem(row: Row, field: str = "image_path") -> str:
    """Return what is wrong with an image path of a row, or an empty string."""
    if field not in row:
        return f"has no {field} (it has {', '.join(row) or 'no field at all'})"
    return "" if is_text(row[field]) and row[field] else f"{field} must be text"


def id_problem(name: object) -> str:
    """Return what is wrong with an id, or an empty string."""
    if name is None:
        return "has no id (nor upstream's qid)"
    if not (is_text(name) and str(name).strip()) and type(name) is not int:
        return "id must be text or a whole number"
    return f"id has more than {MAX_ID} characters" if len(str(name)) > MAX_ID else ""


def fold_problem(row: Row) -> str:
    """Return what is wrong with the weight or the fold of a row, or an empty string."""
    weight = row.get("weight", 1.0)
    if type(weight) not in (int, float) or not 0 <= weight <= MAX_WEIGHT:
        return f"weight must be a number from 0 to {MAX_WEIGHT:g}"
    return "" if is_count(row.get("fold", 0)) else "fold must be a whole number"


def _question_problem(row: Row) -> str:
    name = row.get("id", row.get("qid"))
    return image_problem(row) or id_problem(name) or text_problem(row) or _target_problem(row) or fold_problem(row)


QUESTIONS = RowFormat(_question_problem)


def text_problem(row: Row) -> str:
    """Return what is wrong with a row's question and options, or with upstream's text segment (empty: nothing)."""
    if "text_segment" in row:
        segment = row["text_segment"]
        known = all(map(is_count, segment)) if isinstance(segment, list) else bool(segment) and is_text(segment)
        return "" if known else "text_segment must be a list of token ids, or text"
    if "question" not in row:
        return "has no question (nor upstream's text_segment)"
    if not is_text(row["question"]) or not row["question"].strip():
        return "question must be text"
    wordings = row.get("wordings", ())
    if type(wordings) not in (list, tuple) or not all(is_text(text) and text.strip() for text in wordings):
        return "wordings must be a list of texts, none of them empty"
    choices = row.get("choices", ("", ""))
    if type(choices) not in (list, tuple) or not 2 <= len(choices) <= len(LETTERS) or not all(map(is_text, choices)):
        return f"choices must be a list of 2 to {len(LETTERS)} texts"
    if "choices" in row and not all(choice.strip() for choice in choices):
        return "choices must not be empty"
    return ""


def all_wordings(row: Row) -> list[str]:
    """Return the question of a row, and after it the same in other words."""
    return [row["question"], *row.get("wordings", ())]


def _target_problem(row: Row) -> str:
    """Return what is wrong with the answer of a row, or with upstream's labels and scores, or an empty string."""
    if "answer" in row:
        answer = row["answer"]
        if not is_text(answer) or not answer:
            return "answer must be text (leave it out if it isn't known)"
        if "choices" in row and answer not in tuple(LETTERS[: len(row["choices"])]):
            return f"answer {answer!r} must be a letter from A to {LETTERS[len(row['choices']) - 1]}"
    labels, scores = row.get("labels"), row.get("scores")
    if labels or scores:  # a fork writes "" if the answer isn't known
        if not isinstance(labels, list) or not all(map(is_count, labels)):
            return "labels must be a list of class numbers"
        if not isinstance(scores, list) or not all(type(s) in (int, float) and 0 <= s <= 1 for s in scores):
            return "scores must be a list of numbers from 0 to 1"
        if len(labels) != len(scores):
            return f"has {len(labels)} labels but {len(scores)} scores"
    return ""


def is_count(value: object) -> bool:
    """Return whether `value` is a whole number, 0 or more (True and False aren't)."""
    return type(value) is int and value >= 0


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write an index file; until all of it is written, an older file stays."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_text(path, lines)
