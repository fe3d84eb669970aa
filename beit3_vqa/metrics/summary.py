"""All metrics at once, for the end of an evaluation, as data and as text for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Literal, cast

from beit3_vqa.data.choice_order import split_mode
from beit3_vqa.data.types import Prediction
from beit3_vqa.errors import plural
from beit3_vqa.metrics.accuracy import accuracy_metrics, by_question_word, confusion, positions
from beit3_vqa.metrics.baselines import baselines
from beit3_vqa.metrics.calibration import accuracy_at_coverage, calibration
from beit3_vqa.metrics.intervals import accuracy_interval
from beit3_vqa.metrics.types import BenchmarkScore, Blind, Calibration, Interval, Metrics, Orders, Position, Share, Way


def full_metrics(predictions: Sequence[Prediction], training_answers: Mapping[str, int] | None = None) -> Metrics:
    """Return `accuracy_metrics` and more over the predictions whose truth is known; empty if none is.

    Keys beyond those: `accuracy_interval` and `interval_by_question_word`; `calibration`; `accuracy_at_coverage`;
    `baselines`; for multiple choice `confusion` and `positions`. Each is explained at the function of its name.

    Args:
        predictions: of a split.
        training_answers: see `baselines`.
    """
    known = [p for p in predictions if p.score is not None]
    if not known:
        return {}
    metrics = accuracy_metrics(known)
    metrics["accuracy_interval"] = accuracy_interval(known)
    groups = by_question_word(known)
    metrics["interval_by_question_word"] = {word: accuracy_interval(group) for word, group in groups.items()}
    if calibrated := calibration(known):
        metrics["calibration"], metrics["accuracy_at_coverage"] = calibrated, accuracy_at_coverage(known)
    if matrix := confusion(known):
        metrics["positions"], metrics["confusion"] = positions(known), matrix
    if without_image := baselines(known, training_answers):
        metrics["baselines"] = without_image
    return metrics


def without_looking(metrics: Mapping[str, object]) -> str:
    """Return in words what always answering the likeliest answer would get; empty if the metrics don't say it."""
    baseline = cast(Metrics, metrics).get("baselines", {}).get("most_frequent_answer")
    if not baseline:
        return ""
    return (
        f"without looking, always giving the answer that is right most often in {baseline['counted_in']}: "
        f"{baseline['accuracy']:.2f}"
    )


# Metrics as lines for a terminal.

_BAR = 20  # characters of a full bar
_LISTED = 10  # rows of a part, at most


def metrics_table(metrics: Mapping[str, object]) -> str:
    """Return the results of `full_metrics`, `order_metrics` and `blind_metrics` as lines; text from data is cut."""
    found = cast(Metrics, metrics)
    scored = _scored(found) if "accuracy" in found else ["no answer is known: nothing to score"]
    return "\n".join([*scored, *_orders(found.get("tta")), *_blind(found.get("blind"))])


def _scored(metrics: Metrics) -> list[str]:
    counts: tuple[Literal["questions", "images"], ...] = ("questions", "images")
    lines = [f"{name:<28}{metrics[name]:>9,}" for name in counts if name in metrics]
    lines.append(_accuracy("accuracy", metrics))
    if by_image := metrics.get("accuracy_interval_by_image"):
        images = f"  by {plural(by_image['images'], 'image')}"
        lines.append(f"{images:<39}{interval_text(by_image)}")
    if "weighted_accuracy" in metrics:
        lines.append(f"{'weighted accuracy':<28}{metrics['weighted_accuracy']:>9.2f}")
    if "loss" in metrics:
        lines.append(f"{'loss (temperature 1)':<28}{metrics['loss']:>9.4f}")
    for name, values in metrics.get("baselines", {}).items():
        extra = values.get("answer") or values.get("counted_in", "")
        lines.append(f"{_BASELINES[name] + ', no image':<28}{values['accuracy']:>9.2f}  {_cut(extra)}".rstrip())
    lines += _question_words(metrics)
    lines += _positions(metrics.get("positions", {}))
    lines += _calibration(metrics.get("calibration", {}))
    if "accuracy_at_coverage" in metrics:
        lines += ["", "if only the surest are answered   accuracy   least confidence"]
        lines += [
            f"  {p['coverage']:>3}% ({p['questions']:,})".ljust(32)
            + f"{p['accuracy']:>10.2f}   {p['confidence']:>15.2f}%"
            for p in metrics["accuracy_at_coverage"]
        ]
    return lines


def _orders(tta: Orders | None) -> list[str]:
    if tta is None:
        return []
    of_options, in_wordings = split_mode(tta["mode"])
    ways = ["options in other orders"] * (of_options != "none") + ["questions in other words"] * in_wordings
    lines = [
        "",
        f"{', '.join(ways)} ({tta['mode']}): {plural(tta['asked'], 'question')} asked, "
        f"each up to {plural(tta['passes'], 'time')}",
    ]
    labels = _ORDERS | {"averaged": "averaged over all"} if in_wordings else _ORDERS
    return lines + [_accuracy(f"  {label}", tta[name]) for name, label in labels.items() if name in tta]


def _blind(blind: Blind | None) -> list[str]:
    if blind is None:
        return []
    lines = ["", f"with grey images, {blind['same_answer']:.2f}% are answered the same"]
    if "gap" in blind:
        gain: Share = {"accuracy": blind["gap"]["accuracy"], "accuracy_interval": blind["gap"]}
        lines += [_accuracy("  accuracy without image", blind), _accuracy("  gain from seeing the image", gain)]
    return lines


_ORDERS: dict[Way, str] = {
    "plain": "plain: as in the index",
    "averaged": "averaged over orders",
    "circular": "circular: in all rotations",
    "every_order": "right in every order",
    "every_wording": "right in every wording",
}


_BASELINES = {
    "most_frequent_answer": "likeliest answer",
    "most_frequent_position": "likeliest place",
    "longest_option": "longest option",
}


def interval_text(interval: Interval) -> str:
    """Return an interval as text, such as `70.1 to 75.3 (95%, wilson)`."""
    return f"{interval['low']:.2f} to {interval['high']:.2f} ({interval['level']}%, {interval['method']})"


def _accuracy(name: str, metrics: Share | Blind | Metrics) -> str:
    interval = metrics.get("accuracy_interval")
    return f"{name:<28}{metrics['accuracy']:>9.2f}  {interval_text(interval) if interval else ''}".rstrip()


def _question_words(metrics: Metrics) -> list[str]:
    if "accuracy_by_question_word" not in metrics:
        return []
    lines = ["", "question word      questions   accuracy"]
    intervals = metrics.get("interval_by_question_word", {})
    for word, values in sorted(metrics["accuracy_by_question_word"].items(), key=lambda item: -item[1]["questions"]):
        interval = f"  {interval_text(intervals[word])}" if word in intervals else ""
        lines.append(f"  {word:<16}{values['questions']:>10,}{values['accuracy']:>11.2f}{interval}")
    return lines


def _positions(positions: Mapping[str, Position]) -> list[str]:
    lines = ["", "option       true   answered   recall"] if positions else []
    for letter, values in list(positions.items())[:_LISTED]:
        recall = "-" if values["recall"] is None else f"{values['recall']:.2f}"
        lines.append(f"  {_cut(letter):<6}{values['true']:>9,}{values['answered']:>11,}{recall:>9}")
    return lines


def _calibration(calibration: Calibration) -> list[str]:
    if not calibration:
        return []
    brier = f", Brier {calibration['brier']:.4f}" if "brier" in calibration else ""
    lines = [
        "",
        f"calibration: expected error {calibration['ece']:.2f} ({calibration['bins']} bins){brier}",
        "  confidence         questions   accuracy",
    ]
    for part in calibration["reliability"]:
        bar = "#" * round(_BAR * part["accuracy"] / 100)
        said = f"{part['from']:.0f}-{part['to']:.0f}%"
        lines.append(f"  {said:<16}{part['questions']:>12,}{part['accuracy']:>10.2f}%  {bar}".rstrip())
    return lines


def share_table(name: str, score: BenchmarkScore) -> str:
    """Return a benchmark's own score and its parts, from `visual7w_score` or `vqav2_score`, as lines."""
    split = f", {score['split']}" if "split" in score else ""
    lines = [f"{name}'s own score{split}", _accuracy(f"  all {score['questions']:,}", score)]
    if score.get("answered", score["questions"]) < score["questions"]:
        lines.append(f"  only {score['answered']:,} are answered; the others count as wrong")
    return "\n".join(
        lines + [_accuracy(f"  {_cut(kind)} {part['questions']:,}", part) for kind, part in score["by_type"].items()]
    )


def _cut(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 40 else line[:37] + "..."
