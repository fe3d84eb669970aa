"""Multiple choice in CSV files: `ID,img_path,Question,A,B,C,D[,answer][,weight]`, the format of SCPC."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path

from beit3_vqa.data.index import SPLITS
from beit3_vqa.data.rows import MAX_WEIGHT, Row
from beit3_vqa.data.tables import comparable, find_columns, match_answer, parse_csv, read_text, read_weight
from beit3_vqa.errors import MAX_PROBLEMS, InputError, plural
from beit3_vqa.preparation.writer import Prepared, PrepareOptions
from beit3_vqa.runtime.fields import Options, option
from beit3_vqa.runtime.files import one_form


@dataclass(frozen=True)
class Arguments(Options):
    """The files to read."""

    train: str = option(MISSING, "CSV of training questions: ID,img_path,Question,A,B,C,D,answer[,weight]")
    val: str = option("", "CSV of validation questions; default: --val_ratio of the training images")
    test: str = option("", "CSV of test questions; its answer column may be missing")


LETTERS = ("A", "B", "C", "D")
COLUMNS = ("ID", "img_path", "Question", *LETTERS)
OPTIONAL_COLUMNS = ("answer", "weight")


def read(arguments: Arguments, options: PrepareOptions) -> Prepared:
    """Read the CSV of each split; rows of train and val need an answer, those of test may have one."""
    prepared = Prepared("choices", list(LETTERS), options.image_root)
    for split in SPLITS:
        if file := getattr(arguments, split):
            path = Path(file)
            try:
                _read_split(path, split, prepared, options.encoding)
            except InputError as error:
                prepared.problems.append(str(error))
    return prepared


def _read_split(path: Path, split: str, prepared: Prepared, encoding: str) -> None:
    lines = parse_csv(read_text(path, encoding, prepared.notes), path)
    _, header = next(lines, (1, []))
    required = (*COLUMNS, *(["answer"] if split != "test" else []))
    columns = find_columns(header, path, required, OPTIONAL_COLUMNS)
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
        # Even with a problem a row is added, so that its image and its id are checked in the same run.
        if row["id"] and row["image_path"]:
            prepared.add(split, row, origin)
    if not counts["rows"]:
        raise InputError(f"{path} has a header but no rows")
    if counts["answers given as text"]:
        prepared.notes.append(
            f"{split}: {plural(counts['answers given as text'], 'answer')} given as the option's text"
        )
    if counts["repeated options"]:
        prepared.notes.append(f"{split}: {plural(counts['repeated options'], 'row')} with the same text in two options")


def _read_row(cells: Mapping[str, str], needs_answer: bool, counts: Counter[str]) -> tuple[Row, list[str]]:
    """Return the index row of one CSV row and what is wrong with it; `counts` counts what the notes tell."""
    empty = [name for name in COLUMNS if not one_form(cells[name]).strip()]
    problems = [f"{', '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty"] if empty else []
    choices = [cells[letter] for letter in LETTERS]
    row: Row = {
        "id": cells["ID"] if one_form(cells["ID"]).strip() else "",
        "image_path": cells["img_path"].strip(),
        "question": cells["Question"],
        "choices": choices,
    }
    counts["repeated options"] += len({comparable(choice) for choice in choices}) < len(choices)
    given = one_form(cells.get("answer", "")).strip()
    if given:
        letter, problem = match_answer(given, choices)
        problems += [problem] if problem else []
        if letter:
            row["answer"] = letter
            counts["answers given as text"] += given.upper() != letter
    elif needs_answer:
        problems.append("answer is empty")
    if "weight" in cells:
        weight = read_weight(cells["weight"])
        if weight is None:
            problems.append(f"weight {cells['weight'].strip()!r} isn't a number from 0 to {MAX_WEIGHT:g}")
        else:
            row["weight"] = weight
    return row, problems


def write_csv(rows: Iterable[Row]) -> str:
    """Return rows with options as CSV text, which `read` turns back into the same rows."""
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
