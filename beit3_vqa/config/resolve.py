"""Settle the options of a run: the one place that makes a `RunConfig`.

An option's value comes from the last of these that has one:

1. its default in options.py
2. the task's defaults (`TaskSpec.defaults`)
3. the defaults of the model's family (`DEFAULTS` below)
4. the checkpoint that is resumed or evaluated, for the options of the model
5. the user: flags, and `--config`
6. the checkpoint again, for what a run keeps from its beginning (`SavedOptions.kept`)

None, as the default of `--lora_alpha`, `--warmup_epochs` and `--eval_batch_size`, stands for a value that follows from
other options. It stays None here and in config.json, so that it follows them in the next run too; properties beside the
options say what it is. The default prompt follows from the data (`prompt_for`).
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_vqa.config.config import (
    DEFAULT_OF,
    GROUP_OF,
    GROUPS,
    NOTHING,
    RunConfig,
    option_kinds,
    read_config_values,
)
from beit3_vqa.config.options import ANY_PROMPT_TEMPLATE, DEFAULT_PROMPT_TEMPLATE, OPTION_PROMPT_TEMPLATE
from beit3_vqa.config.sources import Sources
from beit3_vqa.errors import InputError
from beit3_vqa.runtime.fields import typed

logger = logging.getLogger(__name__)

TITLES: dict[str, str] = {"beit3": "BEiT-3", "clip": "CLIP"}
# Defaults of a family that differ from options.py. CLIP's are the published recipe (get_started/clip.md); `lora_rank`
# holds only for models whose name ends in `_lora`.
DEFAULTS: dict[str, dict[str, Any]] = {
    "beit3": {},
    "clip": {
        "prompt_template": OPTION_PROMPT_TEMPLATE,
        "lora_rank": 32,
        "crop_scale": 1.0,
        "flip": 0.0,
        "epochs": 6,
        "lr": 1e-4,
        "min_lr": 0.0,
        "sched": "plateau",
        "warmup_epochs": 0.0,
        "layer_decay": 1.0,
        "weight_decay": 0.015,
        "label_smoothing": 0.1,
        "seed": 41,
    },
}


@dataclass(frozen=True)
class GivenOptions:
    """The options that a user gave; `given["resume"]` is what was given, or else the default of options.py.

    Attributes:
        values: option name -> value.
        typed_flags: names of those that were typed on the command line; the others come from a file.

    Raises:
        InputError: an option can't have its value, or two contradict each other.
    """

    values: dict[str, object]
    typed_flags: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        resolve(self)  # only for its errors, before any file is opened

    @classmethod
    def with_config(cls, values: Mapping[str, object], file: str | Path = "") -> "GivenOptions":
        """Return the options that a user typed, which take precedence over those of a config.json.

        Raises:
            InputError: the file can't be read, or options contradict each other.
        """
        from_file = read_config_values(file) if file else {}
        if from_file.get("model_key") == DEFAULT_OF["model_key"]:
            del from_file["model_key"]  # the file holds the default, which nobody asked for
        if from_file.pop("trust_checkpoint", False):
            logger.warning(
                "--config: its trust_checkpoint has no effect; type --trust_checkpoint if you trust the file"
            )
        if values.get("eval"):
            from_file.pop("finetune", None)  # what that run started from, not what it became
        return cls(from_file | dict(values), typed_flags=frozenset(values))

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name, DEFAULT_OF[name])

    @property
    def sources(self) -> Sources:
        """Return the folders of `--data_path`, and how they are used."""
        return resolve(self).sources

    def also(self, **values: object) -> "GivenOptions":
        """Return the options with more of them given, but not typed."""
        return GivenOptions({**self.values, **values}, self.typed_flags)


@dataclass(frozen=True)
class SavedOptions:
    """The options that a checkpoint was saved with.

    Attributes:
        values: option name -> value, unchecked; only the options of the model are used.
        where: the checkpoint's flag and file, for messages.
        kept: names of further options that are used; they are stronger than what the user gave.
        unless_given: names of further options that are used unless the user gave them, as the model's are.
    """

    values: Mapping[str, object]
    where: str
    kept: tuple[str, ...] = ()
    unless_given: tuple[str, ...] = ()


def resolve(
    given: GivenOptions, task_defaults: Mapping[str, object] = NOTHING, saved: SavedOptions | None = None
) -> RunConfig:
    """Return the settled options of a run.

    Args:
        given: the user's options.
        task_defaults: defaults of the run's task that differ from options.py.
        saved: options of the checkpoint that is resumed or evaluated; None: there is none.

    Raises:
        InputError: an option can't have its value, or two contradict each other; it names the checkpoint if the
            options are the checkpoint's.
    """
    # Upstream's scripts save None for what has no default.
    more = {name for name in saved.unless_given if saved.values.get(name) is not None} if saved else set()
    not_given = [n for n, group in GROUP_OF.items() if (group == "model" or n in more) and n not in given]
    of_model = _typed(saved, not_given, "model")
    if of_model.get("vqa_loss") == "bce":  # it was trained without; no default may refuse it for that
        of_model["label_smoothing"] = DEFAULT_OF["label_smoothing"]
    elif given.values.get("vqa_loss") == "bce":  # by the user: the checkpoint was smoothed for the other loss
        of_model.pop("label_smoothing", None)
    model = str(given.values.get("model", of_model.get("model", DEFAULT_OF["model"])))
    family = model.split("_")[0]
    hint = f" ({TITLES[family]} has defaults of its own; `finetune --help` shows them.)" if DEFAULTS.get(family) else ""
    # Two trials that only look for errors, so that the message blames the right one: the user's options alone, then
    # with the checkpoint's on top.
    if saved is not None:
        known = {**_get_defaults(given["model"]), **task_defaults}
        _made({**known, **given.values}, given)
        _made({**known, **of_model, **given.values}, given, _blame(saved, "model"))
    values = {**task_defaults, **_get_defaults(model), **of_model, **given.values}
    config = _made(values, given, after=hint)
    if saved is not None and saved.kept:
        config = _made({**values, **_typed(saved, saved.kept, "run")}, given, _blame(saved, "run"))
    return config


def prompt_for(template: str, counts: Collection[int]) -> str:
    """Return `--prompt_template`, but in the place of the default, which names four options, one for any number.

    Args:
        template: the option.
        counts: numbers of options that questions have; empty: questions without, or of a number that isn't known.
    """
    return ANY_PROMPT_TEMPLATE if template == DEFAULT_PROMPT_TEMPLATE and set(counts) - {4} else template


def _get_defaults(model: str) -> dict[str, object]:
    values = dict(DEFAULTS.get(model.split("_")[0], {}))  # `find_family` reports an unknown family
    if not model.endswith("_lora"):
        values.pop("lora_rank", None)
    return values


def _typed(saved: SavedOptions | None, names: Iterable[str], of: str) -> dict[str, object]:
    """Return the saved options of these names, converted to the options' types.

    Raises:
        InputError: one can't be converted; `of` says what it is an option of.
    """
    if saved is None:
        return {}
    kinds = option_kinds()
    try:
        return {n: typed(saved.values[n], kinds[n], f"its {n}") for n in names if n in saved.values}
    except InputError as error:
        raise InputError(f"{_blame(saved, of)}{error}") from error


def _blame(saved: SavedOptions, of: str) -> str:
    return f"{saved.where} contains options that are not valid for a {of}: "


def _made(values: Mapping[str, object], given: GivenOptions, before: str = "", after: str = "") -> RunConfig:
    """Return a config of values by option name; the message of an InputError is put between `before` and `after`."""
    try:
        groups: dict[str, Any] = {
            group: cls(**{name: value for name, value in values.items() if GROUP_OF[name] == group})
            for group, cls in GROUPS.items()
        }
        return RunConfig(**groups, given=frozenset(given.values), typed_flags=given.typed_flags)
    except InputError as error:
        raise InputError(f"{before}{error}{after}") from error
