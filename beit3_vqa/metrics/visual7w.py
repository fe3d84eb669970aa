"""Visual7W's own scoring of telling questions, and the result file that its toolkit reads.

An answer is right if its text is the true one; only the case of letters doesn't matter. Accuracies are of all questions
of the split, and one without an answer is wrong. The toolkit leaves those out, so that a few sure answers could score
100%.

Source: the toolkit's readme and its evaluation, https://github.com/yukezhu/visual7w-toolkit
"""

from collections.abc import Sequence
from pathlib import Path

from beit3_vqa.data.predictions import write_json_rows
from beit3_vqa.data.rows import LETTERS
from beit3_vqa.data.types import Prediction
from beit3_vqa.data.visual7w import Telling
from beit3_vqa.errors import InputError, plural, short
from beit3_vqa.metrics.intervals import LEVEL, wilson_interval
from beit3_vqa.metrics.types import BenchmarkScore, Share


def answer_text(prediction: Prediction) -> str:
    """Return the text of an answer; if the answer is a letter, the text of its option.

    Raises:
        InputError: the prediction doesn't say what its letter means.
    """
    letters = LETTERS[: len(prediction.choices)]
    if prediction.choices and prediction.answer in tuple(letters):
        return prediction.choices[letters.index(prediction.answer)]
    if not prediction.choices and set(prediction.probabilities) <= set(LETTERS):
        raise InputError(
            f"prediction {short(prediction.id)}: answers {short(prediction.answer)} without saying its options. "
            "Evaluate again: predictions.json then has them."
        )
    return prediction.answer


def visual7w_score(predictions: Sequence[Prediction], questions: dict[str, Telling], where: Path) -> BenchmarkScore:
    """Return accuracies in percent over all questions of the predictions' split, and by question word.

    Keys: `split`, `questions`, `answered`, `accuracy`, `accuracy_interval`, and `by_type`, word -> the same.

    Raises:
        InputError: predictions of unknown questions, or of more than one split.
    """
    extra = [short(p.id) for p in predictions if p.id not in questions]
    if extra:
        raise InputError.of_problems(f"{plural(len(extra), 'prediction')} of questions that aren't in {where}:", extra)
    splits = {questions[p.id].split for p in predictions}
    if len(splits) != 1:
        raise InputError(f"the predictions are of {len(splits)} splits of {where}; score one at a time.")
    (split,) = splits
    answers = {p.id: answer_text(p).lower() for p in predictions}
    right: dict[str, list[bool | None]] = {}
    for name, question in questions.items():
        if question.split == split:
            is_right = answers[name] == question.answer.lower() if name in answers else None
            right.setdefault(question.type, []).append(is_right)
    everything = [is_right for group in right.values() for is_right in group]
    return {"split": split, **_share(everything), "by_type": {word: _share(right[word]) for word in sorted(right)}}


def _share(right: Sequence[bool | None]) -> Share:
    count = sum(is_right is True for is_right in right)
    low, high = wilson_interval(count, len(right))
    return {
        "questions": len(right),
        "answered": sum(is_right is not None for is_right in right),
        "accuracy": 100.0 * count / len(right),
        "accuracy_interval": {"low": 100.0 * low, "high": 100.0 * high, "level": LEVEL, "method": "wilson"},
    }


def write_results(predictions: Sequence[Prediction], questions: dict[str, Telling], path: Path) -> Path:
    """Write the toolkit's result file: `[{"qa_id", "question", "candidates": [{"answer": text}]}, ...]`."""
    rows = []
    for p in predictions:
        asked = questions[p.id]
        candidates = [{"answer": answer_text(p)}]
        rows.append({"qa_id": asked.qa_id, "question": asked.question, "candidates": candidates})
    return write_json_rows(rows, path)
