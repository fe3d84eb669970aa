"""Questions in a table of any kind: CSV, spreadsheet, Parquet, JSON or a DataFrame, with options or open-ended.

Columns are recognised by their names; `--columns` says them by hand. A question may come in several wordings, in
columns of their own (`Question_2`, ...) or as a list. Two to twenty-six options have a column each, or
stand in one column as a list; a row may have fewer than others. An answer is a letter, an option's text or a number.
The label table of open-ended questions holds the answers of train and val that occur often enough; rows with another
answer stay in the index, so that a validation score counts them.

`choices` and `dacon_json` are this format too, with a `Dialect` of their own.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from functools import partial
from pathlib import Path

from beit3_vqa.config.options import ANY_PROMPT_TEMPLATE
from beit3_vqa.data.answers import answer_key
from beit3_vqa.data.index import SPLITS
from beit3_vqa.data.rows import LETTERS, MAX_WEIGHT, Row
from beit3_vqa.data.table_files import Cell, Table, read_frame, read_table
from beit3_vqa.data.tables import comparable, match_answer, number_in, read_weight
from beit3_vqa.errors import MAX_PROBLEMS, InputError, plural, short
from beit3_vqa.preparation.columns import Columns, find_columns
from beit3_vqa.preparation.find_images import ImageFinder
from beit3_vqa.preparation.writer import Prepared, PrepareOptions
from beit3_vqa.runtime.fields import Options, option
from beit3_vqa.runtime.files import is_blank, one_form

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


@dataclass(frozen=True)
class Dialect:
    """What a format's own files decide, where a table in general could be read in several ways.

    Attributes:
        name: name of the format.
        columns: meaning -> name of a column that wins over others of that meaning.
        needs_options: whether a table without options is an error.
        texts_before_places: whether numbers that are options' texts throughout are those options.
        images_by_id: whether images are named by an id, see `ImageFinder`.
        images_of: the split in whose folders images are looked for, see `FOLDERS`; empty: that of the table.
        split_known: see `ImageFinder`.
    """

    name: str
    columns: Mapping[str, str] = field(default_factory=dict)
    needs_options: bool = False
    texts_before_places: bool = False
    images_by_id: bool = False
    images_of: str = ""
    split_known: bool = True


_Find = Callable[[str], tuple[str, str]]  # an image's name -> its path, and what is wrong with the name


@dataclass
class _Split:
    """What a table holds: rows, at first with answers as given, where they are, and what is wrong with some of them."""

    rows: list[Row] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    problems: dict[int, list[str]] = field(default_factory=dict)


def read(arguments: Arguments, options: PrepareOptions) -> Prepared:
    """Read the table of each split; rows of train and val need an answer, those of test may have one."""
    return read_tables(arguments, options, Dialect("table"))


def read_tables(arguments: Arguments, options: PrepareOptions, dialect: Dialect) -> Prepared:
    """Read the table of each split as `dialect` has it."""
    prepared = Prepared(dialect.name, [], options.image_root)
    finder = ImageFinder(Path(options.image_root), by_id=dialect.images_by_id, split_known=dialect.split_known)
    splits: dict[str, _Split] = {}
    for split in SPLITS:
        source: object = getattr(arguments, split)
        if isinstance(source, str) and not source:
            continue
        try:
            table, where = _open(source, split, arguments.sheet, options.encoding, prepared.notes)
            columns = find_columns(
                table.header,
                f"{where}:1",
                arguments.columns,
                needs_answer=split != "test",
                needs_options=dialect.needs_options,
                own=dialect.columns,
            )
            splits[split] = _Split()  # keeps the rows before an error
            find = partial(finder.find, split=dialect.images_of or split)
            _read_split(splits[split], table, columns, where, split, find, prepared.notes)
        except InputError as error:
            prepared.problems.append(str(error))
    width = max((len(row.get("choices", ())) for found in splits.values() for row in found.rows), default=0)
    try:
        _read_answers(splits, arguments.answer_from, dialect.texts_before_places, prepared.notes)
    except InputError as error:
        prepared.problems.append(str(error))
    for name, found in splits.items():
        for number, (row, origin) in enumerate(zip(found.rows, found.origins, strict=True)):
            problems = found.problems.get(number, [])
            if width and "choices" not in row and not problems:
                problems.append("has no options, unlike other rows")
            if problems:
                prepared.problems.append(f"{origin}: {'; '.join(problems)}")
            # Even with a problem a row is added, so that its image and its id are checked in the same run.
            if row["id"] and row["image_path"]:
                prepared.add(name, row, origin)
    prepared.notes += [f"images found though their names differ: {n:,} {how}" for how, n in finder.counts.items()]
    if width:
        prepared.answers = list(LETTERS[:width])
        note_fewer_options(prepared, width)
    elif prepared.splits.keys() - {"test"}:
        _make_label_table(prepared, arguments.min_count, arguments.max_answers)
    return prepared


def note_fewer_options(prepared: Prepared, width: int) -> None:
    """Note how many rows have fewer than `width` options, and what training needs for them."""
    fewer = sum(len(row.get("choices", ())) < width for rows in prepared.splits.values() for row in rows)
    if fewer:
        told = f'; train with --prompt_template "{ANY_PROMPT_TEMPLATE}"' if width == 4 else ""
        prepared.notes.append(f"{plural(fewer, 'row')} with fewer than {width} options{told}")


def _open(source: object, split: str, sheet: str, encoding: str, notes: list[str]) -> tuple[Table, str]:
    """Return the table of a path or DataFrame, and its name for messages; a pair of both as it is."""
    if isinstance(source, tuple):
        return source
    if isinstance(source, (str, Path)):
        return read_table(Path(source), encoding, sheet, notes), str(source)
    return read_frame(source, f"the {split} DataFrame"), f"the {split} DataFrame"


def _read_split(
    found: _Split, table: Table, columns: Columns, where: str, split: str, find: _Find, notes: list[str]
) -> None:
    notes.append(f"{where}: {columns.shown(table.header)}")
    if columns.ignored:
        notes.append(f"{where}: columns ignored: {', '.join(columns.ignored)}")
    if "id" not in columns.places:
        notes.append(f"{where}: no ID column; rows are numbered from 1")
    reworded = 0
    for number, (origin, cells) in enumerate(table.rows):
        if len(found.problems) >= MAX_PROBLEMS:
            raise InputError(f"{origin}: too many problems before this row; the rest wasn't read")
        if len(cells) == len(table.header):
            row, problems = _read_row(cells, columns, table.header, number, find)
        else:
            row, problems = {"id": "", "image_path": ""}, [_misfit(cells, table.header)]
        if problems:
            found.problems[number] = problems
        reworded += "wordings" in row
        found.rows.append(row)
        found.origins.append(origin)
    if not found.rows:
        raise InputError(f"{where} has a header but no rows")
    if table.blank:
        notes.append(f"{where}: {plural(table.blank, 'blank row')} passed over")
    if reworded:
        notes.append(f"{split}: {plural(reworded, 'row')} with more than one wording of the question")
    if split == "test":
        _forget_unknown(found, notes)


def _misfit(cells: Sequence[Cell], header: Sequence[str]) -> str:
    if not cells:
        return "isn't an object with a name for each cell"
    return f"{len(cells)} cells where the header has {len(header)} (text with a separator needs quotes)"


def _read_row(
    cells: Sequence[Cell], columns: Columns, header: Sequence[str], number: int, find: _Find
) -> tuple[Row, list[str]]:
    """Return the index row of one row of a table, with its answer as given, and what is wrong with it."""
    problems: list[str] = []
    texts: dict[str, str] = {}
    for meaning, place in columns.places.items():
        cell = cells[place]
        if meaning != "options":
            texts[meaning] = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
        if meaning == "answer" and not isinstance(cell, str):
            problems.append(
                f"answer is a list ({short(cell)}): a table has one; `prepare vqav2` reads several people's"
            )
    texts["question"], *wordings = _wordings(cells, columns)
    empty = [name for name in ("id", "image", "question") if name in texts and is_blank(texts[name])]
    if empty:
        named = ", ".join(header[columns.places[name]].strip() for name in empty)
        problems.append(f"{named} {'is' if len(empty) == 1 else 'are'} empty")
    name = "" if "id" in empty else texts.get("id", str(number + 1))
    row: Row = {"id": name, "image_path": "", "question": texts["question"]}
    if wordings:
        row["wordings"] = wordings
    if "image" not in empty:
        row["image_path"], problem = find(texts["image"])
        problems += [problem] if problem else []
    if columns.has_options:
        row["choices"], problem = _options(cells, columns)
        problems += [problem] if problem else []
    if not is_blank(answer := texts.get("answer", "")):
        row["answer"] = answer.strip()
    if "weight" in texts:
        weight = read_weight(texts["weight"])
        if weight is None:
            problems.append(f"weight {texts['weight'].strip()!r} isn't a number from 0 to {MAX_WEIGHT:g}")
        else:
            row["weight"] = weight
    return row, problems


def _wordings(cells: Sequence[Cell], columns: Columns) -> list[str]:
    """Return the question of a row, and after it the same in other words; blank ones and repeats don't count."""
    question = cells[columns.places["question"]]
    given = [question] if isinstance(question, str) else [text for text in question if not is_blank(text)] or [""]
    for place in columns.wordings:
        cell = cells[place]
        given += [text for text in ([cell] if isinstance(cell, str) else cell) if not is_blank(text)]
    return list(dict.fromkeys(given))


def _options(cells: Sequence[Cell], columns: Columns) -> tuple[list[str], str]:
    """Return the options of a row, and what is wrong with them (empty: nothing)."""
    if columns.options:
        given = [cells[place] for place in columns.options]
        if not all(isinstance(cell, str) for cell in given):
            return [], "an option is a list; give the column with --columns options=NAME"
        choices = [str(cell) for cell in given]
        while choices and is_blank(choices[-1]):  # a question of fewer options than the others
            choices.pop()
    else:
        choices = split_options(cells[columns.places["options"]])
    gap = next((place for place, choice in enumerate(choices) if is_blank(choice)), None)
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


def _forget_unknown(found: _Split, notes: list[str]) -> None:
    """Take `?`, `-` and a column of one letter throughout for unknown answers."""
    marks = [row for row in found.rows if one_form(row.get("answer", "")) in UNKNOWN]
    if marks:
        are = "is" if len(marks) == 1 else "are"
        notes.append(f"test: {plural(len(marks), 'answer')} {are} {' or '.join(UNKNOWN)}: taken as unknown")
    known = {row.get("answer", "") for row in found.rows}
    if len(found.rows) > 1 and len(known) == 1 and len(letter := known.pop()) == 1 and letter.isalpha():
        notes.append(f"test: the answer is {letter} in every row: taken as unknown")
        marks = found.rows
    for row in marks:
        del row["answer"]


def _read_answers(splits: Mapping[str, _Split], answer_from: str, texts_before_places: bool, notes: list[str]) -> None:
    """Write the answer of each row, a letter if it has options, and what is wrong with it.

    Raises:
        InputError: nobody can tell what the numbers in the column mean.
    """
    first = _first_number(splits, answer_from, texts_before_places, notes)
    for name, split in splits.items():
        counts: Counter[str] = Counter()
        for number, row in enumerate(split.rows):
            problem = ""
            if "answer" not in row:
                problem = "answer is empty" if name != "test" and "question" in row else ""
            elif row.get("choices"):
                given = one_form(row["answer"]).strip()
                row["answer"], problem = _letter(given, row["choices"], first)
                how = "number" if first is not None and _number(given) is not None else "text"
                counts[how] += not problem and given.upper() != row["answer"]
            if problem:
                split.problems.setdefault(number, []).append(problem)
        notes += [f"{name}: {plural(n, 'answer')} given as the option's {how}" for how, n in counts.items() if n]


def _letter(given: str, choices: Sequence[str], first: int | None) -> tuple[str, str]:
    """Return the letter of an answer and what is wrong with it; numbers count from `first`; None: they are text."""
    number = None if first is None else _number(given)
    if first is None or number is None:
        return match_answer(given, choices)
    place = number - first
    if not 0 <= place < len(choices):
        return "", f"answer {given} isn't the place of one of {len(choices)} options, counted from {first}"
    return LETTERS[place], ""


_NUMBER = re.compile(r"([0-9]{1,3})(?:\.0)?")  # pandas writes 1.0 where a cell of the column was empty


def _number(text: str) -> int | None:
    """Return the whole number that an answer is; None if it is none, or too large for a place of an option."""
    found = _NUMBER.fullmatch(text)
    return int(found[1]) if found else None


def _first_number(
    splits: Mapping[str, _Split], answer_from: str, texts_before_places: bool, notes: list[str]
) -> int | None:
    """Return the number of the first option, 0 or 1, if the answers are places; None if they are letters or texts."""
    if answer_from != "auto":
        return None if answer_from == "text" else int(answer_from)
    places: list[tuple[int, int, str]] = []  # number, options of its row, where
    both: list[str] = []
    for split in splits.values():
        for row, origin in zip(split.rows, split.origins, strict=True):
            choices = row.get("choices")
            if "answer" not in row or not choices:
                continue
            given = one_form(row["answer"]).strip()
            number = _number(given)
            # A spreadsheet or pandas writes 3 in one column and 3.0 in another.
            value = number_in(given)
            is_text = comparable(given) in map(comparable, choices) or (
                value is not None and value in map(number_in, choices)
            )
            if number is not None and number <= len(choices):
                places.append((number, len(choices), origin))
                both += [f"{origin}: {given}"] if is_text else []
            elif is_text or given.upper() in LETTERS[: len(choices)]:
                return None  # a column of places has no letters and no texts in it
    if not places or (texts_before_places and len(both) == len(places)):
        return None
    ask = "Say with --answer_from text, 0 or 1 what the numbers are"
    if both:
        raise InputError(
            f"{len(both):,} of {len(places):,} answers are numbers, each an option's text and an option's place "
            f"({', '.join(both[:3])}). {ask}."
        )
    from_0 = next((origin for number, _, origin in places if number == 0), "")
    from_1 = next((origin for number, options, origin in places if number == options), "")
    if from_0 and from_1:
        raise InputError(f"answers are counted from 0 ({from_0}) and from 1 ({from_1}): mend the column. {ask}.")
    if not from_0 and not from_1:
        raise InputError(f"answers are numbers, and nothing shows whether they begin at 0 or at 1. {ask}.")
    notes.append(f"answers are places of options, counted from {0 if from_0 else 1} (so says {from_0 or from_1})")
    return 0 if from_0 else 1


# Open-ended


def _make_label_table(prepared: Prepared, min_count: int, max_answers: int) -> None:
    """Fill the label table, most frequent answer first, and note how many rows have an answer that isn't in it.

    Args:
        prepared: the rows; it gets the table.
        min_count: times an answer must occur.
        max_answers: keep that many of them; 0: all.
    """
    spellings = Counter(
        row["answer"] for split in ("train", "val") for row in prepared.splits.get(split, []) if "answer" in row
    )
    counts: Counter[str] = Counter()
    commonest: dict[str, str] = {}
    # Of equally frequent spellings, the one in the usual Unicode form comes first.
    for spelling, count in sorted(spellings.items(), key=lambda s: (-s[1], s[0] != one_form(s[0]), s[0])):
        counts[answer_key(spelling)] += count
        commonest.setdefault(answer_key(spelling), spelling)
    frequent = sorted((key for key in counts if counts[key] >= min_count), key=lambda key: (-counts[key], key))
    frequent = frequent[: max_answers or None]
    prepared.answers = [commonest[key] for key in frequent]
    if not frequent and not prepared.problems:
        prepared.problems.append(f"no answer occurs {plural(min_count, 'time')}: lower --min_count")
    known = set(frequent)
    for split, rows in prepared.splits.items():
        outside = sum("answer" in row and answer_key(row["answer"]) not in known for row in rows)
        if outside:
            prepared.notes.append(f"{split}: {plural(outside, 'answer')} outside the label table (rows kept)")
