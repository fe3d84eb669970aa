"""The votes of an ensemble: one prediction of M. Ties and absent answers are decided here, and nowhere else."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence

from beit3_vqa.output.panel import Question
from beit3_vqa.schema import Prediction

Shares = dict[str, float]


def mean_probabilities(answers: Sequence[Prediction], weights: Sequence[float]) -> Shares:
    """Weighted mean of the members' probabilities, answers in the order in which they first appear.

    An answer that a member's predictions don't hold counts as 0 there: open-ended predictions keep the likeliest five,
    so that the means of such questions sum to less than 1.

    Args:
        answers: of the M members.
        weights: (M,), summing to 1.
    """
    named = dict.fromkeys(answer for p in answers for answer in p.probabilities)
    pairs = list(zip(weights, answers, strict=True))
    # fsum, so that the order of the members changes nothing, not even the last digit.
    return {answer: math.fsum(w * p.probabilities.get(answer, 0.0) for w, p in pairs) for answer in named}


def hard(answers: Sequence[Prediction], weights: Sequence[float]) -> tuple[str, Shares]:
    """The answer of most members, and each answer's share of their votes.

    A tie goes to the answer of higher mean probability; one of those too to the answer that comes first in the first
    member's predictions. `weights` are the equal ones: every member has one vote.
    """
    votes = Counter(p.answer for p in answers)
    means = mean_probabilities(answers, weights)
    candidates = dict.fromkeys([*means, *votes])
    best = max(candidates, key=lambda answer: (votes[answer], means.get(answer, 0.0)))
    return best, {answer: votes[answer] / len(answers) for answer in candidates}


def soft(answers: Sequence[Prediction], weights: Sequence[float]) -> tuple[str, Shares]:
    """The answer of the highest mean probability, the first of equal ones, and all the means."""
    means = mean_probabilities(answers, weights)
    return max(means, key=lambda answer: means[answer]), means


#: how the members decide -> the answer and the shares, by their predictions and weights; weighted is soft with others
VOTES: dict[str, Callable[[Sequence[Prediction], Sequence[float]], tuple[str, Shares]]] = {
    "hard": hard,
    "soft": soft,
    "weighted": soft,
}


def equal_weights(members: int) -> list[float]:
    """1 / M for each."""
    return [1.0 / members] * members


def decide(question: Question, vote: str, weights: Sequence[float]) -> Prediction:
    """The ensemble's prediction for a question.

    Args:
        question: as the M members answered it.
        vote: a name of `VOTES`.
        weights: (M,), summing to 1; equal ones for all but the weighted vote.
    """
    answer, shares = VOTES[vote](question.answers, weights)
    first, known = question.answers[0], next((p for p in question.answers if p.choices), None)
    if known is None:  # open-ended: most likely first
        shares = dict(sorted(shares.items(), key=lambda item: -item[1]))
    return dataclasses.replace(
        first,
        question=question.text,
        answer=answer,
        probabilities={name: min(1.0, share) for name, share in shares.items()},
        truth=next((p.truth for p in question.answers if p.truth is not None), None),
        score=None if question.label is None else question.score(answer),
        weight=next((p.weight for p in question.answers if p.weight is not None), None),
        problem=next((p.problem for p in question.answers if p.problem), None),
        loss=None,
        choices=known.choices if known else (),
        image=question.image,
        answer_scores=next((p.answer_scores for p in question.answers if p.answer_scores is not None), None),
    )


def absent_answers(questions: Sequence[Question]) -> int:
    """Of how many questions some member's predictions lack an answer that another's hold."""
    return sum(len({frozenset(p.probabilities) for p in question.answers}) > 1 for question in questions)
