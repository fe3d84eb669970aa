"""The families of models, found by a model's name, and their defaults.

Nothing here imports torch: `--help` shows the defaults, and must be quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from beit3_vqa.config import GROUP_OF, RunConfig
from beit3_vqa.errors import InputError, nearest
from beit3_vqa.models.clip_names import listed_clip_names
from beit3_vqa.models.registry import listed_names
from beit3_vqa.options import OPTION_PROMPT_TEMPLATE

if TYPE_CHECKING:
    from beit3_vqa.models.family import Family

# The first word of a model's name -> the class of its family.
FAMILIES = {
    "beit3": "beit3_vqa.models.beit3_family:BEiT3Family",
    "clip": "beit3_vqa.models.clip_family:CLIPFamily",
}
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
TITLES = {"beit3": "BEiT-3", "clip": "CLIP"}


def family_key(model: str) -> str:
    """The key in `FAMILIES` of a model's name.

    Raises:
        InputError: no family has such names.
    """
    key = model.split("_")[0]
    if key not in FAMILIES:
        raise InputError(
            f"model {model!r}: names begin with {' or '.join(f'{known}_' for known in FAMILIES)}, for example "
            f"beit3_large_patch16_480.{nearest(model, [*listed_names(), *listed_clip_names()])}"
        )
    return key


def find_family(model: str) -> "type[Family]":
    """The class of a model's family."""
    module, class_name = FAMILIES[family_key(model)].split(":")
    return getattr(import_module(module), class_name)


def with_family_defaults(config: RunConfig, settled: frozenset[str] = frozenset()) -> RunConfig:
    """The options with the family's own defaults where the user gave nothing.

    Args:
        config: with the model that is meant.
        settled: options that a checkpoint says; those of the model stay as they are.

    Raises:
        InputError: what was given contradicts a default.
    """
    key = family_key(config.model.model)
    values = {
        name: value
        for name, value in DEFAULTS[key].items()
        if name not in config.given and not (name in settled and GROUP_OF[name] == "model")
    }
    if not config.model.model.endswith("_lora"):
        values.pop("lora_rank", None)
    try:
        return config.updated(values)
    except InputError as error:
        raise InputError(f"{error} ({TITLES[key]} has defaults of its own; `finetune --help` shows them.)") from error
