"""Find rows whose given answer is likely wrong, by confident learning (Northcutt, Jiang and Chuang 2021)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from beit3_vqa.data.answers import answer_key
from beit3_vqa.data.types import Prediction

LABEL_ERRORS_FILE = "label_errors.csv"  # lies beside out-of-fold predictions
TOLERANCE = 1e-6  # of a threshold, for the rounding of its mean


@dataclass(frozen=True)
class LabelError:
    """A row whose given answer is likely wrong.

    Attributes:
        prediction: the row, with the answer that the model prefers.
        given: probability of the given answer, 0 if the prediction doesn't hold it.
        preferred: probability of the model's answer.
    """

    prediction: Prediction
    given: float
    preferred: float


def find_label_errors(predictions: Sequence[Prediction]) -> list[LabelError]:
    """Return the rows whose given answer is likely wrong, the least probable given answer first.

    An answer's threshold is the mean probability that it gets in the rows where it is given. A row is a likely error if
    the model prefers another answer than the given one, and some other answer reaches its threshold: the model is then
    as sure of it as it is on average where that answer is said to be right. So a model that is unsure throughout, or
    unsure of one answer, doesn't call its own mistakes errors of the data.

    Options of multiple choice are judged by their letters. What B stands for differs from row to row; but a model that
    likes B more than C gives B more everywhere, and a threshold for each letter takes that back, as one for each class
    does elsewhere. Options that a row doesn't have get nothing, and reach no threshold.

    Args:
        predictions: made by models that weren't trained on these rows: out-of-fold, or on a validation split. Rows
            whose truth isn't known are passed over.
    """
    known = [p for p in predictions if p.truth is not None and p.probabilities]
    shares = [{_key(p, name): share for name, share in p.probabilities.items()} for p in known]
    given = [_key(p, p.truth or "") for p in known]
    where_given: dict[str, list[float]] = defaultdict(list)
    for label, row in zip(given, shares, strict=True):
        where_given[label].append(row.get(label, 0.0))
    threshold = {label: fmean(values) for label, values in where_given.items()}

    def is_confident(label: str, share: float) -> bool:
        return label in threshold and share > TOLERANCE and share >= threshold[label] - TOLERANCE

    found = [
        LabelError(p, row.get(label, 0.0), p.probabilities.get(p.answer, 0.0))
        for p, label, row in zip(known, given, shares, strict=True)
        # An answer that some annotators gave isn't another one.
        if not p.score and any(is_confident(name, share) for name, share in row.items() if name != label)
    ]
    return sorted(found, key=lambda error: error.given)


def _key(p: Prediction, answer: str) -> str:
    """Return what two spellings of an answer share; a letter is its own."""
    return answer if p.choices else answer_key(answer)
