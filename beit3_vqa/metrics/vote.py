"""One answer from several to the same question, of members of an ensemble or of one model asked in several orders.

Ties and absent answers are decided here, and nowhere else."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

from beit3_vqa.data.types import Prediction

Shares = dict[str, float]


def mean_probabilities(answers: Sequence[Prediction], weights: Sequence[float] | None = None) -> Shares:
    """Return the weighted mean of the probabilities, answers in the order in which they first appear.

    An answer that a prediction doesn't hold counts as 0 there: open-ended predictions keep the likeliest five, so that
    the means of such questions sum to less than 1.

    Args:
        answers: M predictions.
        weights: (M,), summing to 1; None: the plain mean.
    """
    named = dict.fromkeys(answer for p in answers for answer in p.probabilities)
    factors, divisor = ([1.0] * len(answers), len(answers)) if weights is None else (weights, 1)
    pairs = list(zip(factors, answers, strict=True))
    # fsum, so that the order of the predictions changes nothing, not even the last digit.
    return {answer: math.fsum(w * p.probabilities.get(answer, 0.0) for w, p in pairs) / divisor for answer in named}


def soft(answers: Sequence[Prediction], weights: Sequence[float] | None = None) -> tuple[str, Shares]:
    """Return the answer of the highest mean probability, the first of equal ones, and all the means."""
    means = mean_probabilities(answers, weights)
    return max(means, key=lambda answer: means[answer]), means


def hard(answers: Sequence[Prediction], weights: Sequence[float] | None = None) -> tuple[str, Shares]:
    """Return the answer of most predictions, and each answer's share of their votes.

    A tie goes to the answer of higher mean probability; if that is equal too, to the answer that comes first in the
    first prediction. `weights` count only for the means: every prediction has one vote.
    """
    votes = Counter(p.answer for p in answers)
    means = mean_probabilities(answers, weights)
    candidates = dict.fromkeys([*means, *votes])
    best = max(candidates, key=lambda answer: (votes[answer], means.get(answer, 0.0)))
    return best, {answer: votes[answer] / len(answers) for answer in candidates}


#: name of the vote -> what returns the answer and the shares; "weighted" is "soft" with weights that aren't equal
VOTES: dict[str, Callable[[Sequence[Prediction], Sequence[float] | None], tuple[str, Shares]]] = {
    "hard": hard,
    "soft": soft,
    "weighted": soft,
}


def equal_weights(members: int) -> list[float]:
    """Return the weight 1 / M for each of M members."""
    return [1.0 / members] * members
