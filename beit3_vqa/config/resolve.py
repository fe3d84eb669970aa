"""What every option of a run is, and who says so: the one place that makes a `RunConfig`.

From the weakest to the strongest: options.py, the task's defaults, the defaults of the model's family, the model
options that a checkpoint was saved with, what the user gave, and what a run keeps for good.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from beit3_vqa.config.config import DEFAULT_OF, GROUP_OF, GROUPS, NOTHING, RunConfig, option_kinds
from beit3_vqa.config.options import OPTION_PROMPT_TEMPLATE
from beit3_vqa.errors import InputError
from beit3_vqa.runtime.fields import typed

TITLES: dict[str, str] = {"beit3": "BEiT-3", "clip": "CLIP"}
# Where a family's default of an option isn't the one of options.py. CLIP's are the published recipe
# (get_started/clip.md); `lora_rank` holds for names that end in `_lora`.
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
    """What a user gave, before anything else has its say: `given["resume"]` is that, or the default of options.py.

    Attributes:
        values: by the option's name.
        typed_flags: names of those that were typed on the command line; the others come from a file.

    Raises:
        InputError: a value that an option can't have, or two that contradict each other.
    """

    values: dict[str, Any]
    typed_flags: frozenset[str] = frozenset()

    def __post_init__(self):
        resolve(self)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name, DEFAULT_OF[name])

    def also(self, **values: Any) -> "GivenOptions":
        """Return the options with more of them given, none of those typed."""
        return GivenOptions({**self.values, **values}, self.typed_flags)


@dataclass(frozen=True)
class SavedOptions:
    """What a checkpoint says of its run.

    Attributes:
        values: the options that it was saved with, by name, as they came; only those of the model count.
        where: its flag and file, for messages.
        kept: names of others that count too, more than what is given.
    """

    values: Mapping[str, Any]
    where: str
    kept: tuple[str, ...] = ()


def resolve(
    given: GivenOptions, task_defaults: Mapping[str, Any] = NOTHING, saved: SavedOptions | None = None
) -> RunConfig:
    """Return the options of a run, settled: nobody changes them afterwards.

    Args:
        given: by the user.
        task_defaults: options whose default isn't, for the run's task, the one of options.py.
        saved: with the checkpoint that is resumed or evaluated; None: the run begins.

    Raises:
        InputError: a value that an option can't have, or two that contradict each other; says whose they are.
    """
    not_given = [name for name, group in GROUP_OF.items() if group == "model" and name not in given]
    of_model = _typed(saved, not_given, "model")
    if of_model.get("vqa_loss") == "bce":  # it was trained without; no family's default may refuse it for that
        of_model.setdefault("label_smoothing", DEFAULT_OF["label_smoothing"])
    model = given.values.get("model", of_model.get("model", DEFAULT_OF["model"]))
    family = model.split("_")[0]
    hint = f" ({TITLES[family]} has defaults of its own; `finetune --help` shows them.)" if DEFAULTS.get(family) else ""
    if saved is not None:  # first what is wrong without the family that it brings, to say whose fault that is
        known = {**_get_defaults(given["model"]), **task_defaults}
        _made({**known, **given.values}, given)
        _made({**known, **of_model, **given.values}, given, _blame(saved, "model"))
    values = {**task_defaults, **_get_defaults(model), **of_model, **given.values}
    config = _made(values, given, after=hint)
    if saved is not None and saved.kept:
        config = _made({**values, **_typed(saved, saved.kept, "run")}, given, _blame(saved, "run"))
    return config


def _get_defaults(model: str) -> dict[str, Any]:
    values = dict(DEFAULTS.get(model.split("_")[0], {}))  # an unknown family is an error of whoever looks for it
    if not model.endswith("_lora"):
        values.pop("lora_rank", None)
    return values


def _typed(saved: SavedOptions | None, names: Iterable[str], of: str) -> dict[str, Any]:
    """Return those of the saved options that have one of the names, as the options' types."""
    if saved is None:
        return {}
    kinds = option_kinds()
    try:
        return {n: typed(saved.values[n], kinds[n], f"its {n}") for n in names if n in saved.values}
    except InputError as error:
        raise InputError(f"{_blame(saved, of)}{error}") from error


def _blame(saved: SavedOptions, of: str) -> str:
    return f"{saved.where} was saved with options that no {of} can have: "


def _made(values: Mapping[str, Any], given: GivenOptions, before: str = "", after: str = "") -> RunConfig:
    """Return the options with these values, by name; an error is framed by `before` and `after`."""
    try:
        groups: dict[str, Any] = {
            group: cls(**{name: value for name, value in values.items() if GROUP_OF[name] == group})
            for group, cls in GROUPS.items()
        }
        return RunConfig(**groups, given=frozenset(given.values), typed_flags=given.typed_flags)
    except InputError as error:
        raise InputError(f"{before}{error}{after}") from error
