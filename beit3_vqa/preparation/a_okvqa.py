"""A-OKVQA's multiple-choice questions (`aokvqa_v1p0_{train,val,test}.json`), in their official splits.

The options keep the order of the file. Images are COCO 2017's `{image_id:012d}.jpg`, below `train2017`, `val2017` and
`test2017` of the image root, or directly in it. The direct answers and the rationales aren't read.

Source: Schwenk et al., A-OKVQA, https://allenai.org/project/a-okvqa/home
"""

from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from beit3_vqa.data.index import SPLITS
from beit3_vqa.data.rows import Row, is_count
from beit3_vqa.data.tables import read_json
from beit3_vqa.errors import InputError, short
from beit3_vqa.preparation.choices_csv import LETTERS
from beit3_vqa.preparation.writer import Prepared, PrepareOptions
from beit3_vqa.runtime.fields import Options, option
from beit3_vqa.runtime.files import is_file, is_text


@dataclass(frozen=True)
class Arguments(Options):
    """The files to read."""

    annotations: str = option(MISSING, "folder of aokvqa_v1p0_train.json, and of the files of val and test if wanted")


def read(arguments: Arguments, options: PrepareOptions) -> Prepared:
    """Read train, and val and test if their files are there; the questions of test may lack an answer."""
    prepared = Prepared("a_okvqa", list(LETTERS), options.image_root)
    for split in SPLITS:
        path = Path(arguments.annotations) / f"aokvqa_v1p0_{split}.json"
        if split != "train" and not path.exists():
            prepared.notes.append(f"{path.name} isn't there: no such split")
            continue
        try:
            _read_split(path, split, prepared, options)
        except InputError as error:
            prepared.problems.append(str(error))
    return prepared


def _read_split(path: Path, split: str, prepared: Prepared, options: PrepareOptions) -> None:
    entries = read_json(path, options.encoding, prepared.notes)
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} isn't a list of questions: give the official file")
    for origin, entry in prepared.checked(entries, path, "question", partial(_problem, split)):
        row = _make_row(entry, split, Path(options.image_root))
        prepared.add(split, row, f"{origin} ({row['id']})")


def _problem(split: str, entry: object) -> str:
    """Return what is wrong with a question (empty: nothing)."""
    if not isinstance(entry, dict):
        return "isn't an object"
    for name in ("question_id", "question"):
        if not is_text(entry.get(name)) or not entry[name].strip():
            return f"{name} must be text and not empty"
    if not is_count(entry.get("image_id")):
        return "image_id must be a whole number"
    if entry.get("split", split) != split:
        return f"its split is {short(entry['split'])}, and the file is of {split}"
    choices = entry.get("choices")
    if not isinstance(choices, list) or len(choices) != len(LETTERS):
        return "choices must be a list of 4 texts"
    if not all(is_text(choice) and choice.strip() for choice in choices):
        return "choices must be texts, none of them empty"
    right = entry.get("correct_choice_idx")
    if right is None:
        return "" if split == "test" else "has no correct_choice_idx; only questions of test may lack it"
    return "" if is_count(right) and right < len(LETTERS) else f"correct_choice_idx is {short(right)}, not 0 to 3"


def _make_row(entry: dict[str, Any], split: str, root: Path) -> Row:
    """Return the index row of a question without a problem."""
    name = f"{entry['image_id']:012}.jpg"
    # An image that is nowhere is reported under the usual path.
    flat = not is_file(root / f"{split}2017" / name) and is_file(root / name)
    row: Row = {
        "id": entry["question_id"],
        "image_path": name if flat else f"{split}2017/{name}",
        "question": entry["question"],
        "choices": entry["choices"],
    }
    if entry.get("correct_choice_idx") is not None:
        row["answer"] = LETTERS[entry["correct_choice_idx"]]
    return row
