"""Cross validation: a training for each fold of a prepared folder, mean and deviation of their metric, and their use.

If a task has an answer for each row, `fold_models` says what the folds' models are then used for.
"""

import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TypedDict

from beit3_vqa.apps.fold_models import PREDICTIONS, use_fold_models
from beit3_vqa.config.config import RunConfig
from beit3_vqa.config.resolve import GivenOptions, resolve
from beit3_vqa.engine.api import train
from beit3_vqa.engine.build import make_task
from beit3_vqa.engine.checkpoint.folder import BEST, epoch_file
from beit3_vqa.engine.logging import LOG, VALIDATION, read_log
from beit3_vqa.engine.run_lock import run_lock
from beit3_vqa.errors import InputError, plural
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.distributed import processes
from beit3_vqa.runtime.files import write_text
from beit3_vqa.runtime.host import typed_command
from beit3_vqa.runtime.precision import pick_device
from beit3_vqa.tasks import find_task
from beit3_vqa.tasks.base import Task

RESULTS = "cross_validation.json"


def cross_validate(given: GivenOptions) -> Mapping[str, object]:
    """Train once for each fold, in `--output_dir/fold-K`, and go on where an earlier call stopped.

    Args:
        given: options of every one of the runs.

    Returns:
        the content of cross_validation.json: `metric`, `folds` (for each fold the metric after every epoch), `epochs`
        (mean and deviation over folds after every epoch) and `best` (mean and deviation of each fold's own best
        epoch), and what `use_fold_models` returns. Empty if folds are still to be trained, as after
        `--stop_after_epochs`, or with `--dry_run`.

    Raises:
        InputError: if an option belongs to one run, the data has no folds, or a run raises it.
        TrainingDiverged: if one of the runs diverges.
    """
    of_one_run = {"fold": given["fold"] is not None, "resume": bool(given["resume"]), "eval": given["eval"]}
    for name in [name for name, is_set in of_one_run.items() if is_set]:
        raise InputError(f"--{name}: belongs to one run; cross_validate trains every fold, each in its own folder.")
    if not given["output_dir"]:
        raise InputError("--output_dir: say where checkpoints and results go; each fold gets a folder in it.")
    lock = nullcontext() if given["dry_run"] else run_lock(given["output_dir"])
    # Around all folds: processes that have parted don't find each other again.
    with processes(pick_device(given["device"]), given["dist_timeout"]), lock:
        return _cross_validate(given)


def _cross_validate(given: GivenOptions) -> Mapping[str, object]:
    """Do the same, as the only process that works in `--output_dir`."""
    config = resolve(given, find_task(given["task"]).spec.defaults)  # what all of the runs have in common
    task = make_task(config)
    folds = task.folder.folds()
    if not folds:
        raise InputError(f"--data_path {config.sources.folder}: has no folds; prepare the data with --folds K.")
    histories, unfinished = [], []
    for fold in folds:
        print(f"\n=== fold {fold} of {len(folds)}", flush=True)
        values, over = _run_fold(given, config, fold, task.spec.best_metric)
        histories.append(values)
        unfinished += [] if over else [fold]
        if config.run.dry_run:
            print("the other folds take about as long")
            return {}
    if unfinished:
        print(f"not all epochs are done in folds {', '.join(map(str, unfinished))}; the same command goes on with them")
        return {}
    summary = summarise(dict(zip(folds, histories, strict=True)), task.spec.best_metric)
    folder = Path(config.run.output_dir)
    print(f"\n{table(summary)}")
    _write(folder, summary)
    if not config.run.save_ckpt:
        return summary
    content: Mapping[str, object] = summary
    if task.spec.per_example:
        content = {**summary, **use_fold_models(given, task, folds)}
        _write(folder, content)
    print(f"trained. Next: {_next_command(config, task, folds)}")
    return content


def _write(folder: Path, summary: Mapping[str, object]) -> None:
    text = json.dumps(summary, indent=2) + "\n"
    print(f"wrote {distributed.run_on_main(lambda: write_text(folder / RESULTS, text))}")


def _next_command(config: RunConfig, task: Task, folds: Sequence[int]) -> str:
    """Return the command that shows the answers of the folds' models, or if there are none, evaluates one of them."""
    folder = Path(config.run.output_dir)
    if task.spec.per_example:
        report = ["--output", str(folder / "report.html")]
        return f"{typed_command('report')} {shlex.join([str(folder / PREDICTIONS), *report])}"
    run = str(folder / f"fold-{folds[0]}")
    data = ["--data_path", config.sources.folder]
    data += ["--answer2label", config.data.answer2label] if config.data.answer2label else []
    words = ["--eval", "--task", config.run.task, "--resume", f"{run}/{BEST}", *data, "--output_dir", run]
    words += [] if "test" in task.folder.splits() else ["--split", "val"]
    return f"{typed_command('finetune')} {shlex.join(words)}"


def _run_fold(given: GivenOptions, config: RunConfig, fold: int, metric: str) -> tuple[list[float], bool]:
    """Train what is left of a fold; return its metric after every epoch, and whether that was the last one.

    With `--dry_run` there are no metrics.
    """
    folder = Path(config.run.output_dir) / f"fold-{fold}"
    values: dict[str, object] = {"fold": fold, "output_dir": str(folder)}
    if config.run.log_dir:
        values["log_dir"] = str(Path(config.run.log_dir) / folder.name)
    epochs = config.optim.epochs
    say_epochs = "the epoch is" if epochs == 1 else f"all {plural(epochs, 'epoch')} are"
    done = epoch_file(folder, config.optim.epochs - 1).is_file()
    if done and config.run.auto_resume and not config.run.dry_run:
        print(f"{folder}: {say_epochs} done")
    # Called for a fold that is done too: it checks that the checkpoints there are of a run with the same options.
    state = train(given.also(**values), say_next=False)
    if config.run.dry_run:
        return [], False
    lines = read_log(folder / LOG)
    # Without the validations inside epochs, but for the last one if training ended with it.
    ends = [line for line in lines if "share" not in line or line is lines[-1]]
    return [line[f"{VALIDATION}{metric}"] for line in ends], bool(state.over)


class Moments(TypedDict):
    """Mean and sample standard deviation."""

    mean: float
    deviation: float


class Summary(TypedDict):
    """The metric of each fold after every epoch, and its moments over the folds."""

    metric: str
    folds: dict[str, list[float]]
    epochs: list[Moments]
    best: Moments


def summarise(histories: dict[int, Sequence[float]], metric: str) -> Summary:
    """Compute mean and sample standard deviation over folds, after each epoch and at each fold's best.

    Args:
        histories: fold -> its metric after each epoch. With `--patience` some folds may have fewer; the means go as
            far as all of them do.
        metric: name of the metric.

    Raises:
        InputError: a fold was never validated.
    """
    without = [str(fold) for fold, values in histories.items() if not values]
    if without:
        raise InputError(f"no epoch of fold {', '.join(without)} was validated: give more --max_hours or --epochs.")
    by_epoch = [_moments(values) for values in zip(*histories.values(), strict=False)]
    return {
        "metric": metric,
        "folds": {str(fold): list(values) for fold, values in histories.items()},
        "epochs": by_epoch,
        "best": _moments([max(values) for values in histories.values()]),
    }


def _moments(values: Sequence[float]) -> Moments:
    return {"mean": statistics.fmean(values), "deviation": statistics.stdev(values) if len(values) > 1 else 0.0}


def table(summary: Summary) -> str:
    """Write out a summary: a line for each fold and for each epoch."""
    lines = [
        f"{summary['metric']} of {plural(len(summary['folds']), 'fold')}, mean and standard deviation between folds"
    ]
    for fold, values in summary["folds"].items():
        top = max(values)
        lines.append(f"  fold {fold:>3}: best {top:6.2f} after epoch {values.index(top)}, last {values[-1]:6.2f}")
    for epoch, moments in enumerate(summary["epochs"]):
        lines.append(f"  epoch {epoch:>2}: {moments['mean']:6.2f} +- {moments['deviation']:.2f}")
    best = summary["best"]
    lines.append(
        f"  each fold's own best epoch: {best['mean']:6.2f} +- {best['deviation']:.2f} "
        "(flattering: the epoch was chosen by the same score)"
    )
    return "\n".join(lines)
