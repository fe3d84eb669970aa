"""The report's metrics as TensorBoard scalars, a folder for each run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beit3_vqa.apps.report.collect import ReportRun
from beit3_vqa.metrics.summary import full_metrics
from beit3_vqa.runtime.files import make_folder

SUFFIX = ".report"  # ending of the files of events
CELL = 32  # side of a square of the confusion matrix, in pixels


def write_scalars(runs: Sequence[ReportRun], folder: Path) -> list[Path]:
    """Write what TensorBoard draws as curves, or as bars of one step; return the folders, one for each run.

    `accuracy_at_coverage` over the percent of questions answered, `reliability` over the percent of confidence; at step
    0 `accuracy`, its interval's ends, `calibration_error`, `accuracy_by_question_word/WORD`, how often each position
    was true and answered, and the `confusion` matrix as an image. A run without known answers has none.

    Raises:
        InputError: if the folder can't be made.
    """
    from torch.utils.tensorboard import SummaryWriter

    written = []
    for run in runs:
        metrics = full_metrics(run.predictions)
        if not metrics:
            continue
        own = folder / run.name.replace("/", "_")
        make_folder(own)
        # A report written again, not one more line in each plot; what a training wrote there stays.
        for old in own.glob(f"events.out.tfevents.*{SUFFIX}"):
            old.unlink()
        with SummaryWriter(str(own), filename_suffix=SUFFIX) as writer:
            writer.add_scalar("report/accuracy", metrics["accuracy"], 0)
            for end in ("low", "high"):
                writer.add_scalar(f"report/accuracy_95_{end}", metrics["accuracy_interval"][end], 0)
            for word, group in metrics["accuracy_by_question_word"].items():
                writer.add_scalar(f"report_accuracy_by_question_word/{word}", group["accuracy"], 0)
            for point in metrics.get("accuracy_at_coverage", ()):
                writer.add_scalar("report/accuracy_at_coverage", point["accuracy"], point["coverage"])
            if "calibration" in metrics:
                writer.add_scalar("report/calibration_error", metrics["calibration"]["ece"], 0)
                for part in metrics["calibration"]["reliability"]:
                    writer.add_scalar("report/reliability", part["accuracy"], round(part["confidence"]))
            for letter, counts in metrics.get("positions", {}).items():
                writer.add_scalar(f"report_positions_true/{letter}", counts["true"], 0)
                writer.add_scalar(f"report_positions_answered/{letter}", counts["answered"], 0)
            if metrics.get("confusion"):
                writer.add_image("report/confusion", confusion_image(metrics["confusion"]), 0)
        written.append(own)
    return written


def confusion_image(matrix: Mapping[str, Mapping[str, int]]) -> NDArray[np.uint8]:
    """Draw a square for each truth (rows) and answer (columns), darker for a larger share of its row: (3, H, W)."""
    counts = np.array([list(row.values()) for row in matrix.values()], float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    blue = np.array([23, 78, 166], float)  # of the page's own matrix
    colours = 255 - shares[..., None] * (255 - blue)
    image: NDArray[np.uint8] = colours.round().astype(np.uint8).transpose(2, 0, 1)
    return image.repeat(CELL, axis=1).repeat(CELL, axis=2)
