"""A search from its space to a table: begin a trial, train, judge it after each validation, keep what came of it."""

import gc
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import torch

from beit3_vqa.apps.search.options import SearchOptions
from beit3_vqa.apps.search.space import OF_THE_SEARCH, Choice, Range, read_space
from beit3_vqa.apps.search.study import COMPLETE, FAIL, FOLDER, OPTIONS, PRUNED, SCORE, Begun, SharedStudy
from beit3_vqa.config.config import GROUP_OF
from beit3_vqa.config.resolve import GivenOptions, resolve
from beit3_vqa.data.predictions import json_text
from beit3_vqa.engine.api import train
from beit3_vqa.engine.build import make_task
from beit3_vqa.engine.checkpoint.folder import checkpoints
from beit3_vqa.engine.loop import TrainingDiverged
from beit3_vqa.errors import InputError, first_line, one_line, plural
from beit3_vqa.runtime.distributed import refuse_several
from beit3_vqa.runtime.files import write_text
from beit3_vqa.runtime.host import typed_command
from beit3_vqa.tasks import find_task

TABLE = "search.json"
BELOW = "its score is below the median of the other trials at this point"
HOPELESS = 3  # so many trials at the beginning of a call that fail alike end it
# Options that change nothing about what is learned; of `compute` and `run` only the others do.
_OF_A_MACHINE = frozenset(
    {"image_root", "num_workers", "pin_mem", "eval_batch_size", "sentencepiece_model", "pretrained"}
)
_COUNTS = frozenset({"precision", "task", "seed"})
_STEPS = 1000  # of the pruner in an epoch, which compares trials at the same one


class TrialRow(TypedDict):
    """A trial that has ended."""

    folder: str
    state: str
    score: float | None
    best_epoch: int | None
    options: dict[str, object]
    seconds: float | None
    reason: str | None


class BestTrial(TrialRow):
    """The best trial, and the command that trains with its options."""

    command: str


class Results(TypedDict):
    """What search.json holds."""

    metric: str
    trials: list[TrialRow]
    best: BestTrial | None


def search(options: SearchOptions, given: GivenOptions, config_file: str = "") -> Results:
    """Train with options that Optuna proposes until `--trials` have ended in sum, and print which were best.

    The same command goes on with an earlier search, also beside another process that works on it.

    Args:
        options: of the search.
        given: what all trainings have in common.
        config_file: `--config`, for the command that is printed at the end.

    Returns:
        What search.json holds.

    Raises:
        InputError: something can't be used, or the first trials of this call all failed alike.
        Stopped: a signal came; the same command goes on with that trial.
    """
    started = time.monotonic()
    refuse_several("each process of a search runs trials of its own: start it several times, without torchrun.")
    for name in ("resume", "eval", "dry_run", "stop_after_epochs"):
        if given[name]:
            raise InputError(f"--{name}: belongs to one run; search trains many, each in its own folder.")
    if not given["output_dir"]:
        raise InputError("--output_dir: say where the search goes; each trial gets a folder in it.")
    space = read_space(options.space, given.typed_flags)
    metric = _check_data(given, space)
    folder = Path(given["output_dir"])
    study = SharedStudy(folder, options.storage, _about(given, space), given["seed"])
    reasons: list[str] = []
    while True:
        hours = options.max_hours
        left = None if hours is None else hours - (time.monotonic() - started) / 3600
        with study.begin(options.trials, space, left) as begun:
            if begun is None:
                break
            reasons.append(_run(study, begun, given, options.trials))
        _write(study, folder, metric, given, config_file)
        if len(reasons) == HOPELESS and reasons[0] and len(set(map(_without_numbers, reasons))) == 1:
            raise InputError(f"the first {HOPELESS} trials all failed alike: {reasons[0]}")
        gc.collect()  # nothing of this model is left when the next is made
    return _print_results(study, options, folder, metric, given, config_file)


def _check_data(given: GivenOptions, space: Sequence[Range | Choice]) -> str:
    """Return the metric of the task; InputError if the data can't be used, or no validation could tell trials apart."""
    first = given.also(**{dimension.name: dimension.first for dimension in space})
    task = make_task(resolve(first, find_task(first["task"]).spec.defaults))
    if "val" not in task.folder.splits():
        raise InputError(
            f"--data_path {first.sources.folder}: has no validation split, on which trials are compared; prepare "
            "one, or give --fold K."
        )
    return task.spec.best_metric


def _about(given: GivenOptions, space: Sequence[Range | Choice]) -> dict[str, object]:
    """Return what two calls must have in common to be of the same search, on whatever machines."""
    own = {
        f"--{name}": value
        for name, value in given.values.items()
        if name not in OF_THE_SEARCH | _OF_A_MACHINE and (GROUP_OF[name] not in ("compute", "run") or name in _COUNTS)
    }
    searched = {
        f"{d.name} in --space": list(d.values) if isinstance(d, Choice) else [d.low, d.high, d.log, d.step]
        for d in space
    }
    return {**own, **searched}


def _run(study: SharedStudy, begun: Begun, given: GivenOptions, most: int) -> str:
    """Train a trial and end it; return why it failed, or an empty string."""
    folder = Path(given["output_dir"]) / begun.folder
    told = "  ".join(f"{name} {_shown(value)}" for name, value in begun.values.items())
    print(f"\n=== {begun.folder} ({len(study.ended()) + 1} of {most}): {told}", flush=True)
    if begun.continues:
        goes_on = given["auto_resume"] and checkpoints(folder)
        how = f"{folder} goes on from its last checkpoint" if goes_on else f"{folder} is done anew"
        print(f"its process ended before it did: {how}")
    places = {"output_dir": str(folder)}
    if given["log_dir"]:
        places["log_dir"] = str(Path(given["log_dir"]) / begun.folder)
    verdicts: list[str] = []

    def judge(epochs: float, score: float) -> str:
        begun.trial.report(score, round(epochs * _STEPS))
        if begun.trial.should_prune():
            verdicts.append(BELOW)
            return BELOW
        return ""

    try:
        state = train(given.also(**begun.values, **places), say_next=False, judge=judge)
    except (InputError, TrainingDiverged, torch.OutOfMemoryError) as error:
        reason = first_line(error) if isinstance(error, torch.OutOfMemoryError) else str(error)
        print(f"{begun.folder} failed: {reason}", flush=True)
        study.end(begun, FAIL, reason=reason)
        return reason.replace(str(folder), "the folder")
    if state.best_score is None:
        reason = "no validation had a score"
        study.end(begun, FAIL, reason=reason)
        return reason
    ended = PRUNED if verdicts else COMPLETE
    study.end(begun, ended, state.best_score, best_epoch=state.best_epoch, reason=state.over if verdicts else None)
    return ""


def _without_numbers(reason: str) -> str:
    return re.sub(r"\d[\d.e+-]*", "#", reason)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else one_line(str(value))


def _results(study: SharedStudy, metric: str, given: GivenOptions, config_file: str) -> Results:
    """Return what came of the search so far as plain data, the best trial first."""
    rows: list[TrialRow] = [
        {
            "folder": trial.user_attrs[FOLDER],
            "state": trial.state.name.lower(),
            "score": trial.user_attrs[SCORE],
            "best_epoch": trial.user_attrs.get("best_epoch"),
            "options": trial.user_attrs[OPTIONS],
            "seconds": round(trial.duration.total_seconds(), 1) if trial.duration else None,
            "reason": trial.user_attrs.get("reason"),
        }
        for trial in study.ended()
    ]
    rows.sort(key=lambda row: (row["state"] != "complete", -(row["score"] or 0.0)))
    best = rows[0] if rows and rows[0]["state"] == "complete" else None
    told: BestTrial | None = None
    if best:
        told = {**best, "command": _command(best["options"], given, config_file)}
    return {"metric": metric, "trials": rows, "best": told}


def _write(study: SharedStudy, folder: Path, metric: str, given: GivenOptions, config_file: str) -> Results:
    content = _results(study, metric, given, config_file)
    write_text(folder / TABLE, json_text(content, indent=2) + "\n")
    return content


def _print_results(
    study: SharedStudy, options: SearchOptions, folder: Path, metric: str, given: GivenOptions, config_file: str
) -> Results:
    """Print the table, and why the search ends here."""
    content = _write(study, folder, metric, given, config_file)
    print(f"\n{_table(content)}")
    ended = len(content["trials"])
    if ended < options.trials:
        running = sum(trial.state == study.states.RUNNING for trial in study.trials())
        why = f"{running} still in other processes" if running + ended >= options.trials else "--max_hours is used up"
        print(f"{ended} of {plural(options.trials, 'trial')} have ended, {why}; the same command goes on")
    print(f"wrote {folder / TABLE}")
    if content["best"]:
        print("the best options, which were found on the validation rows, so that their score there is flattering:")
        print(f"  {content['best']['command']}")
    return content


def _table(content: Results) -> str:
    """Write out the trials, a line for each."""
    lines = [f"best val {content['metric']} of {plural(len(content['trials']), 'trial')}"]
    for row in content["trials"]:
        score = "      " if row["score"] is None else f"{row['score']:6.2f}"
        epoch = "        " if row["best_epoch"] is None else f"epoch {row['best_epoch']:<2}"
        options = "  ".join(f"{name} {_shown(value)}" for name, value in row["options"].items())
        why = f"  ({one_line(first_line(Exception(row['reason'])))})" if row["reason"] else ""
        lines.append(f"  {score}  {epoch}  {row['state']:8}  {row['folder']:9}  {options}{why}")
    return "\n".join(lines)


def _command(best: Mapping[str, object], given: GivenOptions, config_file: str) -> str:
    """Return the command that trains with the best options, in a folder of its own."""
    words = ["--config", config_file] if config_file else []
    names = given.typed_flags - {"output_dir", "log_dir"} if config_file else given.values.keys() - {"output_dir"}
    fixed = {name: value for name, value in given.values.items() if name in names and name != "log_dir"}
    for name, value in {**fixed, **best}.items():
        words += flag_words(name, value)
    words += ["--output_dir", str(Path(given["output_dir"]) / "best")]
    return f"{typed_command('finetune')} {shlex.join(words)}"


def flag_words(name: str, value: object) -> list[str]:
    """Return the words that give an option a value on the command line; None is a default that no word gives."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no_{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
