"""Read Visual7W's file of telling questions, `dataset_v7w_telling.json`."""

from dataclasses import dataclass
from pathlib import Path

from beit3_vqa.data.index import SPLITS
from beit3_vqa.data.rows import is_count
from beit3_vqa.data.tables import named_list, read_json
from beit3_vqa.errors import MAX_PROBLEMS, InputError, short
from beit3_vqa.runtime.files import is_text

ADVICE = "give dataset_v7w_telling.json"


def image_problem(image: object) -> str:
    """Return what is wrong with one of its images, or an empty string."""
    if not isinstance(image, dict):
        return "isn't an object"
    if image.get("split") not in SPLITS:
        return f"split {short(image.get('split'))} is none of {', '.join(SPLITS)}"
    if not is_count(image.get("image_id")) and not is_text(image.get("image_id")):
        return "image_id must be a number or text"
    if "filename" in image and (not is_text(image["filename"]) or not image["filename"].strip()):
        return "filename must be text"
    return "" if isinstance(image.get("qa_pairs"), list) else "has no list qa_pairs"


@dataclass(frozen=True)
class Telling:
    """A question of dataset_v7w_telling.json.

    Attributes:
        qa_id: its id, as it is there.
        split: name of its split.
        type: what, where, when, who, why or how.
        question: its text.
        answer: the true answer.
    """

    qa_id: int | str
    split: str
    type: str
    question: str
    answer: str


def read_telling(path: Path) -> dict[str, Telling]:
    """Read the questions of every split: id as text -> question.

    Raises:
        InputError: the file is missing or another one, or questions (listed) can't be scored.
    """
    found: dict[str, Telling] = {}
    problems: list[str] = []
    for place, image in enumerate(named_list(read_json(path), "images", path, ADVICE), start=1):
        problem = image_problem(image)
        if problem:
            problems.append(f"{path}: image {place}: {problem}")
        for number, pair in enumerate(image["qa_pairs"] if not problem else (), start=1):
            question, problem = _read_pair(pair, image["split"])
            if question is not None and found.setdefault(str(question.qa_id), question) is not question:
                problem = f"qa_id {short(question.qa_id)} is there twice"
            problems += [f"{path}: image {place}, question {number}: {problem}"] if problem else []
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        raise InputError.of_problems(f"{path} can't be used for scoring:", problems)
    return found


def _read_pair(pair: object, split: str) -> tuple[Telling | None, str]:
    """Return the question of a `qa_pairs` entry, and what is wrong with it (empty: nothing)."""
    if not isinstance(pair, dict):
        return None, "isn't an object"
    qa_id, texts = pair.get("qa_id"), [pair.get(name) for name in ("type", "question", "answer")]
    if not is_count(qa_id) and not (is_text(qa_id) and str(qa_id).strip()):
        return None, "qa_id must be a number or text"
    if not all(is_text(text) and str(text).strip() for text in texts):
        return None, "type, question and answer must be text and not empty"
    return Telling(qa_id, split, *map(str, texts)), ""  # type: ignore[arg-type]
