"""`beit3-vqa report`: one run or several as a page to look at."""

import argparse
from pathlib import Path
from typing import Any

from beit3_vqa.errors import InputError


def add(commands: Any, build: bool) -> None:
    """Adds the command to the parser; its options only if it is to be built."""
    parser = commands.add_parser("report", help="write curves, metrics and every question as one HTML file")
    if not build:
        return
    parser.set_defaults(function=run)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folder of a run, or a predictions.json")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="the page (default: report.html)")
    parser.add_argument("--split", choices=("test", "val"), help="whose predictions (default: test, else val)")
    parser.add_argument(
        "--attention",
        type=int,
        default=200,
        metavar="N",
        help="questions of each run to show where the model looked for, wrong and confident ones first; needs the "
        "checkpoint (default: 200; 0: none)",
    )
    parser.add_argument("--image_root", default="", metavar="FOLDER", help="of the images, if they have moved")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--tensorboard", default="", metavar="FOLDER", help="write the metrics as scalars there, too")


def run(parsed: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from beit3_vqa.apps.report.run import report

    if parsed.attention < 0:
        raise InputError(f"--attention {parsed.attention}: give the number of questions, or 0.")
    report(
        [Path(path) for path in parsed.runs],
        Path(parsed.output),
        split=parsed.split,
        attention=parsed.attention,
        image_root=parsed.image_root,
        device=parsed.device,
        tensorboard=parsed.tensorboard,
    )
    return 0
