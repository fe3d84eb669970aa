"""A training run from epoch to epoch: train, validate, save, log."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from beit3_vqa.assemble import Parts
from beit3_vqa.config import write_config
from beit3_vqa.data.index import TOKENIZER_FILE
from beit3_vqa.data.loader import BatchLoader
from beit3_vqa.engine.checkpoint import (
    BEST,
    epoch_file,
    prune_checkpoints,
    random_state,
    save_checkpoint,
    set_later_epochs_aside,
    set_previous_run_aside,
)
from beit3_vqa.engine.optim import ModelEma, make_optimizer, make_schedule
from beit3_vqa.engine.train import StepReport, steps_per_epoch, train_epoch
from beit3_vqa.errors import InputError
from beit3_vqa.evaluation import evaluate_split
from beit3_vqa.files import make_folder
from beit3_vqa.output.logging import Progress, RunLog, peak_memory

SCALAR_STEPS = 50  # optimizer steps between TensorBoard points


@dataclass
class TrainState:
    """Where a training run stands, beyond weights and optimizer."""

    epoch: int = 0  # the next one
    best_score: float | None = None
    best_epoch: int | None = None
    val_losses: list[float] = field(default_factory=list)  # of the epochs done, which --sched plateau follows
    resumed_from: str = ""  # the checkpoint in another folder that this run began with


@dataclass
class Training:
    """A training run with everything it needs from step to step."""

    parts: Parts
    train: BatchLoader
    val: BatchLoader | None
    optimizer: torch.optim.Optimizer
    ema: ModelEma | None
    resumed_in: Path | None = None  # folder of the checkpoint that it goes on from
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
    val_loader = parts.loader("val") if "val" in parts.task.splits() else None
    if val_loader is None:
        print("no val split: nothing to choose the best epoch by, the last one counts as the best")
        if config.optim.sched == "plateau":
            print("--sched plateau has no validation loss to follow: the learning rate stays as it is")
    optimizer = make_optimizer(parts.model, config.optim)
    return Training(parts, train_loader, val_loader, optimizer, make_ema(parts) if config.optim.model_ema else None)


def make_ema(parts: Parts) -> ModelEma:
    """A moving average that begins with the model's weights."""
    options = parts.config.optim
    return ModelEma(parts.model, options.model_ema_decay, "cpu" if options.model_ema_force_cpu else None)


def train_epochs(run: Training) -> TrainState:
    """Trains to the end of the session, leaving checkpoints, logs and config.json in the output folder."""
    config, state = run.parts.config, run.state
    folder = Path(config.run.output_dir)
    if state.epoch >= config.optim.epochs:
        print(f"nothing left to train: {state.epoch} of {config.optim.epochs} epochs are done; raise --epochs for more")
        return state
    log_dir = Path(config.run.log_dir or folder / "tensorboard")
    _check_places(folder, log_dir)
    make_folder(folder)
    if run.resumed_in is None or run.resumed_in.resolve() != folder.resolve():
        state.best_score = state.best_epoch = None  # that best epoch's checkpoint lies elsewhere
        aside = set_previous_run_aside(folder)
        if aside:
            print(f"{folder} held another run; its files are now in {aside}")
    else:
        aside = set_later_epochs_aside(folder, state.epoch)
        if aside:
            print(f"epochs from {state.epoch} on are trained again; their earlier checkpoints are now in {aside}")
    write_config(config, folder / "config.json")
    run.parts.family.keep_beside(run.parts.processor, folder)
    log = RunLog(folder, log_dir, state.epoch, state.epoch * run.steps_per_epoch)
    end = run.end_epoch
    try:
        for epoch in range(state.epoch, end):
            _train_one(run, epoch, log, last=epoch + 1 == end)
    finally:
        log.close()
    if end < config.optim.epochs:
        print(f"stopped after epoch {end - 1} as asked; the same command goes on from there")
    return state


def _check_places(folder: Path, log_dir: Path) -> None:
    """InputError where something stands in the way of what a run writes, before it writes anything."""
    in_the_way = [name for name in ("config.json", "log.txt", TOKENIZER_FILE, BEST) if (folder / name).is_dir()]
    if in_the_way:
        raise InputError(f"{folder / in_the_way[0]} is a folder where a file is to be written; move it away.")
    make_folder(log_dir)


def _train_one(run: Training, epoch: int, log: RunLog, *, last: bool) -> None:
    """An epoch: train, evaluate, save, log."""
    parts, state, config = run.parts, run.state, run.parts.config
    values = _run_steps(run, epoch, log)
    metrics = _validate(run, epoch)
    score = metrics.get(parts.task.best_metric)
    improved = score is None or state.best_score is None or score > state.best_score
    state.epoch = epoch + 1
    state.val_losses += [metrics["loss"]] if "loss" in metrics else []
    if improved:
        state.best_score, state.best_epoch = score, epoch
    step = (epoch + 1) * run.steps_per_epoch
    if score is not None:
        log.scalars({f"val/{parts.task.best_metric}": score}, step)
        best = f"best {state.best_score:.2f}, epoch {state.best_epoch}"
        print(f"epoch {epoch}: val {parts.task.best_metric} {score:.2f} ({best})")
    # Before the checkpoint: a line too many is dropped when the run resumes, one that is missing stays missing.
    log.epoch({"epoch": epoch, **values, **{f"val_{name}": value for name, value in metrics.items()}})
    if config.run.save_ckpt:
        _save(run, epoch, improved, last)


def _run_steps(run: Training, epoch: int, log: RunLog) -> dict[str, float]:
    config, device = run.parts.config, run.parts.precision.device
    progress = Progress(f"epoch {epoch}/{config.optim.epochs}", run.examples, config.run.log_interval)
    loss_sum, counted, bad = (torch.zeros((), device=device) for _ in range(3))
    last: StepReport | None = None
    for last in steps(run, epoch):
        finite = torch.isfinite(last.loss)
        loss_sum += torch.where(finite, last.loss * last.examples, 0.0)
        counted += finite * last.examples
        bad += last.bad
        if last.step % SCALAR_STEPS == 0 or last.step % run.steps_per_epoch == 0:
            values = {"train/loss": last.loss.item(), "train/lr": last.lr, "train/grad_norm": last.grad_norm.item()}
            log.scalars({**values, "train/examples_per_second": progress.speed()}, last.step)
        progress.update(last.examples, lambda report=last: _shown(report, device))  # type: ignore[misc]
    progress.close()
    values = {"train_loss": loss_sum.item() / max(1.0, counted.item()), "train_lr": last.lr if last else 0.0}
    if bad:
        print(f"epoch {epoch}: {bad.item():.0f} steps were skipped, since their gradient wasn't finite")
        values["skipped_steps"] = bad.item()
    return {**values, "examples_per_second": progress.speed()}


def _shown(report: StepReport, device: torch.device) -> dict[str, str]:
    return {"loss": f"{report.loss.item():.4f}", "lr": f"{report.lr:.2e}", "memory": peak_memory(device)}


def steps(run: Training, epoch: int) -> Iterator[StepReport]:
    """The optimizer steps of an epoch, one report each."""
    options = run.parts.config.optim
    return train_epoch(
        run.parts.model,
        run.train.epoch(epoch),
        run.parts.task.loss,
        run.optimizer,
        make_schedule(options, run.steps_per_epoch, run.state.val_losses),
        run.parts.precision,
        examples=run.examples,
        batch_size=options.batch_size,
        update_freq=options.update_freq,
        clip_grad=options.clip_grad,
        ema=run.ema,
        first_step=epoch * run.steps_per_epoch,
        max_bad_steps=options.max_bad_steps,
    )


def _validate(run: Training, epoch: int) -> dict[str, Any]:
    if run.val is None:
        return {}
    if run.ema is None:
        return evaluate_split(run.parts, run.val, f"epoch {epoch} val").metrics
    with run.ema.swapped_into(run.parts.model):
        return evaluate_split(run.parts, run.val, f"epoch {epoch} val (EMA)").metrics


def _save(run: Training, epoch: int, improved: bool, last: bool) -> None:
    config, state = run.parts.config, run.state
    folder = Path(config.run.output_dir)
    content: dict[str, Any] = {
        "model": run.parts.model.state_dict(),
        "epoch": epoch,
        "args": config.flat(),
        "best_score": state.best_score,
        "best_epoch": state.best_epoch,
        "val_losses": list(state.val_losses),
        "task_state": run.parts.task.state(),
        **run.parts.family.checksums(run.parts.model, run.parts.processor),
    }
    if state.resumed_from:
        content["resumed_from"] = state.resumed_from
    if run.ema is not None:
        content["model_ema"] = run.ema.state_dict()
    if improved:
        save_checkpoint(folder / BEST, content)
    if last or (epoch + 1) % config.run.save_ckpt_freq == 0:
        content["optimizer"] = run.optimizer.state_dict()
        content["scaler"] = run.parts.precision.scaler.state_dict()
        content["random_state"] = random_state()
        save_checkpoint(epoch_file(folder, epoch), content)
        prune_checkpoints(folder, config.run.keep_checkpoints)
