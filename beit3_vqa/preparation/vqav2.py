"""VQAv2: the official JSON files of questions and annotations (https://visualqa.org/download.html).

Images lie under `--image_root` in `train2014`, `val2014` and `test2015`, under COCO's file names. As in upstream, the
table holds the answers that are the majority's at least `--min_count` times in train and val. As in ViLT, the questions
of train and of most images of val are trained on; those of 1,000 images of val, drawn with `--seed`, are validated on.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, TypeVar

from beit3_vqa.data.answers import AnswerTable, normalize_word, soft_score
from beit3_vqa.data.rows import Row, is_count
from beit3_vqa.data.tables import read_json
from beit3_vqa.errors import MAX_PROBLEMS, InputError, plural, short
from beit3_vqa.preparation.writer import Prepared, PrepareOptions
from beit3_vqa.runtime.fields import Options, option
from beit3_vqa.runtime.files import is_text


@dataclass(frozen=True)
class Arguments(Options):
    """The files to read, and what to make of them."""

    annotations: str = option(MISSING, "folder of the official v2_*.json files")
    min_count: int = option(9, "answers that are the majority's less often than this get no class", low=1)
    val_images: int = option(1000, "images of val2014 to validate on; the others are trained on", low=1)


T = TypeVar("T")
_SPLITS = ("train2014", "val2014", "test2015", "test-dev2015")
ANNOTATED = _SPLITS[:2]


def read(arguments: Arguments, options: PrepareOptions) -> Prepared:
    """Read train and val, and test and test-dev if their files are there."""
    prepared = Prepared("vqav2", [], options.image_root, task="vqav2")
    folder = Path(arguments.annotations)
    rows: dict[str, dict[int, Row]] = {}
    people: dict[str, dict[int, Counter[str]]] = {}
    for split in _SPLITS:
        path = folder / f"v2_OpenEnded_mscoco_{split}_questions.json"
        if split not in ANNOTATED and not path.exists():
            prepared.notes.append(f"{path.name} isn't there: no such split")
            rows[split] = {}
        else:
            rows[split] = read_questions(path, split, prepared, options.encoding)
    for split in ANNOTATED:
        path = folder / f"v2_mscoco_{split}_annotations.json"
        people[split] = read_annotations(path, rows[split], prepared, options.encoding, _count_answers)
    # Labels in the order of the annotations, as upstream's checkpoints have them.
    majorities = Counter(normalize_word(rows[of][number]["answer"]) for of in people for number in people[of])
    prepared.answers = [answer for answer, count in majorities.items() if count >= arguments.min_count]
    if not prepared.answers:
        prepared.problems.append(
            f"no answer is the majority's {plural(arguments.min_count, 'time')}; lower --min_count"
        )
        return prepared
    table = AnswerTable(prepared.answers)
    for split, answers in people.items():
        for number, given in answers.items():
            rows[split][number] |= _targets(given, table)
    _add_rows(prepared, rows, arguments.val_images, options.seed)
    return prepared


def read_questions(
    path: Path, split: str, prepared: Prepared, encoding: str, problem_of: Callable[[dict[str, Any]], str] | None = None
) -> dict[int, Row]:
    """Read a file of questions, and return question id -> row without an answer.

    Args:
        path: the file; what is wrong with it goes to the problems of `prepared`.
        split: COCO's name of the images' split.
        prepared: gets problems and notes.
        encoding: of the file.
        problem_of: returns what else is wrong with a question; None: nothing. If it is given, rows get the question's
            `multiple_choices` as `choices`.
    """
    images = split.replace("test-dev", "test")  # test-dev is a part of test and has no folder of its own
    rows: dict[int, Row] = {}
    for place, entry in enumerate(_entries(path, "questions", prepared, encoding), start=1):
        number, image = entry.get("question_id", -1), entry.get("image_id")
        if not is_count(number) or not is_count(image):
            problem = "question_id and image_id must be whole numbers"
        elif not is_text(entry.get("question")) or not entry["question"].strip():
            problem = "question must be text and not empty"
        elif number in rows:
            problem = f"question_id {number} was there before"
        elif not (problem := problem_of(entry) if problem_of else ""):
            path_of = f"{images}/COCO_{images}_{image:012}.jpg"
            rows[number] = {"id": str(number), "image_path": path_of, "question": entry["question"]}
            if problem_of:
                rows[number]["choices"] = entry["multiple_choices"]
            continue
        if not _note(prepared, f"{path}: question {place}: {problem}"):
            break
    return rows


def read_annotations(
    path: Path, rows: dict[int, Row], prepared: Prepared, encoding: str, keep: Callable[[dict[str, Any]], T]
) -> dict[int, T]:
    """Read a file of annotations: give rows their majority answer, and return question id -> what `keep` makes of it.

    `keep` takes an annotation without a problem; problems go to those of `prepared`.
    """
    kept: dict[int, T] = {}
    for place, entry in enumerate(_entries(path, "annotations", prepared, encoding), start=1):
        number, given = entry.get("question_id", -1), entry.get("answers")
        majority = entry.get("multiple_choice_answer")
        texts = [one.get("answer") if isinstance(one, dict) else None for one in _list(given)]
        if not is_count(number) or number not in rows:
            problem = f"there is no question {short(number)}"
        elif number in kept:
            problem = f"question {number} was annotated before"
        elif not is_text(majority) or not str(majority).strip():
            problem = "multiple_choice_answer must be text and not empty"
        elif not texts or not all(map(is_text, texts)):
            problem = 'answers must be a list of {"answer": text}'
        else:
            rows[number]["answer"] = majority
            kept[number] = keep(entry)
            continue
        if not _note(prepared, f"{path}: annotation {place}: {problem}"):
            break
    for number in [number for number in rows if number not in kept]:
        if not _note(prepared, f"{path}: question {number} has no annotation"):
            break
    return kept


def _count_answers(annotation: dict[str, Any]) -> Counter[str]:
    """Return how many annotators gave each normalised answer."""
    return Counter(normalize_word(one["answer"]) for one in annotation["answers"])


def _entries(path: Path, name: str, prepared: Prepared, encoding: str) -> list[dict[str, Any]]:
    """Return the list `name` of objects in a file; empty, with a problem, if there is no such list."""
    try:
        data = read_json(path, encoding, prepared.notes)
    except InputError as error:
        prepared.problems.append(str(error))
        return []
    entries = _list(data.get(name)) if isinstance(data, dict) else []
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        prepared.problems.append(f'{path} has no list "{name}" of objects: give the official file')
        return []
    return entries


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _note(prepared: Prepared, problem: str) -> bool:
    """Add a problem, unless there are `MAX_PROBLEMS` already; return whether another one may follow."""
    if len(prepared.problems) < MAX_PROBLEMS:
        prepared.problems.append(problem)
    return len(prepared.problems) < MAX_PROBLEMS


def _targets(given: Counter[str], table: AnswerTable) -> Row:
    """Return the `labels` and `scores` of a row; both empty if no annotator's answer has a class."""
    scores: dict[int, float] = {}
    for answer, count in given.items():
        label = table.label(answer)
        if label is not None:
            scores[label] = max(scores.get(label, 0.0), soft_score(count))
    return {"labels": list(scores), "scores": list(scores.values())}


def _add_rows(prepared: Prepared, rows: dict[str, dict[int, Row]], val_images: int, seed: int) -> None:
    held_out = draw_val_images(rows["val2014"], prepared, val_images, seed)
    for split, of in rows.items():
        for number, row in of.items():
            in_val = split == "val2014" and row["image_path"] in held_out
            target = "val" if in_val else "train" if split in ANNOTATED else split.removesuffix("2015")
            prepared.add(target, row, f"{split}, question {number}")
    unknown = sum(not row["labels"] for split in ANNOTATED for row in rows[split].values() if "labels" in row)
    if unknown:
        prepared.notes.append(
            f"the answers of {plural(unknown, 'row')} have no class: not trained on, and counted as wrong"
        )


def draw_val_images(rows: dict[int, Row], prepared: Prepared, val_images: int, seed: int) -> set[str]:
    """Return the paths of the images of val2014 to validate on, and note how many they are."""
    images = sorted({row["image_path"] for row in rows.values()})
    held_out = set(random.Random(seed).sample(images, min(val_images, len(images))))
    prepared.notes.append(f"validated on {len(held_out):,} of {plural(len(images), 'image')} of val2014, seed {seed}")
    return held_out
