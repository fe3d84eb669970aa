"""Visual7W's telling questions (`dataset_v7w_telling.json`), in their official splits.

The file's `multiple_choices` are only the three wrong answers. The right one is put among them in an order that follows
from the seed and the question's id: a fixed place would give the answer away.

Source: Zhu et al., Visual7W, https://ai.stanford.edu/~yukez/visual7w/
"""

import random
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from beit3_vqa.data.rows import Row, is_count
from beit3_vqa.data.tables import named_list, read_json
from beit3_vqa.data.visual7w import ADVICE, image_problem
from beit3_vqa.errors import InputError
from beit3_vqa.preparation.choices_csv import LETTERS, write_csv
from beit3_vqa.preparation.writer import Prepared, PrepareOptions, Splits
from beit3_vqa.runtime.fields import Options, option
from beit3_vqa.runtime.files import is_text

_CSV = "visual7w.{split}.csv"


@dataclass(frozen=True)
class Arguments(Options):
    """The file to read."""

    json: str = option(MISSING, "dataset_v7w_telling.json")


def read(arguments: Arguments, options: PrepareOptions) -> Prepared:
    """Read the questions; each split is written as a CSV in the SCPC format too (visual7w.train.csv, ...)."""
    prepared = Prepared("visual7w", list(LETTERS), options.image_root, extra_files=_split_csvs)
    prepared.extra_names = (_CSV,)
    path = Path(arguments.json)
    try:
        images = named_list(read_json(path, options.encoding, prepared.notes), "images", path, ADVICE)
    except InputError as error:
        prepared.problems.append(str(error))
        return prepared
    for origin, image in prepared.checked(images, path, "image", image_problem):
        for number, question in enumerate(image["qa_pairs"], start=1):
            row, problem = _read_question(question, image, options.seed)
            where = f"{origin} ({image['image_id']}), question {number}"
            if problem:
                prepared.problems.append(f"{where}: {problem}")
            if row:
                prepared.add(image["split"], row, where)
    return prepared


def _read_question(question: object, image: Mapping[str, Any], seed: int) -> tuple[Row | None, str]:
    """Return the index row of a question, None if it has no id, and what is wrong with it."""
    if not isinstance(question, dict):
        return None, "isn't an object"
    qa_id: Any = question.get("qa_id")
    if not is_count(qa_id) and not (is_text(qa_id) and qa_id.strip()):
        return None, "qa_id must be a number or text"
    image_path = image.get("filename", f"v7w_{image['image_id']}.jpg").strip()
    row: Row = {"id": str(qa_id), "image_path": image_path}
    wrong = question.get("multiple_choices")
    for name in ("question", "answer"):
        if not is_text(question.get(name)) or not question[name].strip():
            return row, f"{name} must be text and not empty"
    if not isinstance(wrong, list) or len(wrong) != 3 or not all(is_text(text) and text.strip() for text in wrong):
        return row, "multiple_choices must be the 3 wrong answers, none of them empty"
    options = [question["answer"], *wrong]
    order = list(range(len(options)))
    random.Random(f"{seed}/{qa_id}").shuffle(order)
    row |= {
        "question": question["question"],
        "choices": [options[place] for place in order],
        "answer": LETTERS[order.index(0)],
    }
    if is_text(question.get("type")):
        row["type"] = question["type"]
    return row, ""


def _split_csvs(splits: Splits) -> dict[str, str]:
    return {_CSV.format(split=split): write_csv(rows) for split, rows in splits.items()}
