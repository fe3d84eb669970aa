"""Optuna's study in a folder, shared by any number of processes, each of which may be killed at any time.

Two kinds of locks make that safe. One is held while a process looks at the study and begins a trial. The other is held
for as long as a trial runs: if it is free, whoever ran the trial is dead. Both are the kernel's, which releases them
when their process ends, however it ends; SQLite needs such locks too.
"""

import fcntl
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_vqa.apps.search.options import SQLITE
from beit3_vqa.apps.search.space import Choice, Range
from beit3_vqa.errors import InputError, short
from beit3_vqa.runtime.extras import import_extra
from beit3_vqa.runtime.files import make_folder

FILES = {"sqlite": "search.db", "journal": "search.journal"}
LOCKS = "locks"
COMPLETE, PRUNED, FAIL = "COMPLETE", "PRUNED", "FAIL"  # Optuna's states
# What a trial keeps: its folder, the number of the killed one that it goes on with, its options as ours, its best
# score.
FOLDER, GOES_ON, OPTIONS, SCORE = "folder", "goes_on", "options", "score"
_ABOUT = "about"  # what all calls must have in common


def load_optuna() -> Any:
    """Import and return Optuna.

    Raises:
        InputError: it isn't installed.
    """
    optuna = import_extra("optuna", "search", "`beit3-vqa search`")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass(frozen=True)
class Begun:
    """A trial that this process is to run.

    Attributes:
        trial: Optuna's.
        values: option -> value.
        folder: name of its folder.
        continues: whether it goes on with a trial that was killed.
    """

    trial: Any
    values: dict[str, object]
    folder: str
    continues: bool


class SharedStudy:
    """A study in a folder.

    Args:
        folder: of the search.
        storage: a key of `FILES`.
        about: what must be the same in every call, as plain data.
        seed: from which trials are drawn.

    Raises:
        InputError: the folder holds another search.
    """

    def __init__(self, folder: Path, storage: str, about: Mapping[str, object], seed: int):
        self.optuna, self.folder, self.seed = load_optuna(), folder, seed
        self.states = self.optuna.trial.TrialState
        other = next((file for name, file in FILES.items() if name != storage and (folder / file).exists()), None)
        if other:
            raise InputError(f"--output_dir {folder}: holds the search {other}; give the --storage of that one.")
        make_folder(folder / LOCKS)
        with _locked(self.folder / LOCKS / "study"):
            self.study = self.optuna.create_study(
                study_name="search",
                storage=self._open(storage),
                direction="maximize",
                pruner=self.optuna.pruners.MedianPruner(),
                load_if_exists=True,
            )
            ours: dict[str, object] = json.loads(json.dumps(about))
            before = self.study.user_attrs.get(_ABOUT)
            if before is None:
                self.study.set_user_attr(_ABOUT, ours)
        if before not in (None, ours):
            names = sorted(name for name in before.keys() | ours.keys() if before.get(name) != ours.get(name))
            told = [f"{n}: {short(before.get(n))} there, {short(ours.get(n))} here" for n in names]
            raise InputError.of_problems(
                f"--output_dir {folder}: holds a search with other options (None: not given):",
                told,
                "Give this one a folder of its own.",
            )

    def _open(self, storage: str) -> Any:
        path = (self.folder / FILES[storage]).absolute()
        storages = self.optuna.storages
        if storage != SQLITE:
            return storages.JournalStorage(storages.journal.JournalFileBackend(str(path)))
        address = importlib.import_module("sqlalchemy").URL.create("sqlite", database=str(path))
        # Another process may be writing.
        return storages.RDBStorage(
            address.render_as_string(hide_password=False), engine_kwargs={"connect_args": {"timeout": 60}}
        )

    def trials(self) -> list[Any]:
        """Return all trials but those that another one goes on with, in order of their numbers."""
        trials = self.study.get_trials(deepcopy=False)
        replaced = {trial.user_attrs[GOES_ON] for trial in trials if GOES_ON in trial.user_attrs}
        return [trial for trial in trials if trial.number not in replaced]

    def ended(self) -> list[Any]:
        """Return the trials that have ended by themselves."""
        return [trial for trial in self.trials() if trial.state.is_finished()]

    @contextmanager
    def begin(self, most: int, space: Sequence[Range | Choice], hours_left: float | None) -> Iterator[Begun | None]:
        """Begin a trial, and hold its lock inside the context; None if there is none left to begin.

        Trials whose process is dead are marked as failed first; another goes on with the same options and folder.

        Args:
            most: how many trials may end in sum.
            space: what to draw.
            hours_left: for this process; None: no limit.
        """
        with ExitStack() as lock:
            with _locked(self.folder / LOCKS / "study"):
                self._replace_dead()
                begun = self._ask(space) if self._may_begin(most, hours_left) else None
                if begun:
                    # Before another process can look: a trial that runs and isn't locked is dead.
                    lock.enter_context(_locked(self._lock_file(begun.trial.number)))
            yield begun

    def _lock_file(self, number: int) -> Path:
        return self.folder / LOCKS / f"trial-{number}"

    def _replace_dead(self) -> None:
        running = [trial.number for trial in self.trials() if trial.state == self.states.RUNNING]
        unlocked = {number for number in running if _is_free(self._lock_file(number))}
        # Read anew: a trial's state is written before its lock goes, so whatever has ended meanwhile isn't running now.
        for trial in self.trials():
            if trial.state == self.states.RUNNING and trial.number in unlocked:
                kept = {GOES_ON: trial.number, FOLDER: trial.user_attrs.get(FOLDER)}
                self.study.enqueue_trial(trial.params, user_attrs=kept)
                self.study.tell(trial.number, state=self.states.FAIL)

    def _may_begin(self, most: int, hours_left: float | None) -> bool:
        trials = self.trials()
        if sum(trial.state != self.states.WAITING for trial in trials) >= most:
            return False
        took = [t.duration.total_seconds() for t in trials if t.state == self.states.COMPLETE and t.duration]
        return hours_left is None or max(took, default=0.0) < hours_left * 3600

    def _ask(self, space: Sequence[Range | Choice]) -> Begun:
        everything = self.study.get_trials(deepcopy=False)
        # Each trial has a seed of its own: two processes with the same one would draw the same options.
        seed = (self.seed * 1_000_003 + len(everything)) % 2**32
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed)
        trial = self.study.ask()
        values = {dimension.name: dimension.suggest(trial) for dimension in space}
        trial.set_user_attr(OPTIONS, values)
        before = trial.user_attrs.get(GOES_ON)
        folder = trial.user_attrs.get(FOLDER)
        if folder is None:  # new, or its process was killed before it had one
            taken = {t.user_attrs.get(FOLDER) for t in everything} - {None}
            folder = f"trial-{len(taken)}"
            trial.set_user_attr(FOLDER, folder)
        if before is not None:
            for step, score in everything[before].intermediate_values.items():
                trial.report(score, step)
        return Begun(trial, values, folder, before is not None)

    def end(self, begun: Begun, state: str, score: float | None = None, **kept: str | int | None) -> None:
        """End a trial.

        Args:
            begun: the trial.
            state: `COMPLETE`, `PRUNED` (ended early) or `FAIL`.
            score: its best one; None: it failed.
            kept: what else to keep with it.
        """
        for name, value in {SCORE: score, **kept}.items():
            begun.trial.set_user_attr(name, value)
        self.study.tell(begun.trial, score if state == COMPLETE else None, state=self.states[state])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, once it is free."""
    with path.open("ab") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _is_free(path: Path) -> bool:
    """Return whether no process holds the lock of a file; this process must not hold it."""
    with path.open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True
