"""How long training waits for its data: the share of a step of the real loop that is spent in the loader."""

import contextlib
import csv
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from beit3_vqa.cli.main import main as command_line
from beit3_vqa.config.resolve import GivenOptions, resolve
from beit3_vqa.data.types import Batch
from beit3_vqa.engine.build import build, make_task
from beit3_vqa.engine.loop import StepReport, train_epoch
from beit3_vqa.engine.training import Training, set_up_training
from benchmarks.data import write_photographs
from benchmarks.paired import arguments, report

WARM_UP = 2  # steps: workers start, memory is taken


class Watch:
    """An iterator over batches that adds up the seconds between asking for one and getting it.

    Args:
        batches: batches of an epoch.

    Attributes:
        seconds: waited so far.
    """

    def __init__(self, batches: Iterator[Batch]):
        self.seconds = 0.0
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        while True:
            started = time.perf_counter()
            batch = next(self.batches, None)
            self.seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch


def prepare(folder: Path, questions: int) -> Path:
    """Prepare questions about JPEGs of 640x480, one for each, and return the data folder."""
    (folder / "images").mkdir()
    paths = write_photographs(folder / "images", questions)
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "img_path", "Question", "A", "B", "C", "D", "answer"])
        for n, path in enumerate(paths):
            writer.writerow([n, path.name, f"What is in the picture number {n}?", "cat", "cup", "moon", "man", "A"])
    command = ["prepare", "choices", "--train", str(folder / "train.csv"), "--image_root", str(folder / "images")]
    command += ["--data_path", str(folder / "data"), "--val_ratio", "0", "--train_tokenizer", "300"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert command_line(command) == 0
    return folder / "data"


def set_up(model: str, batch_size: int, data: Path, vocab_size: int = 64010) -> Training:
    """Set up a run of `model` on the data, with fresh weights."""
    options = {"model": model, "data_path": str(data), "batch_size": batch_size, "vocab_size": vocab_size, "epochs": 1}
    config = resolve(GivenOptions(options))
    with contextlib.redirect_stdout(io.StringIO()):
        return set_up_training(build(config, make_task(config)))


def main() -> None:
    """Run `python -m benchmarks.loader`."""
    parser = arguments(__doc__ or "", rounds=10)
    parser.add_argument("--model", default="beit3_base_patch16_224", help="model that is trained")
    parser.add_argument("--batch_size", type=int, default=8, help="examples in a step")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        count = (WARM_UP + options.rounds) * options.batch_size
        run = set_up(options.model, options.batch_size, prepare(Path(folder), count))
        watch = Watch(run.train.epoch(0))
        after: list[tuple[float, float]] = []  # each step: what the clock says, and how long was waited so far

        def after_step(report: StepReport) -> None:
            report.loss.item()  # a GPU's step is over when its loss is there
            after.append((time.perf_counter(), watch.seconds))

        train_epoch(run, watch, run.schedule, after_step)
        seconds, waited = (end - begin for begin, end in zip(after[WARM_UP - 1], after[-1], strict=True))
    row = {
        "model": options.model,
        "batch": options.batch_size,
        "workers": run.train.loader.num_workers,
        "seconds a step": seconds / options.rounds,
        "of these waiting for data, %": 100 * waited / seconds,
    }
    report(f"{options.rounds} training steps on JPEGs of 640x480", [row], options.output)


if __name__ == "__main__":
    main()
