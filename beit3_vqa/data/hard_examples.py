"""Find the training rows that an earlier model got wrong, in the predictions that `--eval --split train` wrote."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from beit3_vqa.data.dataset import IndexDataset
from beit3_vqa.data.mixture import Group
from beit3_vqa.data.predictions import difference, read_info, read_predictions
from beit3_vqa.data.types import Prediction
from beit3_vqa.errors import InputError, one_line

logger = logging.getLogger(__name__)

RIGHT = 0.5  # score from which an answer counts as right; only VQAv2 has scores between 0 and 1
_ADVICE = "`--eval --split train` of the earlier model, on the same --data_path, writes such a file."


def split_by_score(
    path: Path, groups: Sequence[Group], parts: Sequence[IndexDataset], ratio: float
) -> tuple[Group, ...]:
    """Divide each group that a file of predictions is about into wrong, right and other rows; return all groups.

    An epoch has as many rows of a source as before. Rows that the file doesn't have, or without a score there, come as
    often as before; the others in the asked proportion.

    Args:
        path: predictions.json of an earlier model.
        groups: the rows of each source.
        parts: the same rows as data sets.
        ratio: how many wrong rows come for each right one.

    Raises:
        InputError: the file can't be read or has none of the rows, has one with another question, options, image or
            answer, or all of a source are right, or all wrong.
    """
    predictions = {p.id: p for p in read_predictions(path, read_info(path))}
    found: list[Group] = []
    matched = False
    for group, part in zip(groups, parts, strict=True):
        is_right, problems = _compare(part, predictions)
        if not is_right:  # of several sources the file may be about one; ids of another may be the same
            found.append(group)
            continue
        matched = True
        if problems:
            raise InputError.of_problems(f"--hard_examples {path}: doesn't fit the training rows:", problems, _ADVICE)
        right = torch.zeros(len(part), dtype=torch.bool)
        right[[place for place, value in is_right.items() if value]] = True
        wrong = torch.zeros_like(right)
        wrong[[place for place, value in is_right.items() if not value]] = True
        if not (right.any() and wrong.any()):
            which = "right" if right.any() else "wrong"
            raise InputError(
                f"--hard_examples {path}: all {len(is_right):,} rows are {which}, so there is nothing to balance. "
                "Leave the option out, or take the predictions of another model."
            )
        divided = _divide(group, wrong, right, ratio)
        rest = len(part) - len(is_right)
        others = f", {rest:,} others come as without it" if rest else ""
        logger.info(
            f"--hard_examples {path}: {int(wrong.sum()):,} wrong and {int(right.sum()):,} right rows of {group.name}; "
            f"an epoch has {divided[0].draws:,} and {divided[1].draws:,} of them{others}"
        )
        found += divided
    if not matched:
        raise InputError(
            f"--hard_examples {path}: has none of the training rows with an answer that is known. {_ADVICE}"
        )
    return tuple(group for group in found if group.draws)


def _compare(part: IndexDataset, predictions: Mapping[str, Prediction]) -> tuple[dict[int, bool], list[str]]:
    """Return whether the answer to each row was right, by its place; and what is wrong with other rows in the file."""
    is_right, problems = {}, []
    for place in range(len(part)):
        example = part.example(place)
        prediction = predictions.get(example.id)
        if prediction is None or prediction.score is None:
            continue
        differs = difference(example, prediction) or ("answer" if example.answer != prediction.truth else "")
        if differs:
            problems.append(f"row {one_line(example.id)} has another {differs} there")
        else:
            is_right[place] = prediction.score >= RIGHT
    return is_right, problems


def _divide(group: Group, wrong: Tensor, right: Tensor, ratio: float) -> tuple[Group, Group, Group]:
    """Return the wrong, the right and the other rows of a group, whose draws are those of the group together."""
    others = ~(wrong | right)
    of_others = round(group.draws * int(others.sum()) / len(others))
    known = group.draws - of_others
    of_wrong = round(known * (ratio / (1 + ratio)))
    of_wrong = min(known, max(1, min(of_wrong, known - 1)))  # some of each, if there is room for both
    return (
        Group(group.name, group.rows[wrong], of_wrong),
        Group(group.name, group.rows[right], known - of_wrong),
        Group(group.name, group.rows[others], of_others),
    )
