"""Predictions and answers are of the same questions, or the evaluation says which aren't."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from beit3_vqa.errors import InputError, short
from beit3_vqa.files import look_alikes
from beit3_vqa.schema import Prediction


def require_same_ids(
    predictions: Sequence[Prediction], known: Iterable[str], where: Path, doubled: Sequence[str] = ()
) -> None:
    """InputError unless every question is predicted and every prediction is of a question; lists what is wrong.

    Args:
        predictions: their ids differ.
        known: ids of the answers, in order.
        where: the file of the answers.
        doubled: ids that are in it more than once.
    """
    wanted = dict.fromkeys(known)
    given = {p.id for p in predictions}
    missing = [name for name in wanted if name not in given]
    extra = [p.id for p in predictions if p.id not in wanted]
    alike = look_alikes(missing, extra)
    parts = (("doubled in it", doubled), ("not predicted", missing), ("predicted, but not in it", extra))
    if any(ids for _, ids in parts):
        counts = ", ".join(f"{len(ids):,} {what}" for what, ids in parts if ids)
        # Some of each kind, however many there are of the first.
        listed = [
            f"{what}: {', '.join(map(short, ids[:6]))}{', ...' if len(ids) > 6 else ''}" for what, ids in parts if ids
        ]
        listed += [f"look alike, but are other characters: {'; '.join(alike[:6])}"] if alike else []
        raise InputError.of_problems(
            f"{where} and the predictions aren't of the same questions ({counts}):",
            listed,
            "Ids must match character for character. Is it the file of another split?",
        )
