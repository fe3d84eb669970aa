"""The report's metrics as TensorBoard scalars, a folder for each run."""

from collections.abc import Sequence
from pathlib import Path

from beit3_vqa.files import make_folder
from beit3_vqa.metrics import full_metrics
from beit3_vqa.output.report.collect import ReportRun

SUFFIX = ".report"  # of the files of events


def write_scalars(runs: Sequence[ReportRun], folder: Path) -> list[Path]:
    """Writes what TensorBoard draws as curves, or as bars of one step; returns the folders, one for each run.

    `accuracy_at_coverage` over the percent of questions answered, `reliability` over the percent of confidence; at step
    0 `accuracy`, its interval's ends, `calibration_error`, and `accuracy_by_question_word/WORD`. A run without known
    answers has none.

    Raises:
        InputError: the folder can't be made.
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
                for point in metrics["calibration"]["reliability"]:
                    writer.add_scalar("report/reliability", point["accuracy"], round(point["confidence"]))
        written.append(own)
    return written
