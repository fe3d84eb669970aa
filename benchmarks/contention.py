"""What idle threads cost: training alone, twice at once, beside busy loops and with a worker that loads its data.

Each trial is a process of its own, since OpenMP reads its environment once.
"""

import argparse
import contextlib
import io
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beit3_vqa.engine.training import set_up_training
from beit3_vqa.runtime.spinning import VARIABLES
from benchmarks.loader import prepare, set_up
from benchmarks.paired import arguments, report

MODEL, BATCH = "beit3_tiny_patch8_40", 64  # the demo's
IMAGES = 512
WARM_UP = 5  # steps
WATCH = "watch"  # the environment says nothing, and the package watches
# GNU's OpenMP counts turns; 300,000 is what it does by itself.
SETTINGS = [WATCH, "GOMP_SPINCOUNT=300000", "GOMP_SPINCOUNT=10000", "GOMP_SPINCOUNT=1000", "OMP_WAIT_POLICY=PASSIVE"]


def train(data: Path, seconds: float, *, loading: bool) -> float:
    """Train for some seconds and return examples a second.

    Args:
        data: the prepared folder.
        seconds: length of the trial.
        loading: let a worker decode JPEGs meanwhile. Without, the batches of the first epoch come again and again, so
            that a trial measures the model alone.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        given = {"model": MODEL, "batch_size": BATCH, "data_path": str(data), "vocab_size": 300}
        run = set_up_training(set_up(given))
    if not loading:
        loaded = list(run.train.epoch(0))
        run.train.epoch = lambda epoch, first=0: iter(loaded)  # type: ignore[method-assign]
    from beit3_vqa.engine.loop import train_epoch

    schedule = run.schedule
    run.examples = sys.maxsize  # one epoch that never ends, of whole batches
    batches = itertools.chain.from_iterable(map(run.train.epoch, itertools.count()))
    train_epoch(run, itertools.islice(batches, WARM_UP), schedule, lambda report: None)
    print("ready", flush=True)
    sys.stdin.readline()  # those that run at once begin at once
    started, ends = time.perf_counter(), []
    in_time = itertools.takewhile(lambda batch: time.perf_counter() - started < seconds, batches)
    train_epoch(run, in_time, schedule, lambda report: ends.append(time.perf_counter()))
    return len(ends) * BATCH / (ends[-1] - started)


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep `loops` processes busy while the block runs."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def speeds(setting: str, data: Path, seconds: float, preload: str, *, at_once: int = 1, loading: bool = False) -> str:
    """Return examples a second of each of `at_once` trainings under a setting of the environment."""
    environment = {key: text for key, text in os.environ.items() if key not in VARIABLES}
    if setting != WATCH:
        name, value = setting.split("=")
        environment[name] = value
    if preload:
        environment["LD_PRELOAD"] = preload
    command = [sys.executable, "-m", "benchmarks.contention", "--data", str(data), "--seconds", str(seconds)]
    trials = [
        subprocess.Popen(
            [*command, *(["--loading"] if loading else [])],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(at_once)
    ]
    # All have warmed up before the first may begin, so that none measures another's imports.
    for trial in trials:
        assert trial.stdout
        if trial.stdout.readline() != "ready\n":
            raise SystemExit(f"a trial under {setting} ended early")
    for trial in trials:
        assert trial.stdin
        trial.stdin.write("\n")
        trial.stdin.flush()
    return " and ".join(f"{float(trial.communicate()[0]):.0f}" for trial in trials)


def main() -> None:
    """Run `python -m benchmarks.contention`."""
    parser = arguments(__doc__ or "", rounds=1)
    settings_help = f"environment of a trial, or {WATCH}: as the package sets it"
    parser.add_argument("--settings", nargs="+", default=SETTINGS, metavar="NAME=VALUE", help=settings_help)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each trial")
    parser.add_argument("--preload", default="", help="another OpenMP, such as libiomp5.so, in place of torch's")
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--loading", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.data:
        print(train(options.data, options.seconds, loading=options.loading))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder), IMAGES, of_each=1)
        for _, setting in itertools.product(range(options.rounds), options.settings):
            common = (setting, data, options.seconds, options.preload)
            row = {"setting": setting, "alone": speeds(*common), "two at once": speeds(*common, at_once=2)}
            with busy(2):
                row["beside two busy loops"] = speeds(*common)
            rows.append({**row, "with a worker loading": speeds(*common, loading=True)})
    report(f"examples a second, {MODEL}, batches of {BATCH}", rows, options.output)


if __name__ == "__main__":
    main()
