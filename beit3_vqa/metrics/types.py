"""What the functions of this folder return, field by field; `metrics.json` holds the same.

A class with `total=False` has fields that are there only if the data allow them. The function says when.
"""

from typing import Literal, TypedDict

Way = Literal["plain", "averaged", "circular", "every_order", "every_wording"]


class Interval(TypedDict):
    """The ends of an interval in percent, its level in percent, and the method that computed it."""

    low: float
    high: float
    level: int
    method: str


class ImageInterval(Interval):
    """An interval that knows which questions share an image."""

    images: int
    effective_questions: float


class Gap(Interval):
    """A difference of two accuracies, with its interval."""

    accuracy: float


class TemperatureFit(TypedDict):
    """A fitted temperature, and the mean negative log-likelihood of the truths at temperature 1 and at this one."""

    temperature: float
    questions: int
    nll_before: float | None
    nll_after: float | None


class Share(TypedDict, total=False):
    """The accuracy in percent on some questions."""

    questions: int
    answered: int
    accuracy: float
    accuracy_interval: Interval


class BenchmarkScore(Share, total=False):
    """A benchmark's own score, and the same of each kind of question."""

    split: str
    by_type: dict[str, Share]


class Position(TypedDict):
    """How often an option was true and how often it was answered."""

    true: int
    answered: int
    recall: float | None
    precision: float | None


# `from` is a word of Python's.
ReliabilityBin = TypedDict(
    "ReliabilityBin", {"from": float, "to": float, "questions": int, "confidence": float, "accuracy": float}
)


class Calibration(TypedDict, total=False):
    """How far confidence and accuracy differ."""

    ece: float
    bins: int
    confidence: float
    brier: float
    reliability: list[ReliabilityBin]


class CoveragePoint(TypedDict):
    """The accuracy on the most confident part of the questions."""

    coverage: int
    questions: int
    accuracy: float
    confidence: float


class Baseline(TypedDict, total=False):
    """The accuracy of a way to answer without the image."""

    accuracy: float
    answer: str | None
    counted_in: str


class Orders(TypedDict, total=False):
    """The accuracies of questions that were asked in several ways."""

    mode: str
    passes: int
    asked: int
    plain: Share
    averaged: Share
    circular: Share
    every_order: Share
    every_wording: Share


class Blind(TypedDict, total=False):
    """The answers without the image, compared with those that saw it."""

    same_answer: float
    accuracy: float
    accuracy_interval: Interval
    gap: Gap


class Metrics(TypedDict, total=False):
    """Everything that is measured of predictions.

    `accuracy_metrics` returns the first seven, `full_metrics` further ones; the last four are added by a task, by an
    evaluation's options or by `score`.
    """

    questions: int
    accuracy: float
    loss: float
    weighted_accuracy: float
    accuracy_by_question_word: dict[str, Share]
    answers: dict[str, int]
    truths: dict[str, int]
    accuracy_interval: Interval
    interval_by_question_word: dict[str, Interval]
    calibration: Calibration
    accuracy_at_coverage: list[CoveragePoint]
    positions: dict[str, Position]
    confusion: dict[str, dict[str, int]]
    baselines: dict[str, Baseline]
    images: int
    accuracy_interval_by_image: ImageInterval
    tta: Orders
    blind: Blind
