"""Train a model from epoch to epoch: train, validate, log, save.

    set_up_training         model to its device, loaders, optimizer, moving average -> Training (training.py)
    checkpoint.resume       a run that goes on gets back all that its checkpoint holds
    fit                     prepare the output folder, then for every epoch:
        loop.train_epoch        forward, loss, backward, clip, step, average
            _after_steps            after every optimizer step: count, show, log; stop at a signal; --save_steps
                Training.plan           --max_hours: at which step the run is to end
                _validate_inside        --eval_steps: the same as at the end of an epoch
        _validate               validation, with the averaged weights if there is a moving average
        _end_epoch              choose the best epoch, write log.txt, then the checkpoints

A run ends after its last epoch, after `--patience`, `--max_hours` or `--stop_after_epochs`, at a signal (once the step
is finished and saved), or with an error. The same command goes on from its last checkpoint.
"""

import logging
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from beit3_vqa.config.config import SESSION_OPTIONS, write_config
from beit3_vqa.data.index import TOKENIZER_FILE
from beit3_vqa.data.types import get_number
from beit3_vqa.engine.checkpoint import folder as run_folder
from beit3_vqa.engine.checkpoint.folder import BEST, step_file
from beit3_vqa.engine.checkpoint.io import random_state, set_random_state
from beit3_vqa.engine.checkpoint.manifest import is_after, is_rolling
from beit3_vqa.engine.checkpoint.save import InsideEpoch, Saver, TrainState
from beit3_vqa.engine.evaluator import compare_sources, evaluate_split
from beit3_vqa.engine.loggers import LoggedRun, Loggers
from beit3_vqa.engine.logging import LOG, Progress, RunLog, get_scalars, peak_memory
from beit3_vqa.engine.loop import StepReport, train_epoch
from beit3_vqa.engine.training import Training
from beit3_vqa.errors import InputError, plural
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.files import make_folder, remove_stale_temporaries
from beit3_vqa.runtime.host import typed_command
from beit3_vqa.runtime.signals import Stopped, StopSignals

logger = logging.getLogger(__name__)

SCALAR_STEPS = 50  # optimizer steps between points of the curves


class _OverError(Exception):
    """Nothing is left to train, in the middle of an epoch; `Training.why_over` says why."""


def fit(run: Training, *, say_next: bool = True) -> TrainState:
    """Train until the last epoch or `--stop_after_epochs`; write checkpoints, logs and config.json to `--output_dir`.

    Args:
        run: what is trained.
        say_next: print the command that evaluates the best checkpoint.

    Raises:
        Stopped: a signal came; the step was finished and saved.
        TrainingDiverged: the gradient wasn't finite for `--max_bad_steps` steps in a row.
        InputError: an example can't be read, or the last checkpoint couldn't be written.
    """
    components, config, state = run.components, run.components.config, run.state
    folder, epochs = Path(config.run.output_dir), config.optim.epochs
    if not run.stays_in_its_folder:
        state.waited = 0  # for a better score than the best in this folder, which is still to come
    if state.time and state.time.kept.hours != state.time.hours:
        run.plan()  # now, since the first look at the clock comes only after some steps
    state.over = run.why_over()
    if state.over:
        logger.info(f"nothing left to train: {state.over}")
        if run.stays_in_its_folder and distributed.is_main():
            # A run that was killed right after its last save didn't get to delete what that made useless.
            run_folder.prune(folder, config.run.keep_checkpoints, is_rolling)
        return state
    log_dir = Path(config.run.log_dir or folder / "tensorboard")
    if not run.stays_in_its_folder:
        state.best_score = state.best_epoch = None  # the checkpoint of that best epoch isn't in this folder
    renumbered, best_is_later = distributed.run_on_main(lambda: _prepare_folder(run, folder, log_dir))
    if best_is_later:
        state.best_score = state.best_epoch = None
    end = min(epochs, state.epoch + (config.run.stop_after_epochs or epochs))  # epoch at which this session ends
    settled = {n: value for n, value in config.flat(components.found).items() if n not in SESSION_OPTIONS}
    loggers = Loggers(config.loggers, LoggedRun(folder, log_dir, settled, run.step, run.stays_in_its_folder))
    with (
        RunLog(folder, loggers, state.epoch + run.validated) as log,
        StopSignals() as signals,
        Saver(components, run.strategy, run.optimizer, run.ema, state, renumbered) as saver,
    ):

        def stop() -> int:
            """Return the largest number of a signal that came to one of the processes, so that all stop together."""
            return distributed.all_reduce_max(signals.number)

        for epoch in range(state.epoch, end):
            # A run that was stopped inside an epoch goes on there; every other epoch begins at example 0.
            inside, first = state.inside, state.inside.examples
            progress = Progress(f"epoch {epoch}/{epochs}", run.examples, config.run.log_interval, first)
            try:
                with _after_steps(run, progress, log, saver, stop) as after_step:
                    batches = run.train.epoch(epoch, first)
                    train_epoch(run, batches, run.learning_rate, after_step, first_example=first, first_step=run.step)
                progress.close()
                # Each process has met other images; from here on all know the same bad ones.
                components.bad_images.sync_ranks()
                values = {"train_loss": inside.loss_sum / max(1.0, inside.counted), "train_lr": inside.lr}
                if inside.bad:
                    logger.warning(
                        f"epoch {epoch}: {plural(round(inside.bad), 'step')} skipped: a gradient wasn't finite"
                    )
                    values["skipped_steps"] = inside.bad
                values["examples_per_second"] = progress.speed()

                metrics = _validate(run, f"epoch {epoch} val", saver, stop)
            except _OverError:  # saved as at a signal
                progress.close()
                saver.save_step()
                state.over = run.why_over()
                break
            except Stopped as stopped:
                raise Stopped(stopped.number, saver.save_where_it_is()) from None
            except InputError as error:
                # Nothing of this epoch is done, so the last checkpoint has everything.
                if not inside.steps:
                    raise
                # An example that can't be read is an error of every process at once (`BatchLoader.epoch`), so that all
                # of them are here.
                ended = InputError(f"{error}\n{saver.save_where_it_is()}")
                ended.said_elsewhere = error.said_elsewhere
                raise ended from None
            _end_epoch(run, values, metrics, log, saver)
            state.over = run.why_over()
            if state.over:
                break
        saver.settle()
        if saver.problem:
            raise InputError(f"the last checkpoint couldn't be written: {saver.problem}")
        number = stop()  # a signal may have come while the last epoch was saved
        if number:
            raise Stopped(number, "all epochs were already done and saved")
    if state.over and state.epoch < epochs:
        logger.info(f"stopped early: {state.over}")
    if not state.over:
        logger.info(f"stopped after epoch {end - 1} as asked; the same command goes on from there")
    elif config.run.save_ckpt and say_next:
        logger.info(f"trained. Next: {_evaluation_command(run)}")
    return state


def _prepare_folder(run: Training, folder: Path, log_dir: Path) -> tuple[Path | None, bool]:
    """Move another run's files out of the way, and write config.json and the tokenizer.

    Returns:
        The checkpoint that the run goes on from, if its name says a later place than the run's, since the run counts
        other steps; and whether the best checkpoint was moved, since it is of an epoch that is trained again.

    Raises:
        InputError: a folder stands where a file is to be written, or one can't be made; nothing was moved.
    """
    for name in ("config.json", LOG, TOKENIZER_FILE, BEST):
        if (folder / name).is_dir():
            raise InputError(f"{folder / name} is a folder where a file is to be written; move it away.")
    if "tensorboard" in run.components.config.loggers:
        make_folder(log_dir)
    make_folder(folder)
    remove_stale_temporaries(folder)
    state = run.state
    place = state.epoch, state.inside.steps
    renumbered, best_is_later = None, False
    if run.resumed is None or not run.stays_in_its_folder:
        aside = run_folder.archive_previous_run(folder, Path(run.components.config.init.finetune))
        if aside:
            logger.info(f"{folder} held another run; its files are now in {aside}")
    else:
        later = {path.name: path for path in run_folder.later_checkpoints(folder, *place)}
        renumbered = later.pop(run.resumed.name, None)
        if later:
            best_is_later = is_after(folder / BEST, *place)
            aside = run_folder.archive([*later.values(), *([folder / BEST] if best_is_later else [])], folder)
            among = ", the best among them," if best_is_later else ""
            logger.info(
                f"epochs from {state.epoch} on are trained again; their earlier checkpoints{among} are now in {aside}"
            )
        aside = run_folder.archive_best(folder) if run.best_is_of_other_data else None
        if aside:
            logger.info(f"the best checkpoint on the old validation split is now in {aside}")
    write_config(run.components.config, folder / "config.json", run.components.found)
    run.components.family.save_assets(run.components.processor, folder)
    return renumbered, best_is_later


@contextmanager
def _after_steps(
    run: Training, progress: Progress, log: RunLog, saver: Saver, stop: Callable[[], int]
) -> Iterator[Callable[[StepReport], None]]:
    """Yield the function to call after each optimizer step of an epoch: it counts, shows, logs, validates and saves.

    However the context ends, `run.state.inside` then tells how far the epoch has come. If it ends with an InputError,
    the random state is set back to that after the last step, from where the run can be saved and go on.

    Raises:
        Stopped: in the call, if a signal came.
        _OverError: in the call, if a validation leaves nothing to train.
    """
    config, device, inside = run.components.config, run.precision.device, run.state.inside
    inside.order = run.order
    time = run.state.time
    # The sums stay on the device, and are read only to be saved: reading makes the host wait for the device.
    sums = torch.tensor([inside.loss_sum, inside.counted, inside.bad], device=device)
    last_step = (run.state.epoch + 1) * run.steps_per_epoch
    # A step of several forward passes may break off after some of them, which have drawn random numbers.
    random = random_state() if run.update_freq > 1 else None

    def after_step(report: StepReport) -> None:
        nonlocal random
        random = random_state() if random else None
        # A loss that isn't finite would make the average of the whole epoch useless, so it doesn't count.
        finite = torch.isfinite(report.loss)
        loss = torch.where(finite, report.loss * report.examples, 0.0)
        sums.add_(torch.stack([loss, finite * report.examples, report.bad]))
        inside.steps, inside.examples, inside.lr = inside.steps + 1, inside.examples + report.examples, report.lr
        if report.step % SCALAR_STEPS == 0 or report.step == last_step:
            values = {"loss": report.loss.item(), "lr": report.lr, "grad_norm": report.grad_norm.item()}
            values["examples_per_second"] = progress.speed()
            log.scalars({f"train/{name}": value for name, value in values.items()}, report.step)
        # The loss is read only if it is time to show it, since that waits for the device.
        progress.update(
            report.examples,
            lambda: {"loss": f"{report.loss.item():.4f}", "lr": f"{report.lr:.2e}", "memory": peak_memory(device)},
        )
        number = stop()
        if number:
            raise Stopped(number)
        # Only the main process's clock counts.
        if time and distributed.all_reduce_max(int(distributed.is_main() and time.no_time_left)):
            time.is_up = True
            raise _OverError
        look = time is not None and time.count_step()
        # Not after the epoch's last step: `_end_epoch` plans, validates and saves the whole epoch.
        if inside.examples < run.examples:
            if time and look:
                time.measure()
                if not time.kept.save:  # not known yet
                    save()
                    saver.settle()
                if run.plan():
                    save()  # at once: a run that is killed keeps to it
            validate_if_due()
            if config.run.save_steps and inside.steps % config.run.save_steps == 0:
                save()

    def save() -> None:
        inside.loss_sum, inside.counted, inside.bad = sums.tolist()
        with progress.paused():
            saver.save_step()

    def validate_if_due() -> None:
        every = config.optim.eval_steps if run.val else 0
        due = run.step >= run.last_step or (every and inside.steps % every == 0)
        if due and inside.validated < inside.examples:
            inside.loss_sum, inside.counted, inside.bad = sums.tolist()
            with progress.paused():
                _validate_inside(run, log, saver, stop)

    try:
        if 0 < inside.examples < run.examples:
            validate_if_due()  # the run may have been stopped at this step before it was validated
        yield after_step
    except InputError:
        if random:
            set_random_state(random)
        raise
    finally:
        inside.loss_sum, inside.counted, inside.bad = sums.tolist()


def _validate(run: Training, label: str, saver: Saver, stop: Callable[[], int]) -> dict[str, object]:
    """Return the metrics of the validation split, of the moving average if there is one; empty without a split.

    Raises:
        Stopped: a signal came.
    """
    # The best score may be taken back. And processes of a loader that begin meanwhile would keep the copy in memory.
    saver.settle()
    if run.val is None:
        return {}
    label += " (EMA)" if run.ema else ""
    with run.state.timing("validation"), run.ema.use_ema_weights() if run.ema else nullcontext():
        metrics = evaluate_split(run.components, run.val, label, stop).metrics
        return metrics | compare_sources(run.components, metrics, run.beside, label, "val", stop)


def _validate_inside(run: Training, log: RunLog, saver: Saver, stop: Callable[[], int]) -> None:
    """Validate inside an epoch, log it, and save the weights if they are the best so far.

    The best checkpoint is written before the next one to go on from: a run that is killed in between goes on from
    before the validation, and comes to the same again.

    Raises:
        Stopped: a signal came; the validation isn't counted, and a run that goes on begins with it.
        _OverError: nothing is left to train.
    """
    state, inside = run.state, run.state.inside
    place = f"epoch {state.epoch}, step {inside.steps}"
    metrics = _validate(run, f"{place} val", saver, stop)
    inside.validated = inside.examples
    score, improved = _count_validation(run, metrics)
    place_in_log = {"epoch": state.epoch, "share": run.validated, "step": run.step}
    log.add(place_in_log, metrics)
    if improved and run.components.config.run.save_ckpt:
        saver.save_best(score)
    elif improved:
        state.best_score, state.best_epoch = score, state.epoch
    _show_score(run, metrics, place, log)
    if run.why_over():
        raise _OverError


def _end_epoch(run: Training, values: dict[str, float], metrics: dict[str, object], log: RunLog, saver: Saver) -> None:
    """Choose the best epoch, log this one and save it.

    Args:
        run: whose `state.epoch` is the epoch that has just ended; it is counted up here.
        values: averages of the epoch's training.
        metrics: of its validation; empty if there is no validation split.
        log: where the epoch is written.
        saver: which writes the checkpoints.
    """
    state, config, epoch = run.state, run.components.config, run.state.epoch
    score, improved = _count_validation(run, metrics)
    # Before it is saved: the checkpoint says that the epoch is done.
    state.epoch, state.inside = epoch + 1, InsideEpoch()
    if run.val is not None and "loss" not in metrics and config.optim.sched == "plateau" and epoch == 0:
        name = run.components.task.spec.name
        logger.warning(f"--sched plateau: {name} has no validation loss to follow: the learning rate stays as it is")
    if state.time:
        state.time.measure()
        run.plan()
    # Log before saving: if the process is killed in between, the resumed run drops the line and writes it again. The
    # other way round the line would be missing for good.
    log.add({"epoch": epoch, **values}, metrics)
    if config.run.save_ckpt:
        saver.save_epoch(score, improved)
    elif improved:
        state.best_score, state.best_epoch = score, epoch
    _show_score(run, metrics, f"epoch {epoch}", log)


def _count_validation(run: Training, metrics: dict[str, object]) -> tuple[float | None, bool]:
    """Count a validation; return its score, if it has one, and whether it is the best so far."""
    state, metric = run.state, run.components.task.spec.best_metric
    score = get_number(metrics, metric)
    # A validation without a score is the best only as long as none had one.
    improved = state.best_score is None or (score is not None and score > state.best_score)
    if run.val is not None and score is None and state.best_epoch is None:
        logger.info(
            f"nothing in the validation split can be scored, so there is no {metric}, and the last epoch "
            "counts as the best"
        )
    state.waited = 0 if improved else state.waited + 1
    loss = get_number(metrics, "loss")
    state.val_losses += [] if loss is None else [loss]
    return score, improved


def _show_score(run: Training, metrics: dict[str, object], place: str, log: RunLog) -> None:
    """Draw the metrics of a validation, print its score beside the best, and show it to the judge."""
    state, metric = run.state, run.components.task.spec.best_metric
    log.scalars(get_scalars(metrics, "val"), run.step)
    score = get_number(metrics, metric)
    if score is not None:
        best = f"best {state.best_score:.2f}, epoch {state.best_epoch}" if state.best_score is not None else "not saved"
        logger.info(f"{place}: val {metric} {score:.2f} ({best})")
        if run.judge:
            run.verdict = run.judge(run.step / run.steps_per_epoch, score)


def _evaluation_command(run: Training) -> str:
    """Return the command that evaluates the best checkpoint, for the user to type next.

    A run whose time was up before its first validation has none; then it is its only checkpoint.
    """
    config, state = run.components.config, run.state
    folder = Path(config.run.output_dir)
    last = step_file(folder, state.epoch, state.inside.steps)
    path = folder / BEST if state.best_epoch is not None else last
    words = ["--eval", "--task", config.run.task, "--resume", str(path)]
    words += ["--data_path", *config.sources.folders]
    words += ["--val_from", config.data.val_from] if config.data.val_from else []
    words += ["--output_dir", str(folder)]
    words += ["--answer2label", config.data.answer2label] if config.data.answer2label else []
    splits = run.components.task.folder.splits()
    words += [] if "test" in splits else ["--split", "val" if "val" in splits else "train"]
    return f"{typed_command('finetune')} {shlex.join(words)}"
