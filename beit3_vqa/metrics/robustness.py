"""One model's answers against its own to the same questions, asked otherwise: in other orders, without the image."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from beit3_vqa.data.types import Prediction
from beit3_vqa.metrics.accuracy import percent
from beit3_vqa.metrics.intervals import LEVEL, accuracy_interval, mean_interval
from beit3_vqa.metrics.vote import soft


def averaged(answers: Sequence[Prediction]) -> Prediction:
    """One prediction of several to the same question: the mean of their probabilities, and the likeliest option.

    Args:
        answers: to one multiple-choice question, letters meaning the same options in each; the first is what the
            question is in the index.
    """
    if len(answers) == 1:
        return answers[0]
    first = answers[0]
    answer, shares = soft(answers)
    losses = [a.loss for a in answers if a.loss is not None]
    scores = {first.truth: 1.0} if first.answer_scores is None else first.answer_scores
    return dataclasses.replace(
        first,
        answer=answer,
        probabilities=shares,
        score=None if first.score is None else scores.get(answer, 0.0),
        loss=math.fsum(losses) / len(losses) if losses else None,
    )


def order_metrics(groups: Sequence[Sequence[Prediction]], rotations: Sequence[int], mode: str) -> dict[str, Any]:
    """Accuracies in percent of multiple choice asked in several orders; without truths only what was asked.

    Keys: `mode`; `passes`, the most orders of a question; `asked`, questions times orders; `plain`, as the questions
    stand in the index; `averaged`, over the orders; `circular`, right in every rotation; with mode `all`,
    `every_order`, right in every one; each with `accuracy` and `accuracy_interval`.

    Args:
        groups: for each question its answers in every order, the index's first, the other rotations next.
        rotations: for each question, how many of them are rotations.
        mode: see `data.orders.orders`.
    """
    found: dict[str, Any] = {"mode": mode, "passes": max(map(len, groups)), "asked": sum(map(len, groups))}
    sets = {
        "plain": [group[0] for group in groups],
        "averaged": [averaged(group) for group in groups],
        "circular": [_worst(group[:count]) for group, count in zip(groups, rotations, strict=True)],
    }
    if mode == "all":
        sets["every_order"] = [_worst(group) for group in groups]
    for name, predictions in sets.items():
        known = [p for p in predictions if p.score is not None]
        if known:
            found[name] = {"accuracy": percent(known), "accuracy_interval": accuracy_interval(known)}
    return found


def _worst(answers: Sequence[Prediction]) -> Prediction:
    return min(answers, key=lambda answer: answer.score or 0.0)


def blind_metrics(seeing: Sequence[Prediction], blind: Sequence[Prediction]) -> dict[str, Any]:
    """What the image is worth: the same questions with it and without.

    Keys: `same_answer`, percent answered alike; and where truths are known `accuracy` and `accuracy_interval` without
    the image, and `gap`, how much higher the accuracy is with it: `accuracy`, `low`, `high` (95%, normal, paired).
    """
    same = sum(a.answer == b.answer for a, b in zip(seeing, blind, strict=True))
    found: dict[str, Any] = {"same_answer": 100.0 * same / len(blind)}
    known = [(a.score, b.score) for a, b in zip(seeing, blind, strict=True) if None not in (a.score, b.score)]
    if known:
        differences = [(a or 0.0) - (b or 0.0) for a, b in known]
        low, high = mean_interval(differences, -1.0, 1.0)
        of_blind = [p for p in blind if p.score is not None]
        found |= {"accuracy": percent(of_blind), "accuracy_interval": accuracy_interval(of_blind)}
        found["gap"] = {
            "accuracy": 100.0 * math.fsum(differences) / len(differences),
            "low": 100.0 * low,
            "high": 100.0 * high,
            "level": LEVEL,
            "method": "normal",
        }
    return found
