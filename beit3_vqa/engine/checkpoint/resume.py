"""Go on from a checkpoint: find it, check that it fits the run, and restore it.

`find_run` finds and reads the file. `restore_weights` fills the model, once answers, tokenizer and fold agree.
`restore` brings back the rest, after the optimizer and the moving average were made: their moments and weights, the
place inside the epoch, the scores so far and the random generators. A resumed run then ends bit for bit as one that
was never interrupted, if the machine and the number of processes are the same.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from beit3_vqa.config.resolve import GivenOptions
from beit3_vqa.data.index import split_files
from beit3_vqa.engine.build import load_weights
from beit3_vqa.engine.checkpoint.folder import checkpoints, tell_deepspeed
from beit3_vqa.engine.checkpoint.io import get_options, read_checkpoint, set_random_state
from beit3_vqa.engine.checkpoint.portable import checkpoint_file
from beit3_vqa.engine.checkpoint.same_run import (
    begins_anew,
    check_beginning,
    check_same_data,
    check_same_fold,
    check_same_run,
    tell_changes,
)
from beit3_vqa.engine.checkpoint.save import InsideEpoch
from beit3_vqa.engine.checkpoint.validate import SOUP, Content, validate_content
from beit3_vqa.engine.components import Components
from beit3_vqa.engine.loop import steps_per_epoch
from beit3_vqa.engine.optim import load_optimizer, make_schedule
from beit3_vqa.engine.training import Training, make_ema
from beit3_vqa.errors import InputError, plural
from beit3_vqa.models.weights import asked_weights, find_weights, mismatches
from beit3_vqa.runtime import distributed
from beit3_vqa.tasks import find_task
from beit3_vqa.tasks.base import Task

logger = logging.getLogger(__name__)

Read = Callable[[Path], Content]


def find_run(given: GivenOptions) -> tuple[Path, Content] | None:
    """Return the checkpoint to go on from, and what it holds; None if a new run begins.

    It is the file of `--resume`, or else the newest in `--output_dir`. With several processes the main one looks, and
    all of them read what it found.

    Raises:
        InputError: `--resume` can't be read, or there are checkpoints in `--output_dir` and none can be read.
    """
    contents: dict[Path, Content] = {}  # the last one that was read and no more: they are large

    def read(path: Path) -> Content:
        if path not in contents:
            contents.clear()
            contents[path] = _read(path, given)
        return contents[path]

    path = distributed.run_on_main(lambda: _find(given, read))
    if path is None:
        return None
    if not distributed.is_main() and not path.is_file():
        raise InputError(f"{path} isn't there for process {distributed.rank()}: every machine must see --output_dir.")
    return path, read(path)


def _find(given: GivenOptions, read: Read) -> Path | None:
    resume, folder = Path(given["resume"] or "."), Path(given["output_dir"] or ".")
    resume = checkpoint_file(resume) if given["resume"] else resume
    in_folder = given["auto_resume"] and given["output_dir"] != "" and folder.is_dir()
    newest = None
    if not given["resume"]:
        newest = _own_newest(folder, read) if in_folder else None
        if given["output_dir"]:
            tell_deepspeed(folder, wanted=in_folder and newest is None)
        if newest is None or begins_anew(given, get_options(read(newest))):
            check_beginning(given)
            return None
    elif in_folder:
        # The same command typed again, as after a disconnect: what was trained from FILE is newer than FILE.
        newest, _ = _newest_whole(folder, read)
        if newest and read(newest).get("resumed_from") == str(resume.resolve()):
            logger.info(
                f"--resume {resume}: {newest} goes on from it; going on from there (--no_auto_resume starts over)"
            )
        else:
            newest = resume
    path = newest or resume
    check_same_run(given, get_options(read(path)), path)
    return path


def _own_newest(folder: Path, read: Read) -> Path | None:
    """Return the newest undamaged checkpoint in `--output_dir`; None if it holds none.

    Raises:
        InputError: all of them are damaged.
    """
    newest, problems = _newest_whole(folder, read)
    if newest is None and problems:
        raise InputError.of_problems(
            f"--output_dir {folder} holds checkpoints, but none that training can go on from:",
            problems,
            "Bring one back from a copy, or start over with --no_auto_resume, which moves them aside.",
        )
    return newest


def _newest_whole(folder: Path, read: Read) -> tuple[Path | None, list[str]]:
    """Return the newest undamaged checkpoint, if any; print and return what is wrong with the newer ones."""
    problems: list[str] = []
    for path in reversed(checkpoints(folder)):
        problem = _problem_with(path, read)
        if not problem:
            return path, problems
        logger.warning(f"passed over: {problem}")
        problems.append(problem)
    return None, problems


def _problem_with(path: Path, read: Read) -> str:
    try:
        read(path)
    except InputError as error:
        return str(error).removeprefix("--resume ")
    return ""


def _read(path: Path, given: GivenOptions) -> Content:
    content = read_checkpoint(path, "--resume", given)
    if given["resume_weights_only"]:
        # Before the checks: the flag is also for files whose optimizer is no good.
        content.pop("optimizer", None)
    # `module` is DeepSpeed's name for the weights.
    elif "module" in content and "model" not in content:
        hint = "whose optimizer this one can't go on with; add --resume_weights_only."
        raise InputError(f"--resume {path}: is of a run with DeepSpeed, {hint}")
    elif SOUP in content:
        raise InputError(
            f"--resume {path}: is a soup of checkpoints, which has no optimizer to go on with; start from it with "
            "--finetune instead."
        )
    validate_content(content, f"--resume {path}")
    return content


def restore_weights(components: Components, content: Content, path: Path) -> None:
    """Load the weights into the model, once it is certain that they mean the same in this run.

    Raises:
        InputError: the checkpoint has another answer table, tokenizer, fold or model than the run.
    """
    where = f"--resume {path}"
    if content.get("epoch") == "best":
        raise InputError(
            f"{where}: has no epoch number, as upstream's checkpoint-best.pth; resume from checkpoint-N.pth, or start "
            "from it with --finetune."
        )
    if components.config.run.resume_weights_only:
        weights = asked_weights(content, components.config, where)
        components.family.load_pretrained(components.model, weights, where)
        return
    check_same_answers(components.task, content, where)
    check_same_fingerprints(components, content)
    check_same_fold(components.config, get_options(content))
    tell_changes(components, content, get_options(content))
    advice = "Another head or resolution? Start from it with --finetune, or resume with --resume_weights_only."
    load_weights(components.model, find_weights(content), where, advice)


def restore(run: Training, content: Content, path: Path) -> None:
    """Restore everything but the weights: optimizer, moving average, scores, place in the epoch, random generators.

    Upstream's checkpoints hold no best score and no random state.

    Raises:
        InputError: the checkpoint has another optimizer or moving average than the run, or other data (see
            `check_same_data`).
    """
    components, where = run.components, f"--resume {path}"
    same_val = check_same_data(components, content, get_options(content), where)
    if not components.config.run.resume_weights_only:
        _restore_optimizer(run, content, where)
    run.best_is_of_other_data = not same_val
    # A score on other rows, or of other answers, can't be compared with those to come.
    if same_val and content.get("task_state") == components.task.state():
        run.state.best_score = content.get("best_score")
        run.state.best_epoch = content.get("best_epoch")
        run.state.waited = _waited(content)
    if run.ema is not None:
        _restore_average(run, content, where)
    # The file names the last epoch that is done, as upstream's does.
    run.state.epoch = content["epoch"] + 1 if "epoch" in content else 0
    run.state.inside = _inside_epoch(run, content)
    if run.state.inside.steps:  # every step sets it; this is for a run that is saved again before its next one
        for group in run.optimizer.param_groups:
            group["lr"] = run.state.inside.lr * group["lr_scale"]
    if run.state.time and "time" in content:
        run.state.time.restore(content["time"], run.steps_per_epoch)
    run.state.val_losses = list(content.get("val_losses", [])) if same_val else []
    run.state.resumed_from = content.get("resumed_from", "")
    if components.config.run.resume and str(Path(components.config.run.resume).resolve()) == str(path.resolve()):
        run.state.resumed_from = str(path.resolve())
    run.resumed = path
    # After the place in training: if the file has no random state to restore, the seed is made from `run.step`.
    _restore_random_state(run, content)
    _tell_new_schedule(run, get_options(content).get("epochs"))
    inside = run.state.inside
    part = f" and {inside.examples:,} of {plural(run.examples, 'example')} of the next" if inside.examples else ""
    left = max(0, components.config.optim.epochs - run.state.epoch)
    logger.info(f"{where}: {plural(run.state.epoch, 'epoch')}{part} done, {left} to go")


def _waited(content: Content) -> int:
    """Return the validations since the best score; older checkpoints were made after one validation an epoch."""
    best = content.get("best_epoch")
    return int(content.get("waited", 0 if best is None else max(0, content.get("epoch", best) - best)))


def _inside_epoch(run: Training, content: Content) -> InsideEpoch:
    """Return how far the epoch had come; its beginning if its examples now come in another order."""
    if "inside_epoch" not in content:
        return InsideEpoch()
    inside = InsideEpoch(**content["inside_epoch"])
    # A checkpoint of an old version says nothing of the data's order, which then counts as the same.
    order = {name: value for name, value in run.order.items() if name in inside.order or name != "data"}
    if inside.order != order:
        both = {name: (inside.order.get(name), order.get(name)) for name in inside.order | order}
        changed = ", ".join(f"{name} {before} -> {now}" for name, (before, now) in both.items() if before != now)
        logger.info(f"the epoch begins again, since its examples come in another order now ({changed})")
        return InsideEpoch()
    step_size = run.components.step_size
    # Count the steps that this run would have needed for these examples: its batches may have another size.
    inside.steps = steps_per_epoch(inside.examples, step_size.batch_size, step_size.update_freq)
    return inside


def _restore_random_state(run: Training, content: Content) -> None:
    states = content.get("random_states", [content["random_state"]] if "random_state" in content else [])
    if len(states) == distributed.world_size():
        set_random_state(states[distributed.rank()])
    else:  # another number of processes, or upstream's file: fresh random numbers, others in each process
        # Python's hash of numbers is the same in every process, unlike that of text.
        torch.manual_seed(hash((run.components.config.run.seed, run.step, distributed.rank())) % 2**63)


def _restore_optimizer(run: Training, content: Content, where: str) -> None:
    if "optimizer" not in content:
        raise InputError(
            f"{where}: holds weights without an optimizer (checkpoint-best.pth is for evaluation). Resume from "
            "checkpoint-N.pth, or add --resume_weights_only for a new optimizer."
        )
    try:
        load_optimizer(run.optimizer, content["optimizer"])
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{where}: its optimizer has other parameter groups than this run ({error}). Were --layer_decay, "
            "--task_head_lr_weight, --opt or the head changed? --resume_weights_only starts a new optimizer."
        ) from error
    if content.get("scaler"):
        try:
            run.components.precision.scaler.load_state_dict(content["scaler"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise InputError(
                f"{where}: its gradient scaler can't be read ({error}); --resume_weights_only does without."
            ) from error


_LONG_AGO = 10**9  # steps


def _restore_average(run: Training, content: Content, where: str) -> None:
    assert run.ema is not None
    if not content.get("model_ema") or run.components.config.run.resume_weights_only:
        logger.info(f"{where}: the moving average starts anew, from the weights")
        run.ema = make_ema(run.components)
        return
    average = find_weights(content, "model_ema")
    problems = mismatches(run.ema.average, average)
    if problems:
        raise InputError.of_problems(
            f"{where}: its moving average (model_ema) doesn't fit the model:",
            problems,
            "The file is damaged; --resume_weights_only starts a new average.",
        )
    run.ema.load_state_dict(average)
    # Before 0.2 the decay was the same from the first step on; such an average goes on as it began.
    run.ema.updates = content.get("model_ema_updates", _LONG_AGO)


def check_same_answers(task: Task, content: Content, where: str) -> None:
    """Raise InputError if a checkpoint's outputs mean other answers than the data's.

    `Task.vouch` decides on a checkpoint that keeps no answer table.
    """
    if "task_state" not in content:
        task.vouch(where)
    elif content["task_state"] != task.state():
        table = task.config.data.answer2label or "the one in --data_path"
        raise InputError(
            f"{where}: was trained with another answer table than {table}. Its outputs would be read as the wrong "
            "answers; start from it with --finetune instead."
        )


def tell_other_answers(task: Task, content: Content, new: list[str], where: str) -> None:
    """Say if training begins with a head whose outputs may stand for other answers than the data's.

    Args:
        task: of the run.
        content: of the checkpoint that it begins with.
        new: names of the weights that aren't the checkpoint's.
        where: flag and file of the checkpoint, for messages.
    """
    saved, answers = content.get("task_state"), task.state()
    vouched = saved == answers or (not saved and task.config.data.answer2label)
    if vouched or not answers or task.outputs != task.num_classes or any("head." in name for name in new):
        return
    what = "was trained on other answers" if saved else "stands for answers that the file doesn't name"
    logger.info(f"{where}: its head {what}, perhaps in another order; they are learned anew")


def check_same_fingerprints(components: Components, content: Content) -> None:
    """Raise InputError if the tokenizer, or another file that a checkpoint depends on, has changed since training."""
    for problem in components.family.check_fingerprints(content, components.model, components.processor):
        raise InputError(problem)


def fold_of_evaluation(given: GivenOptions, saved: dict[str, object]) -> tuple[str, ...]:
    """Return the options that an evaluation takes from the checkpoint: `("fold",)` or none.

    It is the fold if val is one of the folds and the user gave none: the checkpoint was validated on its own fold.

    Raises:
        InputError: the user asks for another fold, whose validation rows the checkpoint was trained on.
    """
    fold = saved.get("fold")
    if not isinstance(fold, int) or given["split"] != "val":
        return ()
    if given["fold"] is None:
        has_val = split_files(Path(given.sources.folder), "val", find_task(given["task"]).spec.files)
        return () if has_val else ("fold",)
    if given["fold"] != fold:
        raise InputError(
            f"--fold {given['fold']}: the checkpoint was trained with fold {fold} held out, so it has seen this "
            f"one's answers. Evaluate it with --fold {fold}."
        )
    return ()


def _tell_new_schedule(run: Training, epochs_before: object) -> None:
    options = run.components.config.optim
    if options.sched == "cosine" and epochs_before not in (None, options.epochs) and run.state.epoch < options.epochs:
        rate = make_schedule(options, run.steps_per_epoch)(run.state.epoch * run.steps_per_epoch)
        logger.info(
            f"--epochs {options.epochs}, not {epochs_before}: the learning rate follows the longer or shorter cosine "
            f"from here on, at {rate:.2e} of a peak of {options.lr:.2e}"
        )
