"""The settled options of one run, and their JSON form: config.json in every output folder."""

import dataclasses
import json
import math
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from beit3_vqa.config.options import (
    AUTO,
    LOGGERS,
    ComputeConfig,
    DataConfig,
    InitConfig,
    ModelConfig,
    OptimConfig,
    RunOptions,
    TaskConfig,
)
from beit3_vqa.config.sources import Sources
from beit3_vqa.errors import InputError, nearest
from beit3_vqa.runtime.fields import Options, typed
from beit3_vqa.runtime.files import is_text, read_json, write_text

NOTHING: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True)
class RunConfig:
    """All options of a run, settled: `config.resolve` makes it, and nobody changes it.

    Attributes:
        model, init, data, optim, of_task, compute, run: the options by group.
        given: names of the options that the user gave, in any way.
        typed_flags: names of those that were typed on the command line.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    of_task: TaskConfig = field(default_factory=TaskConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    run: RunOptions = field(default_factory=RunOptions)
    given: frozenset[str] = frozenset()
    typed_flags: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        _check(self)

    def to_dict(self, found: Mapping[str, object] = NOTHING) -> dict[str, dict[str, object]]:
        """Return the JSON form, one object per group.

        Args:
            found: values that were found out later (flat), such as the batch size for `auto`; they replace options.
        """
        return {
            group: dataclasses.asdict(getattr(self, group)) | {n: v for n, v in found.items() if GROUP_OF[n] == group}
            for group in GROUPS
        }

    def flat(self, found: Mapping[str, object] = NOTHING) -> dict[str, object]:
        """Return option name -> value over all groups; values in `found` replace options."""
        return {name: value for group in self.to_dict(found).values() for name, value in group.items()}

    def num_workers(self, beside_model: bool) -> int:
        """Return the number of a data loader's processes.

        Args:
            beside_model: the model runs on the CPU too, so that half of the cores are left for it.
        """
        if self.data.num_workers is not None:
            return self.data.num_workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(10, max(1, cores // 2) if beside_model else cores)

    @property
    def loggers(self) -> tuple[str, ...]:
        """Return the names in `--log_with`, each once."""
        return tuple(dict.fromkeys(name.strip() for name in self.run.log_with.split(",") if name.strip()))

    @property
    def sources(self) -> Sources:
        """Return the folders of `--data_path`, and how they are used."""
        return Sources.of(self.data)

    def of_source(self, number: int) -> "RunConfig":
        """Return the options with which a task is set up on one of several sources.

        What speaks of certain rows (`--fold`, `--submission_like`) is only for the source that is validated on.
        """
        sources = self.sources
        if len(sources.folders) < 2:
            return self
        is_main = number == sources.main
        data = dataclasses.replace(
            self.data,
            data_path=sources.folders[number],
            image_root=sources.image_roots[number],
            mix="",
            val_from="",
            fold=self.data.fold if is_main else None,
        )
        run = dataclasses.replace(self.run, submission_like=self.run.submission_like if is_main else "")
        return dataclasses.replace(self, data=data, run=run)

    @property
    def temperature(self) -> float | None:
        """Return the number of `--temperature`; None if it is to be fitted, or read from beside the checkpoint."""
        return float(self.run.temperature) if self.run.temperature not in ("", FIT) else None


FIT = "fit"  # a value of --temperature
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 1000
MAX_CONFIG = 1_000_000  # bytes of config.json
GROUPS: dict[str, type[Options]] = {
    "model": ModelConfig,
    "init": InitConfig,
    "data": DataConfig,
    "optim": OptimConfig,
    "of_task": TaskConfig,
    "compute": ComputeConfig,
    "run": RunOptions,
}
GIVEN = "given"  # in config.json: names of the options that the user gave
# What a command asks of one session only: config.json leaves it out, so that it can be used for any other session.
SESSION_OPTIONS = frozenset(
    {
        "eval",
        "split",
        "tta",
        "blind",
        "temperature",
        "submission_like",
        "resume",
        "auto_resume",
        "resume_weights_only",
        "data_changed",
        "trust_checkpoint",
        "stop_after_epochs",
        "dry_run",
    }
)
GROUP_OF = {f.name: group for group, cls in GROUPS.items() for f in dataclasses.fields(cls)}
DEFAULT_OF = {f.name: f.default for cls in GROUPS.values() for f in dataclasses.fields(cls)}


def option_fields() -> list[tuple[str, dataclasses.Field[Any], Any]]:
    """List (group, field, resolved type) of every option, in the order of `--help`."""
    return [
        (group, f, typing.get_type_hints(cls)[f.name]) for group, cls in GROUPS.items() for f in dataclasses.fields(cls)
    ]


def option_kinds() -> dict[str, object]:
    """Return the resolved type of every option by its name."""
    return {f.name: kind for _, f, kind in option_fields()}


def write_config(config: RunConfig, path: Path, found: Mapping[str, object] = NOTHING) -> None:
    """Write config.json, whole or not at all, without the options of one session.

    Args:
        config: the options.
        path: the file.
        found: values that were found out later, by option name; they replace options.
    """
    groups = config.to_dict(found)
    groups["run"] = {name: value for name, value in groups["run"].items() if name not in SESSION_OPTIONS}
    given = {GIVEN: sorted(config.given - SESSION_OPTIONS)}  # for people: all others are defaults
    write_text(path, json.dumps({**groups, **given}, indent=2, ensure_ascii=False) + "\n")


def read_config_values(path: str | Path) -> dict[str, object]:
    """Read a config.json and return option name -> value; options may stand in their groups or outside.

    Raises:
        InputError: no such file, not JSON, an unknown option, or a value of the wrong type.
    """
    try:
        loaded = read_json(Path(path), MAX_CONFIG)
    except InputError as error:
        raise InputError(f"--config: {error}") from error
    if not isinstance(loaded, dict):
        raise InputError(f"--config {path}: expected an object of options.")
    loaded.pop(GIVEN, None)
    values: dict[str, object] = {}
    for name, value in loaded.items():
        values |= value if name in GROUPS and isinstance(value, dict) else {name: value}
    types = option_kinds()
    for name, value in values.items():
        if name not in types:
            raise InputError(f"--config {path}: unknown option {name!r}.{nearest(name, types)}")
        if name == "batch_size" and type(value) is int and value == 0:
            value = AUTO  # version 0.1.0 wrote it as 0
        values[name] = typed(value, types[name], f"--config {path}: {name}")
    return values


def _check(config: RunConfig) -> None:
    """Raise InputError if options contradict each other; each option's own limits are checked by its group."""
    values = config.flat()
    for name, value in values.items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not is_text(text):
                raise InputError(f"--{name} {text!r}: isn't text in UTF-8. Is a file or folder named so? Rename it.")
    for name, is_given in (("mix", config.sources.shares), ("hard_examples", config.data.hard_examples)):
        if is_given and config.data.balance_answers:
            raise InputError(f"--balance_answers and --{name} both say how often a row is drawn; give one of them.")
    if not config.optim.min_lr <= config.optim.lr:
        raise InputError(
            f"--min_lr {config.optim.min_lr:g} is above --lr {config.optim.lr:g}, where it begins; lower it."
        )
    if len(config.optim.opt_betas) != 2 or not all(0 <= beta < 1 for beta in config.optim.opt_betas):
        raise InputError("--opt_betas: give two numbers from 0 up to, not including, 1.")
    if config.optim.opt == "muon" and config.compute.strategy != "ddp":
        raise InputError("--opt muon needs whole matrices in every process: take --strategy ddp.")
    for name in ("tta", "blind", "temperature", "submission_like"):
        if not config.run.eval and values[name] != getattr(RunOptions(), name):
            raise InputError(f"--{name}: belongs to --eval, which evaluates a checkpoint; add it.")
    _check_temperature(config.run)
    for name in config.loggers:
        if name not in LOGGERS:
            raise InputError(f"--log_with {name}: the loggers are {', '.join(LOGGERS)}.{nearest(name, LOGGERS)}")
    if config.optim.label_smoothing and config.model.vqa_loss == "bce":
        raise InputError("--label_smoothing works with --vqa_loss ce, not with bce.")


def _check_temperature(options: RunOptions) -> None:
    if options.temperature == FIT:
        if options.split != "val":
            raise InputError(
                f"--temperature fit works on --split val only; fitted on {options.split} it would make {options.split} "
                "results look better."
            )
    elif options.temperature:
        try:
            value = float(options.temperature)
        except ValueError:
            value = math.nan
        if not LOWEST_TEMPERATURE <= value <= HIGHEST_TEMPERATURE:
            raise InputError(
                f"--temperature {options.temperature}: must be fit, or a number from {LOWEST_TEMPERATURE} to "
                f"{HIGHEST_TEMPERATURE:,}."
            )
