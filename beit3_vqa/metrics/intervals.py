"""95% intervals: how far a measured accuracy may lie from the true one."""

import math
from collections.abc import Sequence

from beit3_vqa.data.types import Prediction
from beit3_vqa.metrics.types import ImageInterval, Interval

LEVEL = 95
Z = 1.959963984540054  # the normal distribution's 97.5% point


def wilson_interval(right: float, questions: float) -> tuple[float, float]:
    """Return Wilson's score interval of a share as (low, high) in [0, 1]; (0, 1) if there are no questions.

    Unlike the normal interval it holds 95% for small samples and for shares near 0 and 1 too.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    if not questions:
        return 0.0, 1.0
    share, z2 = right / questions, Z * Z
    centre = (share + z2 / (2 * questions)) / (1 + z2 / questions)
    half = Z / (1 + z2 / questions) * math.sqrt(share * (1 - share) / questions + z2 / (4 * questions**2))
    # Rounding could leave the share itself outside, at 0 and at 1.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def mean_interval(values: Sequence[float], low: float = 0.0, high: float = 1.0) -> tuple[float, float]:
    """Return the normal interval of a mean, from the sample's standard error, within [low, high].

    It is for scores other than 0 and 1, and for the difference of two models on the same questions. Fewer than two
    values give (low, high). Equal values have no standard error and get `unvarying_interval`.
    """
    count = len(values)
    if count < 2:
        return low, high
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    if not variance:
        return unvarying_interval(mean, count, low, high)
    half = Z * math.sqrt(variance / count)
    return max(low, mean - half), min(high, mean + half)


def unvarying_interval(value: float, count: int, low: float, high: float) -> tuple[float, float]:
    """Return the 95% interval of a mean within [low, high] after `count` values that were all the same.

    Two questions that both gained a point don't prove that every question does: other values may be as frequent as
    1 - 0.025^(1/count) without one of them having been drawn (the bound of Clopper and Pearson), and lie anywhere.
    """
    unseen = 1 - 0.025 ** (1 / count)
    return value - unseen * (value - low), value + unseen * (high - value)


def clustered_interval(predictions: Sequence[Prediction]) -> ImageInterval:
    """Return the 95% interval of the accuracy in percent if questions about one image are right or wrong together.

    It is Wilson's for fewer questions: as many as would, each about an image of its own, leave the accuracy as
    uncertain as whole images do (Kish 1965, Survey sampling, the design effect). If all scores are the same, the images
    are counted. With a question for each image it equals Wilson's.

    Keys: those of `accuracy_interval`; `images`, and `effective_questions`, the smaller number.

    Args:
        predictions: with scores of 0 and 1; those without an image are images of their own.
    """
    known = [p for p in predictions if p.score is not None]
    share = math.fsum(p.score or 0.0 for p in known) / max(1, len(known))
    residuals: dict[str, list[float]] = {}
    for number, p in enumerate(known):
        residuals.setdefault(p.image or f"\0{number}", []).append((p.score or 0.0) - share)
    images, effective = len(residuals), float(len(residuals))
    if 0 < share < 1 and images > 1:
        alone = share * (1 - share) / (len(known) - 1)
        together = images / (images - 1) * math.fsum(math.fsum(r) ** 2 for r in residuals.values()) / len(known) ** 2
        # Luck may make images look more alike than questions; that is no reason for a smaller interval.
        effective = len(known) / max(1.0, together / alone)
    elif 0 < share < 1:
        effective = 1.0
    low, high = wilson_interval(share * effective, effective)
    return {
        "low": 100.0 * low,
        "high": 100.0 * high,
        "level": LEVEL,
        "method": "wilson, by image",
        "images": images,
        "effective_questions": effective,
    }


def accuracy_interval(predictions: Sequence[Prediction]) -> Interval:
    """Return the 95% interval of the accuracy in percent, Wilson's if all scores are 0 or 1, else the normal one.

    Keys: `low`, `high`, `level`, and `method`, which says which one it is.
    """
    scores = [p.score for p in predictions if p.score is not None]
    if all(score in (0.0, 1.0) for score in scores):
        (low, high), method = wilson_interval(sum(scores), len(scores)), "wilson"
    else:
        (low, high), method = mean_interval(scores), "normal"
    return {"low": 100.0 * low, "high": 100.0 * high, "level": LEVEL, "method": method}
