"""Questions in a table of any kind: CSV, spreadsheet, Parquet, JSON or a DataFrame, with options or open-ended.

Columns are recognised by their names; `--columns` says them by hand. Two to twenty-six options have a column each, or
stand in one column as a list; a row may have fewer than others. An answer is a letter, an option's text or a number.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from beit3_vqa.config.options import ANY_PROMPT_TEMPLATE
from beit3_vqa.data.index import SPLITS
from beit3_vqa.data.rows import LETTERS, MAX_WEIGHT, Row
from beit3_vqa.data.table_files import Cell, Table, read_frame, read_table
from beit3_vqa.data.tables import comparable, match_answer, read_weight
from beit3_vqa.errors import MAX_PROBLEMS, InputError, plural
from beit3_vqa.preparation.columns import Columns, find_columns
from beit3_vqa.preparation.dacon_json import make_label_table
from beit3_vqa.preparation.find_images import ImageFinder
from beit3_vqa.preparation.writer import Prepared, PrepareOptions
from beit3_vqa.runtime.fields import Options, option
from beit3_vqa.runtime.files import one_form

UNKNOWN = ("?", "-")  # what a test file has where an answer isn't told


@dataclass(frozen=True)
class Arguments(Options):
    """The files to read, and how to understand them."""

    train: str = option(MISSING, "table of training questions: CSV, XLSX, XLS, Parquet, Feather or JSON")
    val: str = option("", "table of validation questions; default: --val_ratio of the training images")
    test: str = option("", "table of test questions; its answers may be missing")
    columns: str = option(
        "",
        "what columns mean, such as id=qid,image=file,question=q,options=opt1:opt5,answer=gt; default: by their names",
        metavar="MEANING=NAME,...",
    )
    sheet: str = option("", "name of the sheet of a spreadsheet; default: the first", metavar="NAME")
    answer_from: str = option(
        "auto",
        "what a number in the answer column is: the text of an option, or its place from 0 or from 1; auto: what the "
        "whole column allows only",
        choices=("auto", "text", "0", "1"),
    )
    min_count: int = option(1, "open-ended: times an answer must occur to be in the label table", low=1)
    max_answers: int = option(0, "open-ended: keep that many of the most frequent answers; 0: all", low=0)


@dataclass
class _Split:
    """What a table holds: the rows so far, with their answers as given."""

    rows: list[Row]
    answers: list[str]
    origins: list[str]
    problems: list[list[str]]

    def add(self, row: Row, answer: str, origin: str, problems: list[str]) -> None:
        """Append a row with its answer as given, where it is, and what is wrong with it."""
        self.rows.append(row)
        self.answers.append(answer)
        self.origins.append(origin)
        self.problems.append(problems)


def read(arguments: Arguments, options: PrepareOptions) -> Prepared:
    """Read the table of each split; rows of train and val need an answer, those of test may have one."""
    prepared = Prepared("table", [], options.image_root)
    finder = ImageFinder(Path(options.image_root))
    splits: dict[str, _Split] = {}
    for split in SPLITS:
        source: Any = getattr(arguments, split)
        if isinstance(source, str) and not source:
            continue
        try:
            table, where = _open(source, split, arguments.sheet, options.encoding, prepared.notes)
            splits[split] = _read_split(table, where, split, arguments.columns, finder, prepared.notes)
        except InputError as error:
            prepared.problems.append(str(error))
    width = max((len(row.get("choices", ())) for found in splits.values() for row in found.rows), default=0)
    try:
        _read_answers(splits, arguments.answer_from, prepared.notes)
    except InputError as error:
        prepared.problems.append(str(error))
    for name, found in splits.items():
        for row, origin, problems in zip(found.rows, found.origins, found.problems, strict=True):
            if width and "choices" not in row:
                problems.append("has no options, unlike other rows")
            if problems:
                prepared.problems.append(f"{origin}: {'; '.join(problems)}")
            if row["id"] and row["image_path"]:
                prepared.add(name, row, origin)
    prepared.notes += [f"images found though their names differ: {n:,} {how}" for how, n in finder.counts.items()]
    if width:
        prepared.answers = list(LETTERS[:width])
        fewer = sum(len(row.get("choices", ())) < width for found in splits.values() for row in found.rows)
        if fewer:
            told = f'; train with --prompt_template "{ANY_PROMPT_TEMPLATE}"' if width == 4 else ""
            prepared.notes.append(f"{plural(fewer, 'row')} with fewer than {width} options{told}")
    elif prepared.splits.keys() - {"test"}:
        make_label_table(prepared, arguments.min_count, arguments.max_answers)
    return prepared


def _open(source: Any, split: str, sheet: str, encoding: str, notes: list[str]) -> tuple[Table, str]:
    """Return the table of a path or DataFrame, and its name for messages; a pair of both as it is."""
    if isinstance(source, tuple):
        return source
    if isinstance(source, (str, Path)):
        return read_table(Path(source), encoding, sheet, notes), str(source)
    return read_frame(source, f"the {split} DataFrame"), f"the {split} DataFrame"


def _read_split(table: Table, where: str, split: str, said: str, finder: ImageFinder, notes: list[str]) -> _Split:
    columns = find_columns(table.header, f"{where}:1", said, needs_answer=split != "test")
    notes.append(f"{where}: {columns.shown(table.header)}")
    if columns.ignored:
        notes.append(f"{where}: columns ignored: {', '.join(columns.ignored)}")
    if "id" not in columns.places:
        notes.append(f"{where}: no ID column; rows are numbered from 1")
    found = _Split([], [], [], [])
    troubled, repeated = 0, 0
    for number, (origin, cells) in enumerate(table.rows, start=1):
        if troubled >= MAX_PROBLEMS:
            raise InputError(f"{origin}: too many problems before this row; the rest wasn't read")
        if len(cells) != len(table.header):
            row, answer = {"id": "", "image_path": ""}, ""
            problems = [
                f"{len(cells)} cells where the header has {len(table.header)} (a cell with a separator needs quotes)"
            ]
        else:
            row, answer, problems = _read_row(cells, columns, str(number), split, finder)
        troubled += bool(problems)
        repeated += len({comparable(choice) for choice in row.get("choices", ())}) < len(row.get("choices", ()))
        found.add(row, answer, origin, problems)
    if not found.rows:
        raise InputError(f"{where} has a header but no rows")
    if table.blank:
        notes.append(f"{where}: {table.blank:,} blank rows passed over")
    if repeated:
        notes.append(f"{split}: {repeated:,} rows have the same text in two options")
    _forget_unknown(found, split, notes)
    return found


def _read_row(
    cells: Sequence[Cell], columns: Columns, number: str, split: str, finder: ImageFinder
) -> tuple[Row, str, list[str]]:
    """Return the index row of one row of a table, its answer as given, and what is wrong with it."""
    problems: list[str] = []
    texts: dict[str, str] = {}
    for meaning, place in columns.places.items():
        cell = cells[place]
        if meaning != "options":
            texts[meaning] = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
    empty = [name for name in ("id", "image", "question") if name in texts and not one_form(texts[name]).strip()]
    if empty:
        problems.append(f"{', '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty")
    row: Row = {"id": "" if "id" in empty else texts.get("id", number), "image_path": "", "question": texts["question"]}
    if "image" not in empty:
        row["image_path"], problem = finder.find(texts["image"], split)
        problems += [problem] if problem else []
    if columns.has_options:
        row["choices"], problem = _options(cells, columns)
        problems += [problem] if problem else []
    if "weight" in texts:
        weight = read_weight(texts["weight"])
        if weight is None:
            problems.append(f"weight {texts['weight'].strip()!r} isn't a number from 0 to {MAX_WEIGHT:g}")
        else:
            row["weight"] = weight
    return row, one_form(texts.get("answer", "")).strip(), problems


def _options(cells: Sequence[Cell], columns: Columns) -> tuple[list[str], str]:
    """Return the options of a row, and what is wrong with them (empty: nothing)."""
    if columns.options:
        given = [cells[place] for place in columns.options]
        if not all(isinstance(cell, str) for cell in given):
            return [], "an option is a list; give the column with --columns options=NAME"
        choices = [str(cell) for cell in given]
        while choices and not one_form(choices[-1]).strip():  # a question of fewer options than the others
            choices.pop()
    else:
        choices = split_options(cells[columns.places["options"]])
    gap = next((place for place, choice in enumerate(choices) if not one_form(choice).strip()), None)
    if gap is not None:
        return choices, f"option {LETTERS[gap] if gap < len(LETTERS) else gap + 1} is empty, but a later one isn't"
    if not 2 <= len(choices) <= len(LETTERS):
        return choices, f"{len(choices)} option{'s' * (len(choices) != 1)}; a question has 2 to {len(LETTERS)}"
    return choices, ""


def split_options(cell: Cell) -> list[str]:
    """Return the options in one cell: a list, a JSON list such as `["a", "b"]`, or `a|b|c`."""
    if isinstance(cell, list):
        return cell
    text = cell.strip()
    if text.startswith("["):
        try:
            items = json.loads(text, parse_int=str, parse_float=str)
        except (ValueError, RecursionError):
            items = None
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return items
    return [part.strip() for part in text.split("|")] if text else []


# Answers


def _forget_unknown(found: _Split, split: str, notes: list[str]) -> None:
    """Take `?`, `-` and a column of one letter throughout for unknown answers, in a test split."""
    if split != "test":
        return
    marks = sum(answer in UNKNOWN for answer in found.answers)
    if marks:
        notes.append(f"{split}: {marks:,} answers are {' or '.join(UNKNOWN)}: taken as unknown")
        found.answers = ["" if answer in UNKNOWN else answer for answer in found.answers]
    known = set(found.answers)
    if len(found.answers) > 1 and len(known) == 1 and len(letter := known.pop()) == 1 and letter.isalpha():
        notes.append(f"{split}: the answer is {letter} in every row: taken as unknown")
        found.answers = [""] * len(found.answers)


def _read_answers(splits: Mapping[str, _Split], answer_from: str, notes: list[str]) -> None:
    """Write the answer of each row, a letter where it has options, and what is wrong with it.

    Raises:
        InputError: nobody can tell what the numbers in the column mean.
    """
    first = _first_number(splits, answer_from, notes)
    for name, split in splits.items():
        counts: Counter[str] = Counter()
        for row, given, problems in zip(split.rows, split.answers, split.problems, strict=True):
            if not given:
                if name != "test" and "question" in row:
                    problems.append("answer is empty")
            elif not row.get("choices"):
                row["answer"] = given
            else:
                letter, problem = _letter(given, row["choices"], first)
                problems += [problem] if problem else []
                if letter:
                    row["answer"] = letter
                    counts["number" if first is not None and _is_number(given) else "text"] += given.upper() != letter
        notes += [f"{name}: {n:,} answers given as the option's {how}" for how, n in counts.items() if n]


def _letter(given: str, choices: Sequence[str], first: int | None) -> tuple[str, str]:
    """Return the letter of an answer and what is wrong with it; numbers count from `first`; None: they are text."""
    if first is None or not _is_number(given):
        return match_answer(given, choices)
    place = int(given) - first
    if not 0 <= place < len(choices):
        return "", f"answer {given} isn't the place of one of {len(choices)} options, counted from {first}"
    return LETTERS[place], ""


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 3


def _first_number(splits: Mapping[str, _Split], answer_from: str, notes: list[str]) -> int | None:
    """Return the number of the first option, 0 or 1, if the answers are places; None if they are letters or texts."""
    if answer_from != "auto":
        return None if answer_from == "text" else int(answer_from)
    places: list[tuple[int, int, str]] = []  # number, options of its row, where
    both: list[str] = []
    texts = 0
    for split in splits.values():
        for row, given, origin in zip(split.rows, split.answers, split.origins, strict=True):
            choices = row.get("choices")
            if not given or not choices:
                continue
            is_text = comparable(given) in map(comparable, choices)
            if not _is_number(given):
                texts += is_text
                texts += given.upper() in LETTERS[: len(choices)]
            elif int(given) > len(choices):
                texts += is_text  # no place has this number
            else:
                places.append((int(given), len(choices), origin))
                both += [f"{origin}: {given}"] if is_text else []
    if not places:
        return None
    if texts:  # a column of places has no letters and no texts in it
        return None
    ask = "Say with --answer_from text, 0 or 1 what the numbers are"
    if both:
        raise InputError.of_problems(
            f"{len(both):,} of {len(places):,} answers are numbers, each an option's text and an option's place:",
            both[:3],
            f"{ask}.",
        )
    from_0 = next((origin for number, _, origin in places if number == 0), "")
    from_1 = next((origin for number, options, origin in places if number == options), "")
    if from_0 and from_1:
        raise InputError(f"answers are counted from 0 ({from_0}) and from 1 ({from_1}): mend the column. {ask}.")
    if not from_0 and not from_1:
        raise InputError(f"answers are numbers, and nothing shows whether they begin at 0 or at 1. {ask}.")
    notes.append(f"answers are places of options, counted from {0 if from_0 else 1} (so says {from_0 or from_1})")
    return 0 if from_0 else 1
