"""How answers change if questions are asked with options in other orders, in other words, or without the image."""

import dataclasses
import math
from collections.abc import Sequence

from beit3_vqa.data.choice_order import split_mode
from beit3_vqa.data.predictions import plain_score
from beit3_vqa.data.types import Prediction
from beit3_vqa.metrics.accuracy import percent
from beit3_vqa.metrics.intervals import LEVEL, accuracy_interval, mean_interval
from beit3_vqa.metrics.types import Blind, Orders, Way
from beit3_vqa.metrics.vote import soft


def averaged(answers: Sequence[Prediction]) -> Prediction:
    """Return one prediction for several of a question: the mean of the probabilities and the likeliest option.

    Args:
        answers: to one question, letters meaning the same options in each; the first is the one that is asked as the
            index has it.
    """
    if len(answers) == 1:
        return answers[0]
    first = answers[0]
    answer, shares = soft(answers)
    losses = [a.loss for a in answers if a.loss is not None]
    mean = dataclasses.replace(first, answer=answer, probabilities=shares)
    return dataclasses.replace(
        mean,
        score=None if first.score is None else plain_score(mean),
        loss=math.fsum(losses) / len(losses) if losses else None,
    )


def order_metrics(
    groups: Sequence[Sequence[Prediction]], rotations: Sequence[int], mode: str, wordings: Sequence[int] = ()
) -> Orders:
    """Return accuracies in percent of questions asked with options in several orders, or in several wordings.

    Keys: `mode`; `passes`, the largest number of ways in which a question was asked; `asked`, the number of answers in
    all; and if truths are known `plain`, as the index has it; `averaged`, over all ways; `circular`, right in every
    rotation; with mode `all`, `every_order`, right in every order; with all wordings, `every_wording`, right in each,
    options in the order of the index. The last five have `accuracy` and `accuracy_interval`; the three of orders and
    wordings alone are for the first wording and the first order.

    Args:
        groups: for each question its answers in every order, the index's first, the other rotations next; then the
            same for each further wording.
        rotations: for each question, how many of its answers are to rotations in the first wording.
        mode: of `--tta`, see `data.choice_order`.
        wordings: for each question, how many its answers are to; empty: one.
    """
    of_options, in_wordings = split_mode(mode)
    counts = wordings or [1] * len(groups)
    found: Orders = {"mode": mode, "passes": max(map(len, groups)), "asked": sum(map(len, groups))}
    sets: dict[Way, list[Prediction]] = {
        "plain": [group[0] for group in groups],
        "averaged": [averaged(group) for group in groups],
    }
    if of_options != "none":
        sets["circular"] = [_worst(group[:count]) for group, count in zip(groups, rotations, strict=True)]
    orders = [len(group) // count for group, count in zip(groups, counts, strict=True)]
    if of_options == "all":
        sets["every_order"] = [_worst(group[:count]) for group, count in zip(groups, orders, strict=True)]
    if in_wordings:
        sets["every_wording"] = [_worst(group[::count]) for group, count in zip(groups, orders, strict=True)]
    for name, predictions in sets.items():
        known = [p for p in predictions if p.score is not None]
        if known:
            found[name] = {"accuracy": percent(known), "accuracy_interval": accuracy_interval(known)}
    return found


def _worst(answers: Sequence[Prediction]) -> Prediction:
    return min(answers, key=lambda answer: answer.score or 0.0)


def blind_metrics(seeing: Sequence[Prediction], blind: Sequence[Prediction]) -> Blind:
    """Compare the answers to the same questions with the image and without it.

    Keys: `same_answer`, the percent of questions with the same answer; and if truths are known `accuracy` and
    `accuracy_interval` without the image, and `gap`, the gain from seeing it: `accuracy`, `low`, `high` (95%, normal,
    paired).
    """
    same = sum(a.answer == b.answer for a, b in zip(seeing, blind, strict=True))
    found: Blind = {"same_answer": 100.0 * same / len(blind)}
    known = [(a.score, b.score) for a, b in zip(seeing, blind, strict=True) if None not in (a.score, b.score)]
    if known:
        differences = [(a or 0.0) - (b or 0.0) for a, b in known]
        low, high = mean_interval(differences, -1.0, 1.0)
        of_blind = [p for p in blind if p.score is not None]
        found["accuracy"], found["accuracy_interval"] = percent(of_blind), accuracy_interval(of_blind)
        found["gap"] = {
            "accuracy": 100.0 * math.fsum(differences) / len(differences),
            "low": 100.0 * low,
            "high": 100.0 * high,
            "level": LEVEL,
            "method": "normal",
        }
    return found
