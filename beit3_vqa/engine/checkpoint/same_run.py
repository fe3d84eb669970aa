"""Check that a command goes on with the run of a checkpoint: the same model, beginning, fold and data."""

import logging
from pathlib import Path

import numpy as np

from beit3_vqa.config.config import GROUP_OF, RunConfig
from beit3_vqa.config.resolve import GivenOptions
from beit3_vqa.data.fingerprint import ANSWER_BITS, EMPTY, Changes, Fingerprint, Numbers, compare
from beit3_vqa.engine.checkpoint.folder import BEST, is_checkpoint
from beit3_vqa.engine.checkpoint.validate import Content
from beit3_vqa.engine.components import Components
from beit3_vqa.errors import InputError, short
from beit3_vqa.runtime import distributed
from beit3_vqa.tasks import without_task

logger = logging.getLogger(__name__)

# Options that decide how a run begins, and nothing after that.
_BEGINNING = ("finetune", "model_key", "model_prefix", "allow_missing", "new_head", "init")
_DATA = "data_rows"  # in a checkpoint
_EARLIER = "earlier"  # a split in there: rows that were trained on and are no longer in the training split
_ADVICE = "--no_auto_resume begins a new run and keeps the old one's files in previous-N; so does another --output_dir."


def begins_anew(given: GivenOptions, saved: dict[str, object]) -> bool:
    """Return whether `--finetune` names a checkpoint of the run in `--output_dir` as the start of a new run."""
    return _names_own_checkpoint(given) and not _same_file(given["finetune"], saved.get("finetune"))


def check_beginning(given: GivenOptions) -> None:
    """Raise InputError if `--finetune` names a checkpoint that the new run's own checkpoints would overwrite."""
    named = Path(given["finetune"])
    if _names_own_checkpoint(given) and named.name != BEST:
        raise InputError(
            f"--finetune {named}: lies in --output_dir, where the new run's own checkpoints would take its place. Give "
            "the new run another --output_dir, or go on from that checkpoint with --resume."
        )


def _names_own_checkpoint(given: GivenOptions) -> bool:
    named, folder = given["finetune"], given["output_dir"]
    if not named or not folder or Path(named).resolve().parent != Path(folder).resolve():
        return False
    return Path(named).name == BEST or is_checkpoint(Path(named))


def check_same_run(given: GivenOptions, saved: dict[str, object], path: Path) -> None:
    """Check that the options agree with the run that goes on: one that has no effect on it is an error, not silence.

    Args:
        given: the user's options.
        saved: the options (flat) in the run's checkpoint.
        path: the checkpoint.

    Raises:
        InputError: another model or task than the run's, or other options for its beginning.
    """
    advice = f"--resume goes on with a run; leave one of them out. {_ADVICE}" if given["resume"] else _ADVICE
    task, model = saved.get("task"), saved.get("model")
    if given["resume_weights_only"]:
        return
    if "task" in given and isinstance(task, str) and _is_ours(saved) and task != given["task"]:
        raise InputError(f"--task {given['task']}: {path} is of a run of {task}. {advice}")
    if "model" in given and isinstance(model, str):
        saved_model, typed = (without_task(name, given["task"]) for name in (model, given["model"]))
        if saved_model != typed:
            raise InputError(f"--model {given['model']}: {path} is of a {model}, whose weights don't fit it. {advice}")
    for name in _BEGINNING:
        value, before = given[name], saved.get(name, "")
        if name not in given or value in ("", before) or (name == "finetune" and _same_file(value, before)):
            continue
        if name in saved or name == "finetune":
            began = f"began with --{name} {short(before)}" if before else "began without"
            raise InputError(f"--{name} {value}: has no effect, since {path} is of a run that {began}. {advice}")


def _is_ours(saved: dict[str, object]) -> bool:
    return "save_steps" in saved  # upstream has no such option


def _same_file(one: str, other: object) -> bool:
    return isinstance(other, str) and (one == other or (other != "" and Path(one).resolve() == Path(other).resolve()))


def get_beginning(given: GivenOptions, saved: dict[str, object]) -> tuple[str, ...]:
    """Return the names of the options that stay as they were when the run began; config.json tells how it began."""
    return _BEGINNING if _is_ours(saved) and not given["resume_weights_only"] else ()


def check_same_fold(config: RunConfig, saved: dict[str, object]) -> None:
    """Raise InputError if the run held out another fold."""
    if saved.get("fold", config.data.fold) != config.data.fold:
        raise InputError(
            f"--fold {config.data.fold}: the run in --output_dir trains with fold {saved['fold']}, so it has seen this "
            "one's validation rows. Give each fold its own --output_dir."
        )


def tell_changes(components: Components, content: Content, saved: dict[str, object]) -> None:
    """Print the options of model, data, training and task, and the number of processes, that have changed since."""
    own = {"seed", *components.task.spec.own_options}
    # With fingerprints it is known whether the rows have changed, wherever they lie.
    places = {"data_path", "image_root"} if _DATA in content else set()
    changed = [
        f"{name} {short(saved[name])} -> {value}"
        for name, value in components.config.flat(components.found).items()
        if (GROUP_OF[name] in ("model", "init", "data", "optim") or name in own)
        and name in saved
        and name not in places
        and _plain(saved[name]) != _plain(value)
    ]
    if content.get("processes", distributed.world_size()) != distributed.world_size():
        changed.append(f"processes {content['processes']} -> {distributed.world_size()}")
    if changed:
        logger.info(f"changed since the checkpoint: {', '.join(changed)}")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def data_state(components: Components) -> Content:
    """Return the entry of a checkpoint that tells which rows the run has seen: fingerprints by split."""
    return {_DATA: {split: components.fingerprints[split].state() for split in sorted(components.fingerprints)}}


def check_same_data(components: Components, content: Content, saved: dict[str, object], where: str) -> bool:
    """Compare today's rows with those that the checkpoint was trained and validated on, and print what changed.

    Returns:
        True if val is still the split that the best score was measured on. Checkpoints of old versions don't keep
        their rows: for them it is True.

    Raises:
        InputError: rows of val were trained on, or val has changed, and `--data_changed ok` wasn't given.
    """
    if _DATA not in content:
        return True
    before = {split: Fingerprint.from_state(state) for split, state in content[_DATA].items()}
    now = components.fingerprints
    # Of other sources than the one that validates, val is only compared to tell what changed.
    ours = ("train", "val", *sorted(name for name in {*before, *now} if name.startswith("val ")))
    changes = {split: compare(before.get(split, EMPTY), now.get(split, EMPTY)) for split in ours}
    _keep_earlier(components, before)
    told = [f"{split}: {changes[split].text()}" for split in ours if changes[split].text()]
    config = components.config
    if not told:
        if "data_path" in saved and saved["data_path"] != config.data.data_path:
            logger.info(
                f"--data_path {' '.join(config.sources.folders)}: the same rows as in {short(saved['data_path'])}"
            )
        return True
    logger.warning(f"the rows of --data_path have changed since the checkpoint; {'; '.join(told)}")
    problems = _problems(before, now, changes["val"], content)
    if problems and config.run.data_changed != "ok":
        raise InputError.of_problems(
            f"{where}: the rows of --data_path have changed since ({'; '.join(told)}):",
            problems,
            "Bring the old data back, or begin a new run with another --output_dir or --no_auto_resume. "
            "--data_changed ok goes on all the same, with a new best score; the best checkpoint so far is kept.",
        )
    return changes["val"].same_content


def trained_on(content: Content) -> Numbers:
    """Return what the training rows of a checkpoint ask, as `Fingerprint.asked`; nothing if it doesn't say."""
    rows = [state for split, state in content.get(_DATA, {}).items() if split != "val"]
    # Copied: one tensor that is still in the file would keep all of it mapped, and its pages in memory.
    return np.concatenate([EMPTY.asked, *(Fingerprint.from_state(state).asked for state in rows)])


def _problems(before: dict[str, Fingerprint], now: dict[str, Fingerprint], val: Changes, content: Content) -> list[str]:
    """Return the reasons against going on, in words; none if the scores stay honest."""
    # Without the bits of the answers, since a row leaks with another answer too.
    trained = _trained(before) >> np.uint64(ANSWER_BITS)
    today, old_val = now.get("val", EMPTY), before.get("val", EMPTY)
    known = old_val.asked[np.isin(old_val.asked, trained)]  # val shared these with train from the beginning
    leaks = np.setdiff1d(np.concatenate([trained, now.get("train", EMPTY).asked]), known)
    problems = []
    if leaked := today.count_in(leaks):
        problems.append(f"{leaked:,} of {len(today.rows):,} rows of val are trained on (same image, same question)")
    if not val.same_content and content.get("best_score") is not None:
        problems.append("the validation split has changed, so new scores can't be compared with the best one so far")
    return problems


def _keep_earlier(components: Components, before: dict[str, Fingerprint]) -> None:
    """Add to the run's fingerprints the rows that were trained on and are no longer in the training split."""
    gone = np.setdiff1d(_trained(before), components.fingerprints.get("train", EMPTY).rows)
    if len(gone):
        components.fingerprints[_EARLIER] = Fingerprint(gone)


def _trained(before: dict[str, Fingerprint]) -> Numbers:
    """Return every row that the checkpoint was trained on, even if the data have changed in between."""
    return np.concatenate([before.get(split, EMPTY).rows for split in ("train", _EARLIER)])
