"""Open-ended questions in JSON: lists of {"image_id", "question", "answer", "question_id"}, the format of DACON.

The label table holds the answers of train and val that occur often enough. They are compared as normalised text and
written in their most frequent spelling, which a submission then has. Rows with another answer stay in the index: a
fork's converter dropped them without a word, which made its validation score look better than it was.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from beit3_vqa.data.answers import answer_key
from beit3_vqa.data.index import SPLITS
from beit3_vqa.data.rows import Row, is_count
from beit3_vqa.data.tables import read_json
from beit3_vqa.errors import MAX_PROBLEMS, InputError, plural
from beit3_vqa.preparation.writer import Prepared, PrepareOptions
from beit3_vqa.runtime.fields import Options, option
from beit3_vqa.runtime.files import is_text, one_form


@dataclass(frozen=True)
class Arguments(Options):
    """The files to read, and how many answers to keep."""

    train: str = option(MISSING, "JSON list of training questions: image_id, question, answer, question_id")
    val: str = option("", "JSON list of validation questions; default: --val_ratio of the training images")
    test: str = option("", "JSON list of test questions; answers may be missing")
    min_count: int = option(1, "times an answer must occur to be in the label table", low=1)


EXTENSIONS = (".jpg", ".jpeg", ".png")

# Folders in which a split's images may be, best first. Validation images are often a part of the training images. Test
# images never are, and their numbers start anew, so that another folder's image of that name would be the wrong one.
_FOLDERS = {"train": ("train", ""), "val": ("val", "train", ""), "test": ("test", "")}


def read(arguments: Arguments, options: PrepareOptions) -> Prepared:
    """Read the list of each split; images are `train/{image_id}.jpg` and the like, or lie in the image root itself."""
    prepared = Prepared("dacon_json", [], options.image_root)
    for split in SPLITS:
        if file := getattr(arguments, split):
            try:
                _read_split(Path(file), split, prepared, options.encoding)
            except InputError as error:
                prepared.problems.append(str(error))
    make_label_table(prepared, arguments.min_count)
    return prepared


def _read_split(path: Path, split: str, prepared: Prepared, encoding: str) -> None:
    items = read_json(path, encoding, prepared.notes)
    if not isinstance(items, list) or not items:
        raise InputError(f"{path} isn't a list of questions")
    folders = {folder: _image_names(Path(prepared.image_root, folder)) for folder in _FOLDERS[split]}
    for place, item in enumerate(items, start=1):
        origin = f"{path}: item {place}"
        if len(prepared.problems) >= MAX_PROBLEMS:
            raise InputError(f"{origin}: too many problems before this item; the rest of the file wasn't read")
        row, problems = _read_item(item, split, folders)
        if problems:
            prepared.problems.append(f"{origin}: {'; '.join(problems)}")
        if row:
            prepared.add(split, row, origin)


def _read_item(item: object, split: str, folders: Mapping[str, Mapping[str, str]]) -> tuple[Row | None, list[str]]:
    """Return the index row of one question, None if its id or image is missing, and what is wrong with it."""
    if not isinstance(item, dict):
        return None, ["isn't an object"]
    problems = [
        f"{name} must be a number or text"
        for name in ("question_id", "image_id")
        if not is_count(item.get(name)) and not (is_text(item.get(name)) and item[name].strip())
    ]
    known = not problems
    needed = ["question"] if split == "test" and item.get("answer") in (None, "") else ["question", "answer"]
    texts = {name: _text(item.get(name)) for name in needed}
    problems += [f"{name} must be text and not empty" for name, text in texts.items() if not text]
    if not known:
        return None, problems
    row: Row = {
        "id": str(item["question_id"]),
        "image_path": _find_image(str(item["image_id"]), split, folders),
        "question": texts["question"],
    }
    if texts.get("answer"):
        row["answer"] = texts["answer"].strip()
    return row, problems


def _text(value: Any) -> str:
    """Return a text or a whole number as text; an empty string for anything else."""
    text = str(value) if type(value) is int else value
    return text if is_text(text) and one_form(text).strip() else ""


def _image_names(folder: Path) -> dict[str, str]:
    """Return image id -> file name of the images in a folder; the first of `EXTENSIONS` wins if an id has several."""
    if not folder.is_dir():
        return {}
    names = sorted(entry.name for entry in folder.iterdir())
    by_id = {name: name for name in names if name.lower().endswith(EXTENSIONS)}
    for extension in reversed(EXTENSIONS):
        by_id |= {name[: -len(extension)]: name for name in names if name.lower().endswith(extension)}
    return by_id


def _find_image(image_id: str, split: str, folders: Mapping[str, Mapping[str, str]]) -> str:
    """Return the image's path relative to the image root; if there is no image, the likeliest path of one.

    An id that names a file (`0001.jpg`, `train/0001.jpg`) means that file.
    """
    folder, _, name = image_id.replace("\\", "/").rpartition("/")
    if folder:
        return image_id
    for folder, names in folders.items():
        if name in names:
            return f"{folder}/{names[name]}" if folder else names[name]
    return f"{split}/{name}" if name.lower().endswith(EXTENSIONS) else f"{split}/{name}.jpg"


def make_label_table(prepared: Prepared, min_count: int, max_answers: int = 0) -> None:
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
