"""What an option is where nobody gave it: the defaults of a model's family."""

from typing import TYPE_CHECKING, Any

from beit3_vqa.config.config import GROUP_OF, RunConfig
from beit3_vqa.config.options import OPTION_PROMPT_TEMPLATE
from beit3_vqa.errors import InputError

if TYPE_CHECKING:
    pass

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


def build_config(values: dict[str, Any], typed_flags: frozenset[str] = frozenset()) -> RunConfig:
    """The options that a user gave, by flat name, on top of the defaults of the model's family.

    Args:
        values: the options.
        typed_flags: names of those that were typed on the command line; the others come from a file.

    Raises:
        InputError: a value that an option can't have, or two that contradict each other.
    """
    model = values.get("model", RunConfig().model.model)
    return _updated(RunConfig(typed_flags=typed_flags), model, _get_defaults(model) | values, frozenset(values))


def with_family_defaults(config: RunConfig, settled: frozenset[str] = frozenset()) -> RunConfig:
    """The same for options whose model has become known later, from a checkpoint.

    Args:
        config: with the model that is meant.
        settled: options that the checkpoint says; those of the model stay as they are.

    Raises:
        InputError: what was given contradicts a default.
    """
    values = {
        name: value
        for name, value in _get_defaults(config.model.model).items()
        if name not in config.given and not (name in settled and GROUP_OF[name] == "model")
    }
    return _updated(config, config.model.model, values, config.given)


def _get_defaults(model: str) -> dict[str, Any]:
    values = dict(DEFAULTS.get(model.split("_")[0], {}))  # an unknown family is an error of whoever looks for it
    if not model.endswith("_lora"):
        values.pop("lora_rank", None)
    return values


def _updated(config: RunConfig, model: str, values: dict[str, Any], given: frozenset[str]) -> RunConfig:
    try:
        return config.updated(values, given)
    except InputError as error:
        key = model.split("_")[0]
        hint = f" ({TITLES[key]} has defaults of its own; `finetune --help` shows them.)" if DEFAULTS.get(key) else ""
        raise InputError(f"{error}{hint}") from error
