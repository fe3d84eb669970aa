"""A training run from epoch to epoch: train, validate, save, log."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from beit3_vqa.config.config import write_config
from beit3_vqa.data.index import TOKENIZER_FILE
from beit3_vqa.data.loader import BatchLoader
from beit3_vqa.engine.build import Parts
from beit3_vqa.engine.checkpoint import folder as run_folder
from beit3_vqa.engine.checkpoint.folder import BEST
from beit3_vqa.engine.checkpoint.io import random_state, set_random_state
from beit3_vqa.engine.checkpoint.manifest import is_rolling
from beit3_vqa.engine.checkpoint.save import InsideEpoch, Saver, TrainState
from beit3_vqa.engine.evaluator import evaluate_split
from beit3_vqa.engine.logging import Progress, RunLog, numbers_of, peak_memory
from beit3_vqa.engine.loop import StepReport, steps_per_epoch, train_epoch
from beit3_vqa.engine.optim import ModelEma, make_optimizer, make_schedule
from beit3_vqa.engine.parallel import OneProcess, make_strategy
from beit3_vqa.errors import InputError
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.files import make_folder, remove_stale_temporaries
from beit3_vqa.runtime.signals import AgreedStop, Stopped, StopSignals

SCALAR_STEPS = 50  # optimizer steps between TensorBoard points


@dataclass
class Training:
    """A training run with everything it needs from step to step."""

    parts: Parts
    train: BatchLoader
    val: BatchLoader | None
    strategy: OneProcess
    model: Any  # the parts' model, as the strategy wrapped it
    optimizer: torch.optim.Optimizer
    ema: ModelEma | None
    resumed_in: Path | None = None  # folder of the checkpoint that it goes on from
    best_is_of_other_data: bool = False  # its best checkpoint was chosen on another val split
    state: TrainState = field(default_factory=TrainState)

    @property
    def examples(self) -> int:
        """Training examples in an epoch."""
        return self.train.batches.rows

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        options = self.parts.config.optim
        return steps_per_epoch(self.examples, options.batch_size, options.update_freq)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.state.epoch * self.steps_per_epoch + self.state.inside.steps

    @property
    def order(self) -> dict[str, Any]:
        """What decides the order of an epoch's examples."""
        seed, balance = self.parts.config.run.seed, self.parts.config.data.balance_answers
        rows = self.parts.fingerprints["train"].order
        return {"rows": self.examples, "seed": seed, "balance_answers": balance, "data": rows}

    @property
    def stays_in_its_folder(self) -> bool:
        """Whether it goes on from a checkpoint in `--output_dir`, and not from another folder's or from none."""
        folder = Path(self.parts.config.run.output_dir)
        return self.resumed_in is not None and self.resumed_in.resolve() == folder.resolve()

    @property
    def end_epoch(self) -> int:
        """Where this session stops: the last epoch, or earlier if `--stop_after_epochs` says so."""
        config = self.parts.config
        session = config.run.stop_after_epochs or config.optim.epochs
        return min(config.optim.epochs, self.state.epoch + session)


def set_up_training(parts: Parts) -> Training:
    """Loaders, optimizer and moving average of a run whose model has its weights."""
    config = parts.config
    parts.model.to(parts.precision.device)
    train_loader = parts.loader("train", training=True)
    val_loader = parts.loader("val") if "val" in parts.task.folder.splits() else None
    if val_loader is None:
        print("no val split: nothing to choose the best epoch by, the last one counts as the best")
        if parts.task.folder.folds():
            print("the training rows have folds: --fold K holds one of them out as val")
        if config.optim.sched == "plateau":
            print("--sched plateau has no validation loss to follow: the learning rate stays as it is")
    strategy = make_strategy(config.compute.strategy)
    model = strategy.wrap(parts.model)
    optimizer = make_optimizer(parts.model, config.optim, strategy)
    ema = make_ema(parts) if config.optim.model_ema else None
    return Training(parts, train_loader, val_loader, strategy, model, optimizer, ema)


def make_ema(parts: Parts) -> ModelEma:
    """A moving average that begins with the model's weights."""
    options = parts.config.optim
    return ModelEma(parts.model, options.model_ema_decay, "cpu" if options.model_ema_force_cpu else None)


def train_epochs(run: Training) -> TrainState:
    """Trains to the end of the session, leaving checkpoints, logs and config.json in the output folder.

    Raises:
        Stopped: a signal came; the step was finished and saved.
        InputError: the last checkpoint couldn't be written.
    """
    config, state = run.parts.config, run.state
    folder = Path(config.run.output_dir)
    if state.epoch >= config.optim.epochs:
        print(f"nothing left to train: {state.epoch} of {config.optim.epochs} epochs are done; raise --epochs for more")
        if run.stays_in_its_folder and distributed.is_main():
            # A run that was killed after its last save hadn't come to that.
            run_folder.prune(folder, config.run.keep_checkpoints, is_rolling)
        return state
    log_dir = Path(config.run.log_dir or folder / "tensorboard")
    if not run.stays_in_its_folder:
        state.best_score = state.best_epoch = None  # that best epoch's checkpoint lies elsewhere
    distributed.decided(lambda: _prepare_folder(run, folder, log_dir))
    log = RunLog(folder, log_dir, state.epoch, run.step)
    saver = Saver(run.parts, run.strategy, run.optimizer, run.ema)
    end = run.end_epoch
    try:
        with StopSignals() as signals:
            stop = AgreedStop(signals, run.parts.precision.device)
            for epoch in range(state.epoch, end):
                _train_one(run, epoch, log, saver, stop)
            number = stop()
            if number:
                raise Stopped(number, "every epoch asked for was done and saved before that")
    finally:
        log.close()
    if saver.problem:
        raise InputError(f"the last checkpoint couldn't be written: {saver.problem}")
    if end < config.optim.epochs:
        print(f"stopped after epoch {end - 1} as asked; the same command goes on from there")
    elif config.run.save_ckpt:
        print(f"trained. Next: {_evaluation_command(run)}")
    return state


def _evaluation_command(run: Training) -> str:
    """What one types after training, to get the result files."""
    config = run.parts.config
    folder = Path(config.run.output_dir)
    words = ["--eval", "--task", config.run.task, "--resume", str(folder / BEST)]
    words += ["--data_path", config.data.data_path, "--output_dir", str(folder)]
    words += ["--answer2label", config.data.answer2label] if config.data.answer2label else []
    words += [] if "test" in run.parts.task.folder.splits() else ["--split", "val"]
    return f"python run_beit3_finetuning.py {shlex.join(words)}"


def _prepare_folder(run: Training, folder: Path, log_dir: Path) -> None:
    """Makes room for what the run writes, and writes what it begins with."""
    state = run.state
    _check_places(folder, log_dir)
    make_folder(folder)
    remove_stale_temporaries(folder)
    if not run.stays_in_its_folder:
        aside = run_folder.set_previous_run_aside(folder, Path(run.parts.config.init.finetune))
        if aside:
            print(f"{folder} held another run; its files are now in {aside}")
    else:
        aside = run_folder.set_later_aside(folder, state.epoch, state.inside.steps)
        if aside:
            print(f"epochs from {state.epoch} on are trained again; their earlier checkpoints are now in {aside}")
        aside = run_folder.set_best_aside(folder) if run.best_is_of_other_data else None
        if aside:
            print(f"the best checkpoint on the other val is now in {aside}")
    write_config(run.parts.config, folder / "config.json")
    run.parts.family.keep_beside(run.parts.processor, folder)


def _check_places(folder: Path, log_dir: Path) -> None:
    """InputError where something stands in the way of what a run writes, before it writes anything."""
    in_the_way = [name for name in ("config.json", "log.txt", TOKENIZER_FILE, BEST) if (folder / name).is_dir()]
    if in_the_way:
        raise InputError(f"{folder / in_the_way[0]} is a folder where a file is to be written; move it away.")
    make_folder(log_dir)


def _train_one(run: Training, epoch: int, log: RunLog, saver: Saver, stop: AgreedStop) -> None:
    """An epoch: train, evaluate, save, log."""
    parts, state, config = run.parts, run.state, run.parts.config
    try:
        values = _run_steps(run, epoch, log, saver, stop)
        metrics = _validate(run, epoch, stop)
    except Stopped as stopped:
        raise Stopped(stopped.number, saver.save_where_it_is(state)) from None
    except InputError as error:
        # Of several processes the others don't know of it: they are in the middle of a step.
        if distributed.size() > 1 or not state.inside.steps:
            raise
        raise InputError(f"{error}\n{saver.save_where_it_is(state)}") from None
    spec = parts.task.spec
    score = metrics.get(spec.best_metric)
    # Without a score nothing is known to be better than what had one.
    improved = state.best_score is None or (score is not None and score > state.best_score)
    if run.val is not None and score is None and state.best_epoch is None:
        print(f"the val split has nothing to compare with, so no {spec.best_metric}: the last epoch is the best one")
    state.epoch, state.inside = epoch + 1, InsideEpoch()
    state.val_losses += [metrics["loss"]] if "loss" in metrics else []
    if run.val is not None and "loss" not in metrics and config.optim.sched == "plateau" and epoch == 0:
        print(f"--sched plateau: {spec.name} has no validation loss to follow: the learning rate stays as it is")
    # Before the checkpoint: a line too many is dropped when the run resumes, one that is missing stays missing.
    log.epoch({"epoch": epoch, **values, **{f"val_{name}": value for name, value in metrics.items()}})
    if config.run.save_ckpt:
        saver.save_epoch(state, score, improved)
    elif improved:
        state.best_score, state.best_epoch = score, epoch
    log.scalars(numbers_of(metrics, "val"), run.step)
    if score is not None:
        best = f"best {state.best_score:.2f}, epoch {state.best_epoch}" if state.best_score is not None else "not saved"
        print(f"epoch {epoch}: val {spec.best_metric} {score:.2f} ({best})")


def _run_steps(run: Training, epoch: int, log: RunLog, saver: Saver, stop: AgreedStop) -> dict[str, float]:
    """The optimizer steps of an epoch that are left; returns its averages.

    Raises:
        Stopped: a signal came.
        InputError: an example can't be read; the run is as it was after its last step.
    """
    config, device, inside = run.parts.config, run.parts.precision.device, run.state.inside
    inside.order = run.order
    label = f"epoch {epoch}/{config.optim.epochs}"
    progress = Progress(label, run.examples, config.run.log_interval, inside.examples)
    sums = torch.tensor([inside.loss_sum, inside.counted, inside.bad], device=device)
    end = (epoch + 1) * run.steps_per_epoch
    # Forward passes of a step that isn't finished draw random numbers too.
    after_step = random_state() if config.optim.update_freq > 1 else None
    try:
        for last in steps(run, epoch):
            after_step = random_state() if after_step else None
            finite = torch.isfinite(last.loss)
            seen = torch.stack([torch.where(finite, last.loss * last.examples, 0.0), finite * last.examples, last.bad])
            sums += seen
            inside.steps, inside.examples, inside.lr = inside.steps + 1, inside.examples + last.examples, last.lr
            if last.step % SCALAR_STEPS == 0 or last.step == end:
                values = {"train/loss": last.loss.item(), "train/lr": last.lr, "train/grad_norm": last.grad_norm.item()}
                log.scalars({**values, "train/examples_per_second": progress.speed()}, last.step)
            progress.update(last.examples, lambda report=last: _shown(report, device))  # type: ignore[misc]
            number = stop()
            due = config.run.save_steps and inside.steps % config.run.save_steps == 0 and inside.examples < run.examples
            if number:
                raise Stopped(number)
            if due:
                inside.loss_sum, inside.counted, inside.bad = sums.tolist()
                saver.save_step(run.state)
    except InputError:
        if after_step:
            set_random_state(after_step)
        raise
    finally:
        inside.loss_sum, inside.counted, inside.bad = sums.tolist()
    progress.close()
    run.parts.bad_images.put_together()
    values = {"train_loss": inside.loss_sum / max(1.0, inside.counted), "train_lr": inside.lr}
    if inside.bad:
        print(f"epoch {epoch}: {inside.bad:.0f} steps were skipped, since their gradient wasn't finite")
        values["skipped_steps"] = inside.bad
    return {**values, "examples_per_second": progress.speed()}


def _shown(report: StepReport, device: torch.device) -> dict[str, str]:
    return {"loss": f"{report.loss.item():.4f}", "lr": f"{report.lr:.2e}", "memory": peak_memory(device)}


def steps(run: Training, epoch: int) -> Iterator[StepReport]:
    """The optimizer steps of an epoch that are left, one report each."""
    options, inside = run.parts.config.optim, run.state.inside
    return train_epoch(
        run.model,
        run.train.epoch(epoch, inside.examples),
        run.parts.task.loss,
        run.optimizer,
        make_schedule(options, run.steps_per_epoch, run.state.val_losses),
        run.parts.precision,
        examples=run.examples,
        batch_size=options.batch_size,
        update_freq=options.update_freq,
        clip_grad=options.clip_grad,
        ema=run.ema,
        first_example=inside.examples,
        first_step=epoch * run.steps_per_epoch + inside.steps,
        max_bad_steps=options.max_bad_steps,
        strategy=run.strategy,
    )


def _validate(run: Training, epoch: int, stop: AgreedStop) -> dict[str, Any]:
    if run.val is None:
        return {}
    if run.ema is None:
        return evaluate_split(run.parts, run.val, f"epoch {epoch} val", stop).metrics
    with run.ema.swapped_in():
        return evaluate_split(run.parts, run.val, f"epoch {epoch} val (EMA)", stop).metrics
