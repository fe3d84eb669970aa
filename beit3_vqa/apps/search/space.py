"""The space of a search: which options are tried, and which values they may have."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_vqa.config.config import GROUP_OF, GROUPS, MAX_CONFIG, SESSION_OPTIONS, option_kinds
from beit3_vqa.errors import InputError, nearest, short
from beit3_vqa.runtime.fields import get_scalar, typed
from beit3_vqa.runtime.files import read_bounded, require_names_once

# What belongs to the search as a whole.
OF_THE_SEARCH = SESSION_OPTIONS | {"output_dir", "log_dir", "max_hours"}
_OF_A_RANGE = {"low", "high", "log", "step"}


@dataclass(frozen=True)
class Range:
    """An option that may have every number between two others, both included.

    Attributes:
        name: of the option.
        low, high: the ends; integers for an option that is one.
        log: whether it is drawn on a logarithmic scale.
        step: distance between two values; None: every float, or 1 for integers.
    """

    name: str
    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def first(self) -> float:
        """Return one of the values."""
        return self.low

    def suggest(self, trial: Any) -> float:
        """Return the value that Optuna gives a trial."""
        if isinstance(self.low, int):
            number: float = trial.suggest_int(self.name, self.low, self.high, log=self.log, step=self.step or 1)
        else:
            number = trial.suggest_float(self.name, self.low, self.high, log=self.log, step=self.step)
        return number


@dataclass(frozen=True)
class Choice:
    """An option that may have one of a few values.

    Attributes:
        name: of the option.
        values: as Optuna keeps it (lists as JSON) -> as the option takes it.
    """

    name: str
    values: Mapping[object, object]

    @property
    def first(self) -> object:
        """Return one of the values."""
        return next(iter(self.values.values()))

    def suggest(self, trial: Any) -> object:
        """Return the value that Optuna gives a trial."""
        return self.values[trial.suggest_categorical(self.name, list(self.values))]


def read_space(path: Path, typed_flags: frozenset[str]) -> list[Range | Choice]:
    """Read the options to search, in the order of their names.

    Args:
        path: JSON, such as `{"lr": {"low": 1e-5, "high": 1e-3, "log": true}, "drop_path": [0.0, 0.1]}`.
        typed_flags: names of the options that are fixed on the command line.

    Raises:
        InputError: the file can't be read, or an option isn't one of a training, is fixed, or can't have the values;
            the message names file and option.
    """
    try:
        loaded = json.loads(read_bounded(path, MAX_CONFIG).decode("utf-8-sig"), object_pairs_hook=require_names_once)
    except InputError as error:
        raise InputError(f"--space: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"--space {path}: isn't JSON in UTF-8: {error}.") from error
    if not isinstance(loaded, dict) or not loaded:
        raise InputError(
            f'--space {path}: expected an object of options: {{"lr": {{"low": 1e-5, "high": 1e-3, "log": true}}, '
            '"epochs": [2, 4]}.'
        )
    kinds = option_kinds()
    found: list[Range | Choice] = []
    for name, values in sorted(loaded.items()):
        where = f"--space {path}: {name}"
        if name not in kinds:
            raise InputError(f"--space {path}: unknown option {short(name)}.{nearest(name, kinds)}")
        if name in OF_THE_SEARCH:
            raise InputError(f"{where}: is of the whole search or of one session, and can't be searched.")
        if name in typed_flags:
            raise InputError(f"{where}: is fixed on the command line too; leave one of them out.")
        read = _read_range if isinstance(values, dict) else _read_choice
        found.append(read(name, values, kinds[name], where))
    return found


def _read_range(name: str, values: dict[str, object], kind: object, where: str) -> Range:
    scalar = get_scalar(kind)
    unknown = next((key for key in values if key not in _OF_A_RANGE), None)
    if unknown is not None:
        raise InputError(f"{where}: unknown {short(unknown)}; a range has low, high, log and step.")
    if scalar not in (int, float) or isinstance(kind, type(tuple[int, ...])):
        raise InputError(f"{where}: isn't one number; give a list of values.")
    if not {"low", "high"} <= set(values):
        raise InputError(f"{where}: a range needs low and high.")
    low, high = (typed(values[end], scalar, f"{where}: {end}") for end in ("low", "high"))
    if not low < high:
        raise InputError(f"{where}: low {low:g} must be less than high {high:g}.")
    log = typed(values.get("log", False), bool, f"{where}: log")
    step = typed(values["step"], scalar, f"{where}: step") if "step" in values else None
    if log and low <= 0:
        raise InputError(f"{where}: low {low:g} must be more than 0 on a logarithmic scale.")
    if step is not None and (log or not 0 < step <= high - low):
        raise InputError(f"{where}: step {step:g} must be more than 0, at most high - low, and without log.")
    for value in (low, high):
        _check(name, value, where)
    return Range(name, low, high, log, step)


def _read_choice(name: str, values: object, kind: object, where: str) -> Choice:
    if not isinstance(values, list) or not values:
        raise InputError(f"{where}: can't be {short(values)}; give a list of values, or low and high.")
    found: dict[object, object] = {}
    for value in values:
        kept = json.dumps(value) if isinstance(value, (list, dict)) else value
        found[kept] = typed(value, kind, where)
        _check(name, found[kept], where)
    if len(found) < len(values):
        raise InputError(f"{where}: has a value twice.")
    return Choice(name, found)


def _check(name: str, value: object, where: str) -> None:
    """Raise InputError if the option may not have the value, whatever the others are."""
    try:
        GROUPS[GROUP_OF[name]](**{name: value})
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
