"""The data of the page: plain values for JSON, in columns, which take less room than rows."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from beit3_vqa.apps.report.collect import ReportRun
from beit3_vqa.apps.report.curves import Curves
from beit3_vqa.data.images import resolve_image_path
from beit3_vqa.data.question_words import question_word
from beit3_vqa.data.rows import LETTERS
from beit3_vqa.data.types import AttentionMap, Prediction
from beit3_vqa.errors import InputError, visible
from beit3_vqa.metrics.intervals import wilson_interval
from beit3_vqa.metrics.summary import full_metrics
from beit3_vqa.metrics.types import CoveragePoint, Metrics, ReliabilityBin

IMAGES_IN_BLOCK = 256
_PROBABILITY_DIGITS = 4


def page_data(runs: Sequence[ReportRun], image_root: str = "") -> tuple[dict[str, object], list[Path | None]]:
    """Collect the page's data without its pictures, and the files of the pictures.

    Args:
        runs: runs to show.
        image_root: folder of the images, if it isn't the one that the predictions name.

    Returns:
        plain data (`runs`, `questions`, `images`), and for each image its file, None if it isn't known.
    """
    first: dict[str, tuple[Prediction, ReportRun]] = {}
    for run in runs:
        for p in run.predictions:
            first.setdefault(p.id, (p, run))
    images: dict[str, Path | None] = {}
    for p, run in first.values():
        if p.image and images.get(p.image) is None:
            images[p.image] = image_file(p, image_root or (run.info.image_root if run.info else ""))
    place_of = {name: place for place, name in enumerate(images)}
    asked = [p for p, _ in first.values()]
    rows = {p.id: row for row, p in enumerate(asked)}
    questions = {
        "id": [visible(p.id) for p in asked],
        "question": [visible(p.question) for p in asked],
        "choices": [[visible(text) for text in p.choices] or None for p in asked],
        "truth": [p.truth if p.truth is None else visible(p.truth) for p in asked],
        "image": [place_of.get(p.image) for p in asked],
        "word": [question_word(p.question) for p in asked],
    }
    data: dict[str, object] = {
        "runs": [_run(run, rows) for run in runs],
        "questions": questions,
        "images": {"names": list(images), "in_block": IMAGES_IN_BLOCK if images else 0},
    }
    return data, list(images.values())


def image_file(prediction: Prediction, image_root: str) -> Path | None:
    """Return the file of a prediction's image; None if it isn't known, or would lie outside the folder."""
    if not prediction.image or not image_root:
        return None
    try:
        return resolve_image_path(image_root, prediction.image)
    except InputError:
        return None


def blocks(pictures: Sequence[str]) -> list[list[str]]:
    """Split the pictures into lists of `IMAGES_IN_BLOCK`; the page reads a list when it shows one of its pictures."""
    return [list(pictures[start : start + IMAGES_IN_BLOCK]) for start in range(0, len(pictures), IMAGES_IN_BLOCK)]


def _run(run: ReportRun, rows: dict[str, int]) -> dict[str, object]:
    """Collect the data of one run; `rows` gives each id its row in the columns."""
    info = run.info
    metrics = full_metrics(run.predictions)
    likeliest = _likeliest(metrics, run.evaluated) if metrics else {}
    return {
        "name": visible(run.name),
        "facts": _facts(run, metrics, likeliest),
        "chance": info.chance if info else None,
        "measures": info.best_metric if info else "",
        "curves": run.curves or Curves(steps={}, epochs={}, score_name=""),
        "metrics": _with_intervals(metrics, likeliest) if metrics else None,
        "answers": _answers(run.predictions, rows) if run.predictions else None,
        "label_errors": {rows[name]: rank for rank, name in enumerate(run.label_errors, start=1)} or None,
        "attention": {rows[name]: _map(found) for name, found in run.attention.items()} or None,
    }


def _with_intervals(metrics: Metrics, likeliest: Mapping[str, object]) -> dict[str, object]:
    """Return the metrics with intervals for the points of the reliability diagram and of the coverage."""
    found: dict[str, object] = {**metrics, "likeliest": likeliest}
    if "calibration" in metrics:
        parts = [_with_interval(part) for part in metrics["calibration"]["reliability"]]
        found["calibration"] = {**metrics["calibration"], "reliability": parts}
        found["accuracy_at_coverage"] = [_with_interval(point) for point in metrics["accuracy_at_coverage"]]
    return found


def _with_interval(point: ReliabilityBin | CoveragePoint) -> dict[str, object]:
    low, high = wilson_interval(point["questions"] * point["accuracy"] / 100, point["questions"])
    return {**point, "low": round(100 * low, 2), "high": round(100 * high, 2)}


def _likeliest(metrics: Metrics, evaluated: Mapping[str, object]) -> dict[str, object]:
    """Return what always choosing the likeliest answer gets, without the image, and how that was counted.

    The evaluation has counted it in the training answers, which aren't here. Its number is taken if it speaks of the
    same predictions; else answers are counted in the questions themselves.
    """
    found: Mapping[str, object] = metrics.get("baselines", {}).get("most_frequent_answer", {})
    baselines = evaluated.get("baselines")
    told = baselines.get("most_frequent_answer") if isinstance(baselines, dict) else None
    same = all(evaluated.get(name) == metrics[name] for name in ("questions", "accuracy"))
    if same and isinstance(told, dict) and type(told.get("accuracy")) is float and 0 <= told["accuracy"] <= 100:
        found = told
    texts = {name: visible(text) for name in ("answer", "counted_in") if isinstance(text := found.get(name), str)}
    return {"accuracy": found["accuracy"], **texts} if found else {}


def _facts(run: ReportRun, metrics: Metrics, likeliest: Mapping[str, object]) -> list[tuple[str, str]]:
    """List what is said of a run beside its score, as (name, text)."""
    info, config = run.info, run.config
    model = info.model if info else _text(config, "model", "model")
    epochs = run.curves.get("epochs", {}).get("score", [])
    scored = [(epoch, score) for epoch, score in epochs if score is not None]
    best = max(scored, key=lambda point: point[1], default=None)
    facts = [
        ("Model", model),
        ("Parameters", f"{info.parameters:,}" if info else ""),
        ("Task", info.task if info else _text(config, "run", "task")),
        ("Split", info.split if info else ""),
        ("Why this one", f"the answers of {run.other_split} aren't known" if run.preferred else ""),
        ("Other split", f"{run.other_split}: --split {run.other_split} shows it" if run.other_split else ""),
        ("Questions", f"{len(run.predictions):,}" if run.predictions else ""),
        ("Weighted", f"{metrics['weighted_accuracy']:.1f}%" if "weighted_accuracy" in metrics else ""),
        ("Guessing", f"{info.chance:.1f}%" if info and info.chance is not None else ""),
        ("Likeliest", f"{likeliest['accuracy']:.1f}%, if always chosen" if likeliest else ""),
        ("Likely label errors", f"{len(run.label_errors):,}" if run.label_errors else ""),
        ("Best epoch", f"{best[0]}, validation {best[1]:.2f}" if best else ""),
        ("Checkpoint", info.checkpoint if info else ""),
        ("Read from", str(run.path)),
    ]
    return [(name, visible(text)) for name, text in facts if text]


def _text(config: Mapping[str, object], group: str, name: str) -> str:
    """Return a value of config.json if it is text, else an empty text: nobody has checked that file."""
    values = config.get(group)
    value = values.get(name) if isinstance(values, dict) else None
    return value if isinstance(value, str) else ""


def _answers(predictions: Sequence[Prediction], rows: dict[str, int]) -> dict[str, list[object]]:
    """Make columns over all questions of the report, None in rows that this run doesn't answer."""
    columns: dict[str, list[object]] = {
        name: [None] * len(rows) for name in ("answer", "score", "probabilities", "problem")
    }
    for p in predictions:
        row = rows[p.id]
        columns["answer"][row] = visible(p.answer)
        columns["score"][row] = p.score
        columns["probabilities"][row] = _probabilities(p)
        columns["problem"][row] = p.problem and visible(p.problem)
    if not any(columns["problem"]):
        del columns["problem"]
    return columns


def _probabilities(p: Prediction) -> list[object]:
    """Return the probabilities of the options in their order, or [answer, probability] pairs if others are known."""
    rounded = {visible(name): round(value, _PROBABILITY_DIGITS) for name, value in p.probabilities.items()}
    if p.choices and list(rounded) == list(LETTERS[: len(p.choices)]):
        return list(rounded.values())
    return [list(pair) for pair in rounded.items()]


def _map(found: AttentionMap) -> dict[str, object]:
    """Turn an attention map into plain values, its patches into base64 of bytes, 255 for the brightest."""
    most = float(found.patches.max())
    scaled = (found.patches * (255 / most if most else 0)).round().byte()
    return {
        "rows": found.patches.size(0),
        "columns": found.patches.size(1),
        "region": [round(side, 4) for side in found.region],
        "patches": base64.b64encode(scaled.contiguous().numpy().tobytes()).decode("ascii"),
        "most": round(most, 5),
        "image": round(float(found.patches.sum()), 4),
        "words": round(sum(share for _, share in found.texts[0]), 4) if found.texts else 0,
        "tower": len(found.texts) > 1,
        "texts": [[[visible(token), round(share, 5)] for token, share in text] for text in found.texts],
    }
