"""Collect the state of a training run and write it as a checkpoint.

Every checkpoint holds the weights and the progress (`_weights`, `_progress`). Those to go on from also hold what only
resuming needs: optimizer, gradient scaler, random generators (`_session`). `checkpoint-best.pth` leaves that out.

    Saver.save_epoch, save_best, save_step
        _weights, _progress, _session   collect the state; every process takes part
        _save                           the main one copies it, and training goes on
            _write                      a thread writes the copy
    Saver.settle                    waits for the thread, and tells every process what came of it
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType

import torch

from beit3_vqa.engine.checkpoint.folder import BEST, archive, epoch_file, prune, prune_steps, step_file
from beit3_vqa.engine.checkpoint.io import random_state, save_checkpoint
from beit3_vqa.engine.checkpoint.manifest import ROLLING, is_rolling
from beit3_vqa.engine.checkpoint.same_run import data_state
from beit3_vqa.engine.checkpoint.validate import Content
from beit3_vqa.engine.components import Components
from beit3_vqa.engine.optim import ModelEma
from beit3_vqa.engine.parallel import SingleProcess, full_state_dict
from beit3_vqa.engine.run_lock import require_lock
from beit3_vqa.engine.time_budget import TimeBudget
from beit3_vqa.errors import InputError
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.memory import copy_to_main, count_bytes, has_room_for

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

    def timing(self, what: str) -> AbstractContextManager[None]:
        """Return a context whose time `--max_hours` takes for that of a `validation` or a `save`, not of the steps."""
        return self.time.timing(what) if self.time else nullcontext()


@dataclass(frozen=True)
class _File:
    """A checkpoint to be written: its path, what it holds, and what the JSON beside it says."""

    path: Path
    content: Content
    about: dict[str, object]


@dataclass(frozen=True)
class _Outcome:
    """What came of writing files: for each, why it couldn't be written (empty if it was); and the seconds it took."""

    problems: list[str]
    best_failed: bool
    seconds: float


@dataclass
class Saver:
    """Write a run's checkpoints. A full disk costs one of them, not the run: training goes on to the next.

    A thread writes them from a copy in main memory, so that no step waits for a disk; with `--no_async_save`, or
    without the memory for a copy, training waits. One checkpoint at a time: `settle` waits for the one before, and
    whoever reads `problem` or the files calls it first. The end of the context waits too.

    Every process calls it, since each may hold a part of the state; the main one writes.
    """

    components: Components
    strategy: SingleProcess
    optimizer: torch.optim.Optimizer
    ema: ModelEma | None
    state: TrainState
    # The checkpoint that the run goes on from, if its name says a later place than the run's. It stays the newest until
    # another is there, and is then moved aside.
    renumbered: Path | None = None
    problem: str = ""  # why the last checkpoint couldn't be written; empty if it was

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[_Outcome] | None = None
        self._best_before: tuple[float | None, int | None] = (None, None)  # the best score before the file of this one

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown()
        # After an error the other processes may be gone, so nothing is asked of them. Done is only what was begun here.
        if self._writing is not None and self._writing.done():
            failed = self._writing.exception()
            _tell([str(failed)] if failed else self._writing.result().problems)

    @property
    def folder(self) -> Path:
        """Return the folder of the checkpoints."""
        return Path(self.components.config.run.output_dir)

    def save_epoch(self, score: float | None, improved: bool) -> None:
        """Write the checkpoint of the epoch that has just ended, and the best one if its score improved.

        An epoch that `--save_ckpt_freq` leaves out is written too, and deleted once the next one is there: a run that
        is killed loses no epoch.

        Args:
            score: of the epoch; None if nothing could be scored.
            improved: whether it is the best so far, which `state` then says; if the best checkpoint can't be written,
                `settle` takes that back.
        """
        run = self.components.config.run

        def collect() -> list[_File]:
            weights, state = self._weights(), self.state
            best = [self._best_file(weights, score)] if improved else []
            rolling = state.epoch % run.save_ckpt_freq > 0 and state.epoch < self.components.config.optim.epochs
            content = {**weights, **self._progress(), **self._session()}
            return [*best, self._file(epoch_file(self.folder, state.epoch - 1), content, score, rolling)]

        self._save(collect, lambda: prune(self.folder, run.keep_checkpoints, is_rolling))

    def save_best(self, score: float | None) -> None:
        """Write the best checkpoint inside an epoch, as `save_epoch` does at its end."""
        self._save(lambda: [self._best_file(self._weights(), score)])

    def save_step(self) -> None:
        """Write a checkpoint inside an epoch, unless `--no_save_ckpt`."""
        if not self.components.config.run.save_ckpt:
            return
        path = step_file(self.folder, self.state.epoch, self.state.inside.steps)

        def collect() -> list[_File]:
            inside = asdict(self.state.inside)
            content = {**self._weights(), **self._progress(), **self._session(), "inside_epoch": inside}
            return [self._file(path, content, None)]

        def clean_up() -> None:
            if self.renumbered and self.renumbered.name != path.name and self.renumbered.exists():
                with suppress(OSError):  # a network drive's whim costs steps after a kill, not the run
                    archive([self.renumbered], self.folder)
            self.renumbered = None
            prune_steps(self.folder)

        self._save(collect, clean_up)

    def save_where_it_is(self) -> str:
        """Save a run that is about to stop, if it isn't saved already, and return a message on how to go on."""
        self.settle()
        state = self.state
        path = epoch_file(self.folder, state.epoch - 1)
        if not state.inside.steps and state.epoch and path.exists():
            return f"{path} has everything; the same command goes on from there"
        self.save_step()
        self.settle()
        if self.problem or not self.components.config.run.save_ckpt:
            return f"nothing was saved: {self.problem or '--no_save_ckpt'}"
        path = step_file(self.folder, state.epoch, state.inside.steps)
        return f"saved {path}; the same command goes on from there"

    def settle(self) -> None:
        """Wait for the checkpoint that is being written, if there is one, and note what came of it.

        Every process must call it at the same place.
        """
        if self._writing is not None:
            with self.state.timing("save"):
                self._finish(self._writing)

    def _finish(self, writing: Future[_Outcome]) -> None:
        self._writing = None
        outcome = distributed.run_on_main(writing.result)
        self.problem = outcome.problems[-1]
        _tell(outcome.problems)
        if outcome.best_failed:
            self.state.best_score, self.state.best_epoch = self._best_before
        if self.state.time:
            self.state.time.note_save(outcome.seconds)
            self.state.time.is_writing = False

    def _best_file(self, weights: Content, score: float | None) -> _File:
        """Return the best checkpoint, and make it the best of the state."""
        state = self.state
        self._best_before = state.best_score, state.best_epoch
        state.best_score, state.best_epoch = score, state.last_epoch  # first: the file is to hold them
        # Its place in the epoch is for --resume_weights_only, which goes on from there.
        place = {"inside_epoch": asdict(state.inside)} if state.inside.steps else {}
        return self._file(self.folder / BEST, {**weights, **self._progress(), **place}, score)

    def _file(self, path: Path, content: Content, score: float | None, rolling: bool = False) -> _File:
        state = self.state
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
        return _File(path, content, about)

    def _save(self, collect: Callable[[], list[_File]], clean_up: Callable[[], None] = lambda: None) -> None:
        """Have files written while training goes on, once those before are there.

        Args:
            collect: returns the files in the order in which they are written, the best checkpoint first if it is one of
                them; every process takes part.
            clean_up: deletes what the last file makes useless, once that is there.
        """
        self.settle()
        began = time.monotonic()
        with self.state.timing("save"):
            files = collect()
            self._writing = Future()  # the other processes' own is never done: `settle` asks the main one

            def begin() -> bool:
                contents = [file.content for file in files]
                # Room for as much again, since training may grow meanwhile.
                copied = self.components.config.run.async_save and has_room_for(2 * count_bytes(contents))
                of_files = files
                if copied:
                    copies = copy_to_main(contents)
                    of_files = [replace(file, content=copy) for file, copy in zip(files, copies, strict=True)]
                self._writing = self._thread.submit(self._write, of_files, clean_up, began)
                return copied

            copied = distributed.run_on_main(begin)
            if self.state.time:
                self.state.time.is_writing = True
            if not copied:
                self._finish(self._writing)  # before the next step changes what is written

    def _write(self, files: list[_File], clean_up: Callable[[], None], began: float) -> _Outcome:
        problems: list[str] = []
        best_failed = False
        for file in files:
            # If another run has taken over the folder, this one must end.
            require_lock(self.folder)
            # Without the file of the best score, the best is what it was.
            best = dict(zip(("best_score", "best_epoch"), self._best_before, strict=True)) if best_failed else {}
            try:
                save_checkpoint(file.path, {**file.content, **best}, {**file.about, **best})
                problems.append("")
            except InputError as error:
                problems.append(str(error))
                best_failed = best_failed or file.path.name == BEST
        if not problems[-1]:
            clean_up()
        return _Outcome(problems, best_failed, time.monotonic() - began)

    def _weights(self) -> Content:
        weights = {"model": full_state_dict(self.components.model.state_dict())}
        if self.ema is None:
            return weights
        return {**weights, "model_ema": full_state_dict(self.ema.average), "model_ema_updates": self.ema.updates}

    def _progress(self) -> Content:
        state = self.state
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


def _tell(problems: list[str]) -> None:
    for problem in filter(None, problems):
        logger.warning(f"checkpoint not written: {problem} Training goes on, and the next one is tried again.")
