"""`beit3-vqa report`: one run or several as a page to look at."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from beit3_vqa.cli.flags import command_with
from beit3_vqa.runtime.fields import Options, option


@dataclass(frozen=True)
class ReportOptions(Options):
    """Which runs to show, and where to write the page."""

    paths: tuple[Path, ...] = option(
        MISSING, "output folder of a run, or a predictions.json", positional=True, metavar="RUN"
    )
    output: Path = option(
        Path("report.html"),
        "the page to write; a report of the same runs is replaced, any other file isn't",
        metavar="FILE",
    )
    split: str | None = option(
        None,
        "split whose predictions are shown; default: test if its answers are known, else val",
        choices=("test", "val"),
    )
    attention: int = option(
        200,
        "for how many questions of each run to show where the model looked, wrong and confident ones first; needs the "
        "checkpoint; 0: none",
        low=0,
        metavar="N",
    )
    image_root: str = option("", "folder of the images, if they have moved", metavar="FOLDER")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    tensorboard: str = option("", "also write the metrics to this folder for TensorBoard", metavar="FOLDER")


def run(options: ReportOptions) -> int:
    """Run the command and return its exit code."""
    from beit3_vqa.apps.report.run import report

    report(**vars(options))
    return 0


add = command_with(ReportOptions, "report", "write curves, metrics and every question as one HTML file", run)
