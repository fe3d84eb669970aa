"""The families of models, found by a model's name, and the least parameters that a name can mean."""

import re
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from beit3_vqa.errors import InputError, nearest, short
from beit3_vqa.models.names import (
    SMALLEST_HEAD,
    count_parameters,
    least_clip_parameters,
    listed_clip_names,
    listed_names,
    parse_clip_name,
    parse_name,
)

if TYPE_CHECKING:
    from beit3_vqa.models.base import Family

# The first word of a model's name -> the class of its family.
FAMILIES = {
    "beit3": "beit3_vqa.models.beit3.family:BEiT3Family",
    "clip": "beit3_vqa.models.clip.family:CLIPFamily",
}


def family_key(model: str) -> str:
    """Return the key in `FAMILIES` of a model's name.

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
    """Import and return the class of a model's family."""
    module, class_name = FAMILIES[family_key(model)].split(":")
    found: type[Family] = getattr(import_module(module), class_name)
    return found


@cache
def least_parameters(text: str) -> int:
    """Return how many parameters the largest model named in a text has at least; 0 if it names none.

    It is a lower bound, since a name doesn't tell the sizes of vocabulary, answers and adapters.
    """
    found = [0]
    for name in re.findall(r"\w+", text):
        with suppress(InputError):  # most words of a text are no model's name
            if name.startswith("clip_"):
                found.append(least_clip_parameters(parse_clip_name(name)))
            else:
                backbone = replace(parse_name(name, SMALLEST_HEAD), head=SMALLEST_HEAD)
                found.append(count_parameters(backbone, vocab_size=1, num_classes=1))
    return max(found)


def check_parameters(model: str, parameters: int, where: Path) -> None:
    """Raise InputError if the file `where` says fewer parameters of a model than its name allows."""
    least = least_parameters(model)
    if parameters < least:
        raise InputError(
            f"{where}: says {parameters:,} parameters of {short(model)}, which has {least:,} or more. Evaluate again."
        )
