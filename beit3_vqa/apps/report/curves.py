"""Read the curves of a run: log.txt has a line for each validation, TensorBoard's events a point every few steps."""

import math
import sys
from pathlib import Path
from typing import Any, TypedDict, TypeGuard

from beit3_vqa.engine.logging import LOG, VALIDATION, read_log
from beit3_vqa.errors import first_line
from beit3_vqa.runtime.files import require_bounded

MAX_LOG = 100_000_000  # bytes of log.txt
MAX_EVENTS = 1_000_000_000  # bytes of TensorBoard's files, all together
MAX_EPOCHS = 100_000
MAX_POINTS = 800  # points of a curve in the page
# Name in the page -> tag in TensorBoard.
STEP_TAGS = {"loss": "train/loss", "lr": "train/lr", "examples_per_second": "train/examples_per_second"}
EPOCH_KEYS = ("train_loss", "train_lr", "examples_per_second", f"{VALIDATION}loss")

Points = list[tuple[float, float | None]]


class Curves(TypedDict, total=False):
    """Curves of a run, none of the keys if nothing was read.

    Attributes:
        steps: name -> (step, value) points.
        epochs: name -> (epoch, value) points.
        score_name: what `epochs["score"]` is; empty if there is no score.
    """

    steps: dict[str, Points]
    epochs: dict[str, Points]
    score_name: str


def read_curves(folder: Path) -> Curves:
    """Read the curves of a run folder: at most `MAX_POINTS` points each, values that aren't finite as None.

    Raises:
        InputError: if log.txt is a pipe, or far too large.
    """
    log = folder / LOG
    if log.is_file():
        require_bounded(log, MAX_LOG)
    lines = read_log(log, MAX_EPOCHS)
    score = _score(lines)
    wanted = {name: name for name in EPOCH_KEYS} | ({"score": f"{VALIDATION}{score}"} if score else {})
    epochs = {
        name: _thinned([(_place(line), _number(line.get(key))) for line in lines if key in line])
        for name, key in wanted.items()
    }
    return {
        "steps": _steps(folder / "tensorboard"),
        "epochs": {name: points for name, points in epochs.items() if points},
        "score_name": score.replace("_", " "),
    }


def _place(line: dict[str, Any]) -> float:
    """Return where a line is drawn: an epoch's end at its number, a validation inside it before, by its share."""
    share = _number(line.get("share", 1))
    return line["epoch"] if share is None or not 0 < share < 1 else float(line["epoch"] - 1 + share)


def _score(lines: list[dict[str, Any]]) -> str:
    """Return the name of the validation's accuracy, else of its first number that isn't a count or the loss."""
    last = (lines[-1] if lines else {}).items()
    names = [key.removeprefix(VALIDATION) for key, value in last if key.startswith(VALIDATION) and _is_number(value)]
    others = [name for name in names if name not in ("questions", "loss")]
    return "accuracy" if "accuracy" in names else next(iter(others), "")


def _steps(folder: Path) -> dict[str, Points]:
    """Read TensorBoard's scalars of the steps, without those that a resumed run has overtaken."""
    files = [path for path in folder.glob("events.out.tfevents.*") if path.is_file()] if folder.is_dir() else []
    if not files:
        return {}
    if sum(path.stat().st_size for path in files) > MAX_EVENTS:
        print(f"{folder} holds more than {MAX_EVENTS:,} bytes of events; the curves of the steps are left out")
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kept = dict.fromkeys(("images", "audio", "histograms", "compressedHistograms", "tensors", "graph"), 1)
    try:
        events = EventAccumulator(str(folder), size_guidance={**kept, "scalars": 20 * MAX_POINTS}).Reload()
        there = set(events.Tags()["scalars"])
        return {
            name: _thinned([(event.step, _number(event.value)) for event in events.Scalars(tag)])
            for name, tag in STEP_TAGS.items()
            if tag in there
        }
    except Exception as error:  # what a damaged file makes the reader raise
        print(f"{folder} can't be read ({first_line(error)}); the curves of the steps are left out")
        return {}


def _is_number(value: object) -> TypeGuard[float]:
    """Return whether a value of JSON is a number; a bool isn't."""
    return type(value) in (int, float)


def _number(value: object) -> float | None:
    """Return a finite number as a float, else None; an int of JSON may be too large for a float."""
    return float(value) if _is_number(value) and abs(value) <= sys.float_info.max else None


def _thinned(points: Points) -> Points:
    """Thin out a curve to at most `MAX_POINTS`, each the mean of its neighbours, rounded to six digits."""
    size = math.ceil(len(points) / MAX_POINTS) or 1
    found: Points = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        values = [value for _, value in group if value is not None]
        mean = math.fsum(values) / len(values) if values else None
        found.append((group[-1][0], None if mean is None else float(f"{mean:.6g}")))
    return found
