"""The families of models, found by a model's name, and their defaults.

Nothing here imports torch: `--help` shows the defaults, and must be quick.
"""

import re
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_vqa.config import GROUP_OF, RunConfig
from beit3_vqa.errors import InputError, nearest, short
from beit3_vqa.models.clip_names import least_clip_parameters, listed_clip_names, parse_clip_name
from beit3_vqa.models.registry import SMALLEST_HEAD, count_parameters, listed_names, parse_name
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


def config_of(values: dict[str, Any], typed_flags: frozenset[str] = frozenset()) -> RunConfig:
    """The options that a user gave, by flat name, on top of the defaults of the model's family.

    Args:
        values: the options.
        typed_flags: names of those that were typed on the command line; the others come from a file.

    Raises:
        InputError: a value that an option can't have, or two that contradict each other.
    """
    model = values.get("model", RunConfig().model.model)
    return _updated(RunConfig(typed_flags=typed_flags), model, _defaults_of(model) | values, frozenset(values))


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
        for name, value in _defaults_of(config.model.model).items()
        if name not in config.given and not (name in settled and GROUP_OF[name] == "model")
    }
    return _updated(config, config.model.model, values, config.given)


@cache
def least_parameters(text: str) -> int:
    """Return how many parameters the largest model that is named in a text has at least; 0 if no known one is.

    At least: the size of the vocabulary, the answers and adapters aren't in a name.
    """
    found = [0]
    for name in re.findall(r"\w+", text):
        with suppress(InputError):
            if name.startswith("clip_"):
                found.append(least_clip_parameters(parse_clip_name(name)))
            else:
                backbone = replace(parse_name(name, SMALLEST_HEAD), head=SMALLEST_HEAD)
                found.append(count_parameters(backbone, vocab_size=1, num_classes=1))
    return max(found)


def check_parameters(model: str, parameters: int, where: Path) -> None:
    """InputError if the file `where` says fewer parameters of a model than its name allows."""
    least = least_parameters(model)
    if parameters < least:
        raise InputError(
            f"{where}: says {parameters:,} parameters of {short(model)}, which has {least:,} or more. Evaluate again."
        )


def _defaults_of(model: str) -> dict[str, Any]:
    values = dict(DEFAULTS[family_key(model)])
    if not model.endswith("_lora"):
        values.pop("lora_rank", None)
    return values


def _updated(config: RunConfig, model: str, values: dict[str, Any], given: frozenset[str]) -> RunConfig:
    try:
        return config.updated(values, given)
    except InputError as error:
        key = family_key(model)
        hint = f" ({TITLES[key]} has defaults of its own; `finetune --help` shows them.)" if DEFAULTS[key] else ""
        raise InputError(f"{error}{hint}") from error
