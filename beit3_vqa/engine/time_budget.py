"""Keep to `--max_hours`: measure what steps, validations and saves take, and plan at which step a run ends.

A plan is one number: the last optimizer step of the run. The learning rate walks through the schedule of all `--epochs`
in that many steps, so it comes to its end there. Elapsed time never enters the rate itself: it would be another one in
each run, and in a run that goes on. Checkpoints keep the plan, and a new one is saved at once; so a run that goes on
takes the same steps with the same rates as if it hadn't been interrupted.

The clock is looked at after 16, 64, 256, ... steps of a session and at the end of each epoch. A new plan is made only
there, and only if it differs by more than a twentieth of what is left. With several processes the main one decides.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from beit3_vqa.engine.logging import format_seconds
from beit3_vqa.errors import plural

logger = logging.getLogger(__name__)

now = time.monotonic  # seconds; tests put a clock of their own here
WARM_UP = 4  # steps of a session that aren't measured: they are slower
FIRST_LOOK = 16  # steps of a session before the first look; each later one comes after four times as many
MARGIN = 0.97  # share of the time left that a plan uses
DEVIATION = 0.05  # share of the steps left by which a new plan must differ


@dataclass(frozen=True)
class Work:
    """What a run has to do.

    Attributes:
        epochs: of the run.
        steps: optimizer steps in an epoch.
        validations: in an epoch.
        saves: of checkpoints in an epoch.
        validation_in_steps: examples of a validation, over those of a step: how long it takes as long as none was
            measured. Without gradients it is rather less.
    """

    epochs: int
    steps: int
    validations: int
    saves: int
    validation_in_steps: float

    @property
    def total(self) -> int:
        """Return the optimizer steps of all epochs."""
        return self.epochs * self.steps


@dataclass
class Kept:
    """What checkpoints keep of the time.

    Attributes:
        hours: `--max_hours`, for which the plan was made.
        seconds: used by all sessions up to the checkpoint.
        last_step: the plan; 0: there is time for all epochs, or no plan yet.
        steps_per_epoch: of the run that made the plan.
        step, validation, save: seconds that one takes; 0: not measured yet.
    """

    hours: float
    seconds: float = 0.0
    last_step: int = 0
    steps_per_epoch: int = 0
    step: float = 0.0
    validation: float = 0.0
    save: float = 0.0


@dataclass
class TimeBudget:
    """The time that a run may take, over all of its sessions.

    Attributes:
        hours: `--max_hours`.
        kept: what the checkpoints keep; its `seconds` are those of earlier sessions.
        started: when this session began.
        steps: of this session.
        is_up: whether the run ends because no time is left; the same in every process.
        is_writing: whether a checkpoint is being written while training goes on.
    """

    hours: float
    kept: Kept = field(init=False)
    started: float = field(default_factory=lambda: now())
    steps: int = 0
    is_up: bool = False
    is_writing: bool = False

    def __post_init__(self) -> None:
        self.hours = float(self.hours)  # checkpoints keep it, and check its type
        self.kept = Kept(self.hours)
        self._longest_wait = 0.0  # of this session, for a save
        self._beside = 0.0  # seconds of this session that validations and saves took
        self._mark: tuple[int, float, float] | None = None  # steps, time and `_beside` since which steps are measured

    @property
    def used(self) -> float:
        """Return the seconds used so far, over all sessions."""
        return self.kept.seconds + now() - self.started

    @property
    def no_time_left(self) -> bool:
        """Return whether there is time for a last save only, and for the one that is being written."""
        return self.used + (1 + self.is_writing) * self.kept.save >= 3600 * self.hours

    def state(self) -> dict[str, object]:
        """Return what a checkpoint keeps."""
        return {**asdict(self.kept), "seconds": self.used}

    def restore(self, state: dict[str, Any], steps_per_epoch: int) -> None:
        """Take over what a checkpoint kept; a plan that counts steps of another size is dropped."""
        self.kept = Kept(**state)
        if self.kept.steps_per_epoch != steps_per_epoch:
            self.kept.last_step, self.kept.steps_per_epoch, self.kept.step = 0, 0, 0.0

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Return a context that lasts as long as a `validation` or a `save` does."""
        began = now()
        yield
        seconds = now() - began
        self._beside += seconds
        if what == "save":
            self._longest_wait = max(self._longest_wait, seconds)
            self.note_save(seconds)
        else:
            self.kept.validation = seconds

    def note_save(self, seconds: float) -> None:
        """Note how long a save took, whether training waited for it or not."""
        # Saves differ (one file or two), and a plan is to be kept: the longest counts. A validation is like the last.
        self.kept.save = max(self.kept.save, seconds)

    def count_step(self) -> bool:
        """Count an optimizer step of this session; return whether it is time to look at the clock."""
        self.steps += 1
        if self.steps == WARM_UP:
            self._mark = self.steps, now(), self._beside
        look = FIRST_LOOK
        while look < self.steps:
            look *= 4
        return look == self.steps

    def measure(self) -> None:
        """Measure the seconds a step since the last look, if there were enough of them."""
        if self._mark is None or self.steps - self._mark[0] < FIRST_LOOK - WARM_UP:
            return
        steps, since, beside = self._mark
        self.kept.step = (now() - since - (self._beside - beside)) / (self.steps - steps)
        self._mark = self.steps, now(), self._beside

    def plan(self, step: int, work: Work) -> int:
        """Return the step at which the run is to end, at most the last of all epochs.

        Args:
            step: optimizer steps done since the start of the run.
            work: what there is to do.
        """
        kept = self.kept
        validation = kept.validation or kept.step * work.validation_in_steps
        # Training may wait for a copy only, while a thread writes it.
        each = kept.step + (work.validations * validation + work.saves * (self._longest_wait or kept.save)) / work.steps
        # The run ends with a validation and a save; another save may be about to begin.
        left = MARGIN * (3600 * self.hours - self.used - validation - 2 * kept.save)
        return min(work.total, step + max(0, int(left / max(each, 1e-9))))

    def plan_anew(self, step: int, work: Work) -> bool:
        """Make a plan if there is none or if it no longer holds; return whether it is another one than before."""
        kept = self.kept
        if not kept.step:  # nothing is measured yet
            return False
        before = min(kept.last_step or work.total, work.total)
        planned, none_holds = self.plan(step, work), not kept.steps_per_epoch or kept.hours != self.hours
        if none_holds or abs(planned - before) > max(1, DEVIATION * (before - step)):
            kept.last_step = planned if planned < work.total else 0
            kept.steps_per_epoch, kept.hours = work.steps, self.hours
            logger.info(f"--max_hours {self.hours:g}: {self.describe(work)}")
            return planned != before
        return False

    def describe(self, work: Work) -> str:
        """Return the plan in words."""
        kept = self.kept
        speed = f"{kept.step:.3g} s a step"
        speed += f" and {kept.validation:.3g} s a validation" if kept.validation else ""
        if not kept.last_step:
            return f"at {speed} there is time for all {plural(work.epochs, 'epoch')}"
        return (
            f"at {speed} training is to end after {self.in_epochs(kept.last_step, work)}, at step {kept.last_step}, "
            f"and the learning rate comes to its end there; {format_seconds(self.used)} used so far"
        )

    def in_epochs(self, step: int, work: Work) -> str:
        """Return how many of the epochs are done at a step, in words."""
        return f"{step / work.steps:.2f} of {plural(work.epochs, 'epoch')}"
