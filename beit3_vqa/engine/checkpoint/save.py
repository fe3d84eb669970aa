"""Collect the state of a training run and write it as a checkpoint.

Every checkpoint holds the weights and the progress (`_weights`, `_progress`). Those to go on from also hold what only
resuming needs: optimizer, gradient scaler, random generators (`_session`). `checkpoint-best.pth` leaves that out.
"""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from beit3_vqa.engine.build import Components
from beit3_vqa.engine.checkpoint.folder import BEST, epoch_file, prune, prune_steps, step_file
from beit3_vqa.engine.checkpoint.io import random_state, save_checkpoint
from beit3_vqa.engine.checkpoint.manifest import ROLLING, is_rolling
from beit3_vqa.engine.checkpoint.same_run import data_state
from beit3_vqa.engine.checkpoint.validate import Content
from beit3_vqa.engine.optim import ModelEma
from beit3_vqa.engine.parallel import SingleProcess, full_state_dict
from beit3_vqa.engine.run_lock import require_lock
from beit3_vqa.engine.time_budget import TimeBudget
from beit3_vqa.errors import InputError
from beit3_vqa.runtime import distributed

logger = logging.getLogger(__name__)


@dataclass
class InsideEpoch:
    """How far an epoch has come, and the sums that its averages are made of.

    Attributes:
        steps: optimizer steps done.
        examples: examples done, over all processes.
        loss_sum: sum of the losses of the examples whose loss was finite.
        counted: number of those examples.
        bad: steps that were skipped since their gradient wasn't finite.
        lr: learning rate of the last step.
        order: what decides the order of the epoch's examples; if it has changed, the epoch must begin again.
        validated: of `examples`, those that were done at the epoch's last validation by `--eval_steps`.
    """

    steps: int = 0
    examples: int = 0
    loss_sum: float = 0.0
    counted: float = 0.0
    bad: float = 0.0
    lr: float = 0.0
    order: dict[str, object] = field(default_factory=dict)
    validated: int = 0


@dataclass
class TrainState:
    """Where a training run stands, beyond weights and optimizer."""

    epoch: int = 0  # the one being trained, or the next
    inside: InsideEpoch = field(default_factory=InsideEpoch)
    best_score: float | None = None
    best_epoch: int | None = None
    waited: int = 0  # validations since the best score, which --patience counts
    val_losses: list[float] = field(default_factory=list)  # of the validations done, which --sched plateau follows
    resumed_from: str = ""  # the checkpoint in another folder that this run began with
    time: TimeBudget | None = None  # with --max_hours
    over: str = ""  # why there is nothing left to train; empty if there is

    @property
    def last_epoch(self) -> int:
        """Return the epoch of the last step."""
        return self.epoch if self.inside.steps else self.epoch - 1


@dataclass
class Saver:
    """Write a run's checkpoints. A full disk costs one of them, not the run: training goes on to the next.

    Every process calls it, since each may hold a part of the state; the main one writes.
    """

    components: Components
    strategy: SingleProcess
    optimizer: torch.optim.Optimizer
    ema: ModelEma | None
    problem: str = ""  # why the last checkpoint couldn't be written; empty if it was

    @property
    def folder(self) -> Path:
        """Return the folder of the checkpoints."""
        return Path(self.components.config.run.output_dir)

    def save_epoch(self, state: TrainState, score: float | None, improved: bool) -> None:
        """Write the checkpoint of the epoch that has just ended, and the best one if its score improved.

        An epoch that `--save_ckpt_freq` leaves out is written too, and deleted once the next one is there: a run that
        is killed loses no epoch.

        Args:
            state: after the epoch. Its best score is set here, and only if the best checkpoint could be written.
            score: of the epoch; None if nothing could be scored.
            improved: whether it is the best so far.
        """
        epoch, run = state.epoch - 1, self.components.config.run
        weights = self._weights()
        if improved:
            self._write_best(weights, state, score)
        rolling = state.epoch % run.save_ckpt_freq > 0 and state.epoch < self.components.config.optim.epochs
        content = {**weights, **self._progress(state), **self._session()}
        written = self._write(epoch_file(self.folder, epoch), content, state, score, rolling)
        if written and distributed.is_main():
            prune(self.folder, run.keep_checkpoints, is_rolling)

    def save_best(self, state: TrainState, score: float | None) -> None:
        """Write the best checkpoint inside an epoch, as `save_epoch` does at its end."""
        self._write_best(self._weights(), state, score)

    def _write_best(self, weights: Content, state: TrainState, score: float | None) -> None:
        before = state.best_score, state.best_epoch
        state.best_score, state.best_epoch = score, state.last_epoch  # first: the file is to hold them
        # Its place in the epoch is for --resume_weights_only, which goes on from there.
        place = {"inside_epoch": asdict(state.inside)} if state.inside.steps else {}
        if not self._write(self.folder / BEST, {**weights, **self._progress(state), **place}, state, score):
            state.best_score, state.best_epoch = before

    def save_step(self, state: TrainState) -> Path | None:
        """Write a checkpoint inside an epoch; return its path, or None if it wasn't written (error, --no_save_ckpt)."""
        if not self.components.config.run.save_ckpt:
            return None
        path = step_file(self.folder, state.epoch, state.inside.steps)
        content = {**self._weights(), **self._progress(state), **self._session(), "inside_epoch": asdict(state.inside)}
        if not self._write(path, content, state, None):
            return None
        if distributed.is_main():
            prune_steps(self.folder)
        return path

    def save_where_it_is(self, state: TrainState) -> str:
        """Save a run that is about to stop, if it isn't saved already, and return a message on how to go on."""
        last = epoch_file(self.folder, state.epoch - 1)
        if not state.inside.steps and state.epoch and last.exists():
            return f"{last} has everything; the same command goes on from there"
        path = self.save_step(state)
        if path is None:
            return f"nothing was saved: {self.problem or '--no_save_ckpt'}"
        return f"saved {path}; the same command goes on from there"

    def _weights(self) -> Content:
        weights = {"model": full_state_dict(self.components.model.state_dict())}
        return weights if self.ema is None else {**weights, "model_ema": full_state_dict(self.ema.state_dict())}

    def _progress(self, state: TrainState) -> Content:
        content: Content = {
            "args": self.components.config.flat(self.components.found),
            "processes": distributed.world_size(),
            "best_score": state.best_score,
            "best_epoch": state.best_epoch,
            "waited": state.waited,
            "task_state": self.components.task.state(),
            "val_losses": list(state.val_losses),
            **data_state(self.components),
            **self.components.family.fingerprints(self.components.model, self.components.processor),
        }
        if state.epoch:  # upstream's meaning: the last one that is done
            content["epoch"] = state.epoch - 1
        if state.time:
            content["time"] = state.time.state()
        if state.resumed_from:
            content["resumed_from"] = state.resumed_from
        return content

    def _session(self) -> Content:
        """Return the entries that only resuming needs."""
        states = distributed.all_gather(random_state())  # each process has generators of its own
        return {
            "optimizer": self.strategy.optimizer_state(self.optimizer),
            "scaler": self.components.precision.scaler_state(),
            "random_state": states[0],
            **({"random_states": states} if len(states) > 1 else {}),
        }

    def _write(
        self, path: Path, content: Content, state: TrainState, score: float | None, rolling: bool = False
    ) -> bool:
        about: dict[str, object] = {
            **({ROLLING: True} if rolling else {}),
            "epoch": state.last_epoch,
            "steps_in_epoch": state.inside.steps or None,
            "score": score,
            "best_score": state.best_score,
            "best_epoch": state.best_epoch,
            "processes": distributed.world_size(),
            "config": self.components.config.to_dict(self.components.found),
        }
        # Outside the `try`: if another run has taken over the folder, this one must end.
        distributed.run_on_main(lambda: require_lock(self.folder))
        try:
            distributed.run_on_main(lambda: save_checkpoint(path, content, about))
        except InputError as error:
            self.problem = str(error)
            logger.warning(f"checkpoint not written: {error} Training goes on, and the next one is tried again.")
            return False
        self.problem = ""
        return True
