"""Every fold of a prepared folder in turn, each held out once, and what that says about the recipe."""

import json
import os
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from beit3_vqa.config.config import RunConfig
from beit3_vqa.config.resolve import GivenOptions, resolve
from beit3_vqa.engine.api import train
from beit3_vqa.engine.build import make_task
from beit3_vqa.engine.checkpoint.folder import epoch_file
from beit3_vqa.engine.run_lock import run_lock
from beit3_vqa.errors import InputError
from beit3_vqa.runtime.files import make_folder, write_text
from beit3_vqa.tasks import find_task

RESULTS = "cross_validation.json"


def cross_validate(given: GivenOptions) -> dict[str, Any]:
    """Trains once for each fold, in `--output_dir/fold-K`, and goes on where an earlier call stopped.

    Args:
        given: options of every one of the runs.

    Returns:
        What cross_validation.json holds: `metric`, `folds` (for each its value after every epoch), `epochs` (mean and
        deviation over folds after every epoch) and `best` (mean and deviation of each fold's own best epoch). Empty
        where folds are still to be trained, as after `--stop_after_epochs`, or with `--dry_run`.

    Raises:
        InputError: options that don't go with it, data without folds, or whatever else a run doesn't take.
        TrainingDiverged: in one of the runs.
    """
    of_one_run = {"fold": given["fold"] is not None, "resume": bool(given["resume"]), "eval": given["eval"]}
    for name in [name for name, is_set in of_one_run.items() if is_set]:
        raise InputError(f"--{name}: belongs to one run; cross_validate trains every fold, each in its own folder.")
    if not given["output_dir"]:
        raise InputError("--output_dir: say where checkpoints and results go; each fold gets a folder in it.")
    is_main = os.environ.get("RANK", "0") == "0"  # of several processes, which don't know each other yet
    with run_lock(given["output_dir"]) if is_main and not given["dry_run"] else nullcontext():
        return _cross_validate(given)


def _cross_validate(given: GivenOptions) -> dict[str, Any]:
    config = resolve(given, find_task(given["task"]).spec.defaults)  # what all of the runs have in common
    task = make_task(config)
    folds = task.folder.folds()
    if not folds:
        raise InputError(f"--data_path {config.data.data_path}: has no folds; prepare the data with --folds K.")
    histories = []
    for fold in folds:
        print(f"\n=== fold {fold} of {len(folds)}", flush=True)
        histories.append(_run_fold(given, config, fold, task.spec.best_metric))
        if config.run.dry_run:
            print("the other folds cost about the same")
            return {}
    unfinished = [fold for fold, values in zip(folds, histories, strict=True) if len(values) < config.optim.epochs]
    if unfinished:
        print(f"not all epochs are done in folds {', '.join(map(str, unfinished))}; the same command goes on with them")
        return {}
    summary = summarise(dict(zip(folds, histories, strict=True)), task.spec.best_metric)
    folder = Path(config.run.output_dir)
    make_folder(folder)
    print(f"\n{table(summary)}")
    print(f"wrote {write_text(folder / RESULTS, json.dumps(summary, indent=2) + chr(10))}")
    return summary


def _run_fold(given: GivenOptions, config: RunConfig, fold: int, metric: str) -> list[float]:
    """Trains what is left of a fold; its metric after every epoch."""
    folder = Path(config.run.output_dir) / f"fold-{fold}"
    values: dict[str, Any] = {"fold": fold, "output_dir": str(folder)}
    if config.run.log_dir:
        values["log_dir"] = str(Path(config.run.log_dir) / folder.name)
    done = epoch_file(folder, config.optim.epochs - 1).is_file()
    if done and config.run.auto_resume and not config.run.dry_run:
        print(f"{folder}: all {config.optim.epochs} epochs are done")
    train(given.also(**values))  # of a fold that is done: whether it is of this run
    if config.run.dry_run:
        return []
    lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[f"val_{metric}"] for line in lines]


def summarise(histories: dict[int, Sequence[float]], metric: str) -> dict[str, Any]:
    """Mean and sample standard deviation over folds, after each epoch and at each fold's best.

    Args:
        histories: fold -> its metric after each epoch, as many for every fold.
        metric: its name.
    """
    by_epoch = [_moments(values) for values in zip(*histories.values(), strict=True)]
    return {
        "metric": metric,
        "folds": {str(fold): list(values) for fold, values in histories.items()},
        "epochs": by_epoch,
        "best": _moments([max(values) for values in histories.values()]),
    }


def _moments(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "deviation": statistics.stdev(values) if len(values) > 1 else 0.0}


def table(summary: dict[str, Any]) -> str:
    """The summary for people: a line for each fold and for each epoch."""
    lines = [f"{summary['metric']} of {len(summary['folds'])} folds, mean and standard deviation between folds"]
    for fold, values in summary["folds"].items():
        best = max(values)
        lines.append(f"  fold {fold:>3}: best {best:6.2f} after epoch {values.index(best)}, last {values[-1]:6.2f}")
    for epoch, moments in enumerate(summary["epochs"]):
        lines.append(f"  epoch {epoch:>2}: {moments['mean']:6.2f} +- {moments['deviation']:.2f}")
    best = summary["best"]
    lines.append(
        f"  each fold's own best epoch: {best['mean']:6.2f} +- {best['deviation']:.2f} (chosen on what it scores)"
    )
    return "\n".join(lines)
