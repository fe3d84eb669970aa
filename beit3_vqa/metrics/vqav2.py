"""VQAv2's score: an answer compared with those of ten annotators, as the official evaluation does it.

The answer is processed (`normalize_word`). The annotators' answers are processed only if they differ among themselves,
and then only their punctuation is. The accuracy of an answer is the mean over the ten ways to leave one
annotator out of min(1, those of the other nine who gave it / 3).

Source: the VQA evaluation, https://visualqa.org/evaluation.html, and its script `vqaEval.py`
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from beit3_vqa.data.answers import normalize_word, without_marks
from beit3_vqa.data.rows import is_count
from beit3_vqa.data.tables import named_list, read_json, require_same_ids
from beit3_vqa.data.types import Prediction
from beit3_vqa.errors import MAX_PROBLEMS, InputError, short
from beit3_vqa.metrics.intervals import LEVEL, mean_interval
from beit3_vqa.metrics.types import BenchmarkScore
from beit3_vqa.runtime.files import is_text

ENOUGH = 3  # annotators that make an answer wholly right
MAX_ANSWERS = 1000  # of one question; the official ones have ten


@dataclass(frozen=True)
class Annotation:
    """The annotators' answers to a question, and its kind: yes/no, number or other; empty if it isn't known."""

    question_id: str
    answers: tuple[str, ...]
    answer_type: str = ""


def vqa_accuracy(answer: str, annotated: Sequence[str]) -> float:
    """Return the official accuracy of an answer, in [0, 1].

    Args:
        answer: as the model gave it.
        annotated: one answer of each annotator, two or more of them.
    """
    given = normalize_word(answer.replace("\n", " ").replace("\t", " ").strip())
    agree = len(set(annotated)) == 1
    same = sum(given == (other if agree else without_marks(other)) for other in annotated)
    # Leaving out one of those who agree leaves one fewer; leaving out another leaves them all.
    without_one, without_another = min(1.0, (same - 1) / ENOUGH), min(1.0, same / ENOUGH)
    return (same * without_one + (len(annotated) - same) * without_another) / len(annotated)


def read_annotations(path: Path) -> list[Annotation]:
    """Read an official JSON of annotations, `{"annotations": [{"question_id", "answers": [{"answer"}], ...}]}`.

    Raises:
        InputError: no such file, another one, or annotations (listed) that can't be scored.
    """
    rows = named_list(read_json(path), "annotations", path, "give v2_mscoco_val2014_annotations.json, or its like.")
    found, problems = [], []
    for number, row in enumerate(rows, start=1):
        problem = _problem(row)
        if problem:
            problems.append(f"{path}: annotation {number}: {problem}")
            if len(problems) >= MAX_PROBLEMS:
                break
        else:
            answers = tuple(answer["answer"] for answer in row["answers"])
            kind = row.get("answer_type")
            found.append(Annotation(str(row["question_id"]), answers, kind if is_text(kind) else ""))
    if problems:
        raise InputError.of_problems(f"{path} can't be used for scoring:", problems)
    return found


def _problem(row: object) -> str:
    if not isinstance(row, dict):
        return "isn't an object"
    name, answers = row.get("question_id"), row.get("answers")
    if not is_count(name) and not (is_text(name) and name):
        return f"question_id {short(name)} must be a number or text"
    if not isinstance(answers, list) or not 2 <= len(answers) <= MAX_ANSWERS:
        return "answers must be a list of two or more"
    if not all(isinstance(answer, dict) and is_text(answer.get("answer")) for answer in answers):
        return 'each of its answers must be an object with a text "answer"'
    return ""


def vqav2_score(predictions: Sequence[Prediction], annotations: Sequence[Annotation], where: Path) -> BenchmarkScore:
    """Return the mean accuracy in percent over all questions, and by kind of answer.

    Keys: `questions`, `accuracy`, `accuracy_interval` (normal: scores aren't 0 or 1), and `by_type`, kind -> the same.

    Raises:
        InputError: predictions and annotations are of different questions, or a question is annotated twice.
    """
    by_id: dict[str, Annotation] = {}
    doubled = [a.question_id for a in annotations if by_id.setdefault(a.question_id, a) is not a]
    require_same_ids(predictions, by_id, where, list(dict.fromkeys(doubled)))
    scores: dict[str, list[float]] = {}
    for p in predictions:
        known = by_id[p.id]
        scores.setdefault(known.answer_type, []).append(vqa_accuracy(p.answer, known.answers))
    everything = [score for group in scores.values() for score in group]
    score = _mean(everything)
    score["by_type"] = {kind: _mean(scores[kind]) for kind in sorted(scores) if kind}
    return score


def _mean(scores: Sequence[float]) -> BenchmarkScore:
    low, high = mean_interval(scores)
    return {
        "questions": len(scores),
        "accuracy": 100.0 * sum(scores) / len(scores),
        "accuracy_interval": {"low": 100.0 * low, "high": 100.0 * high, "level": LEVEL, "method": "normal"},
    }
