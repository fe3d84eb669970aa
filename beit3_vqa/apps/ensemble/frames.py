"""Average the answers of several models in DataFrames, as `beit3-vqa ensemble` does in files."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from beit3_vqa.apps.ensemble.compare import vote_all
from beit3_vqa.apps.ensemble.vote import align_predictions
from beit3_vqa.data.answers import answer_key
from beit3_vqa.data.types import Prediction
from beit3_vqa.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_OPTION = re.compile(r"p_([A-Z])")


def average_frames(frames: "Sequence[pd.DataFrame]") -> "pd.DataFrame":
    """Return the answers of the highest mean probability, as `ensemble --vote soft` gives them.

    Args:
        frames: what `Predictor.predict_frame` of each model returned for the same questions in the same order.

    Returns:
        A copy of the first with the columns `answer` and `probability`, and for options `p_A`, `p_B`, ..., replaced;
        the next likeliest open-ended answers, which are one model's, are left out.

    Raises:
        InputError: there are none, they have different rows, or a model answers with options and another without.
    """
    if not frames:
        raise InputError("average_frames: give the DataFrame of one model at least.")
    if any(not frame.index.equals(frames[0].index) for frame in frames):
        raise InputError("average_frames: the DataFrames have different rows; give each model the same questions.")
    if len(frames) == 1 or not len(frames[0]):
        return frames[0].copy()
    names = [f"DataFrame {number}" for number in range(1, len(frames) + 1)]
    questions = align_predictions(names, [_predictions(frame) for frame in frames], answer_key)
    means = vote_all(questions, "soft")
    of_one_model = [name for name in frames[0].columns if re.fullmatch(r"(answer|probability)_\d", str(name))]
    averaged = frames[0].drop(columns=of_one_model)
    averaged["answer"] = [p.answer for p in means]
    averaged["probability"] = [p.probabilities[p.answer] for p in means]
    for name in filter(_OPTION.fullmatch, map(str, averaged.columns)):
        averaged[name] = [p.probabilities.get(name[2:], float("nan")) for p in means]
    return averaged


def _predictions(frame: "pd.DataFrame") -> list[Prediction]:
    """Return the answers in a frame's rows with their probabilities; its row is a prediction's id."""
    rows: list[dict[str, Any]] = frame.to_dict("records")
    options = [name for name in map(str, frame.columns) if _OPTION.fullmatch(name)]
    found = []
    for number, row in enumerate(rows):
        if options:
            shares = {name[2:]: row[name] for name in options if row[name] == row[name]}
        else:
            ranks = ("", *(f"_{rank}" for rank in range(2, 10) if f"answer_{rank}" in row))
            shares = {row[f"answer{rank}"]: row[f"probability{rank}"] for rank in ranks}
        found.append(Prediction(str(number), "", row["answer"], shares))
    return found
