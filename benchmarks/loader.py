"""How long a model waits for its data: in steps of the real training loop, and in the real `--eval`, by workers."""

import contextlib
import csv
import io
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from beit3_vqa.cli.main import main as command_line
from beit3_vqa.config.resolve import GivenOptions, resolve
from beit3_vqa.data.types import Batch
from beit3_vqa.engine.build import build, make_task
from beit3_vqa.engine.components import Components
from beit3_vqa.engine.evaluator import evaluate_batches, predict_split
from beit3_vqa.engine.loop import StepReport, train_epoch
from beit3_vqa.engine.training import set_up_training
from benchmarks.data import write_photographs
from benchmarks.paired import Run, arguments, paired, report

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


def prepare(folder: Path, questions: int, of_each: int) -> Path:
    """Prepare questions about JPEGs of 640x480, `of_each` about an image, and return the data folder.

    Questions have 4 to 12 words and options 1 to 6.
    """
    rng = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(
            rng.choices(["cat", "cup", "moon", "man", "table", "window", "red"], k=rng.randint(least, most))
        )

    (folder / "images").mkdir(parents=True)
    paths = write_photographs(folder / "images", -(-questions // of_each))
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "img_path", "Question", "A", "B", "C", "D", "answer"])
        for n in range(questions):
            options = [f"{letter} {words(1, 6)}" for letter in "abcd"]
            writer.writerow([n, paths[n // of_each].name, f"What {words(3, 11)}?", *options, "A"])
    command = ["prepare", "choices", "--train", str(folder / "train.csv"), "--image_root", str(folder / "images")]
    command += ["--data_path", str(folder / "data"), "--val_ratio", "0", "--train_tokenizer", "300"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert command_line(command) == 0
    return folder / "data"


def set_up(options: dict[str, object]) -> Components:
    """Build a run's model, with fresh weights, and what belongs to it."""
    config = resolve(GivenOptions({"epochs": 1, "log_interval": 0, **options}))
    return build(config, make_task(config))


def train(components: Components, steps: int) -> dict[str, object]:
    """Train, and return the row of the table."""
    run = set_up_training(components)
    watch = Watch(run.train.epoch(0))
    after: list[tuple[float, float]] = []  # each step: what the clock says, and how long was waited so far

    def after_step(report: StepReport) -> None:
        report.loss.item()  # a GPU's step is over when its loss is there
        after.append((time.perf_counter(), watch.seconds))

    train_epoch(run, watch, run.schedule, after_step)
    seconds, waited = (end - begin for begin, end in zip(after[WARM_UP - 1], after[-1], strict=True))
    return {"seconds a batch": seconds / steps, "waiting for data, %": 100 * waited / seconds}


def padding(components: Components, batches: Iterable[Batch]) -> float:
    """Return the share of padding in the tokens of the batches, the images' among them, in percent."""
    inputs = [batch.inputs for batch in batches]
    tokens = sum(len(one["question"]) * components.model.tokens(one) for one in inputs)
    return 100 * sum(int(one["padding_mask"].sum()) for one in inputs) / tokens


def evaluate(given: dict[str, object], workers: Sequence[int], batches: int, rounds: int) -> list[dict[str, object]]:
    """Evaluate some batches as `--eval` does, in turns with forward passes alone, and return rows of the table.

    Workers live from turn to turn, as they live through an evaluation of any length.
    """
    by_workers = {number: set_up({**given, "num_workers": number}) for number in workers}
    loaders = {number: components.loader("train") for number, components in by_workers.items()}
    components = next(iter(by_workers.values()))
    model, precision = components.model, components.precision
    model.to(precision.device).requires_grad_(False)
    precision.cast_frozen(model)

    def whole(number: int) -> None:
        predict_split(replace(by_workers[number], model=model), loaders[number], "")

    in_memory = list(next(iter(loaders.values())).epoch(0))
    runs: dict[str, Run] = {"forward": lambda: list(evaluate_batches(components, in_memory, lambda *_: []))}
    seconds = paired(runs | {str(number): partial(whole, number) for number in workers}, rounds)
    forward = statistics.median(seconds["forward"])
    rows: list[dict[str, object]] = []
    for number in workers:
        # Of each turn, since the machine's pace changes in minutes.
        outside = [1 - alone / total for alone, total in zip(seconds["forward"], seconds[str(number)], strict=True)]
        batch, share = statistics.median(seconds[str(number)]) / batches, 100 * statistics.median(outside)
        rows.append(
            {"run": "evaluation", "workers": number, "seconds a batch": batch, "outside the forward pass, %": share}
        )
    loader = next(iter(loaders.values()))
    loader.batches.order = None
    shares = {
        "padding, %": padding(components, in_memory),
        "in the table's order": padding(components, loader.epoch(0)),
    }
    return [{"run": "forward pass", "seconds a batch": forward / batches, **shares}, *rows]


def main() -> None:
    """Run `python -m benchmarks.loader`."""
    parser = arguments(__doc__ or "", rounds=5)
    parser.add_argument("--model", default="beit3_base_patch16_224", help="model that computes")
    parser.add_argument("--batch_size", type=int, default=8, help="examples in a step")
    parser.add_argument("--batches", type=int, default=8, help="batches in a turn of evaluation, and steps of training")
    parser.add_argument("--questions", type=int, default=1, help="questions about each image")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4], help="numbers of worker processes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        data = prepare(Path(folder), options.batches * options.batch_size, options.questions)
        given = {"model": options.model, "data_path": str(data), "batch_size": options.batch_size}
        rows = evaluate(given, options.workers, options.batches, options.rounds)
        data = prepare(Path(folder) / "training", (WARM_UP + options.batches) * options.batch_size, 1)
        for number in options.workers:
            row = train(set_up({**given, "data_path": str(data), "num_workers": number}), options.batches)
            rows.append({"run": "training", "workers": number, **row})
    report(f"{options.model}, batches of {options.batch_size}, JPEGs of 640x480", rows, options.output)


if __name__ == "__main__":
    main()
