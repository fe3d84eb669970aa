"""Model names -> models: one table of sizes, one parser, and timm's registry.

`beit3_{size}_patch{P}_{resolution}_{head}`; any resolution that the patch divides.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from beit3_vqa.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Size:
    """Width, layers and heads of a model size."""

    embed_dim: int
    depth: int
    num_heads: int


@dataclass(frozen=True)
class Head:
    """The class that the suffix of a model's name means, and its published number of classes.

    Attributes:
        build: `module:class`.
        num_classes: None for a head that has no such number.
    """

    build: str
    num_classes: int | None


SIZES = {
    "tiny": Size(embed_dim=128, depth=3, num_heads=4),
    "base": Size(embed_dim=768, depth=12, num_heads=12),
    "large": Size(embed_dim=1024, depth=24, num_heads=16),
}
HEADS = {
    "vqacustom": Head("beit3_vqa.models.beit3:BEiT3ForVisualQuestionAnswering", num_classes=4),
    "vqav2": Head("beit3_vqa.models.beit3:BEiT3ForVisualQuestionAnswering", num_classes=3129),
    "nlvr2": Head("beit3_vqa.models.beit3:BEiT3ForVisualReasoning", num_classes=2),
    "imageclassification": Head("beit3_vqa.models.beit3:BEiT3ForImageClassification", num_classes=1000),
    "retrieval": Head("beit3_vqa.models.beit3_retrieval:BEiT3ForRetrieval", num_classes=None),
    "captioning": Head("beit3_vqa.models.beit3_captioning:BEiT3ForCaptioning", num_classes=None),
}
SMALLEST_HEAD = "imageclassification"
# What timm and `beit3-vqa models` list; the parser takes any other resolution too.
LISTED = (
    ("tiny", 8, (32, 48, 64)),
    ("base", 16, (224, 384, 480, 768)),
    ("large", 16, (224, 384, 480, 768)),
)

_NAME = re.compile(
    r"beit3_(?P<size>[a-z]+)_patch(?P<patch>[0-9]{1,5})_(?P<resolution>[0-9]{1,5})(?:_(?P<head>[a-z0-9_]+))?"
)


@dataclass(frozen=True)
class ModelName:
    """A parsed model name; `str()` gives the full name back."""

    size: str
    patch_size: int
    img_size: int
    head: str

    def __str__(self) -> str:
        return f"beit3_{self.size}_patch{self.patch_size}_{self.img_size}_{self.head}"


def parse_name(name: str, head: str = "") -> ModelName:
    """The parts of a model name; a name without a head takes `head`.

    Raises:
        InputError: not such a name, an unknown size or head, or a resolution that the patch doesn't divide.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(
            f"model {name!r} isn't of the form beit3_SIZE_patchP_RESOLUTION, for example beit3_large_patch16_480."
            f"{nearest(name, listed_names())}"
        )
    named_head = match["head"] or head
    if match["size"] not in SIZES:
        raise InputError(f"model {name!r}: size must be one of {', '.join(SIZES)}.")
    if named_head not in HEADS:
        raise InputError(
            f"model {name!r}: after the resolution comes one of {', '.join(HEADS)}.{nearest(named_head, HEADS)}"
        )
    parsed = ModelName(match["size"], int(match["patch"]), int(match["resolution"]), named_head)
    if parsed.patch_size == 0 or parsed.img_size == 0 or parsed.img_size % parsed.patch_size:
        raise InputError(f"model {name!r}: the resolution must be a multiple of the patch ({parsed.patch_size}).")
    return parsed


def build_model(name: ModelName | str, **overrides: Any) -> "nn.Module":
    """The model of that name; keyword arguments override the table (`embed_dim`, `depth`, `num_classes`, ...)."""
    if isinstance(name, str):
        name = parse_name(name)
    size, head = SIZES[name.size], HEADS[name.head]
    arguments = {**vars(size), "img_size": name.img_size, "patch_size": name.patch_size}
    if head.num_classes is not None:
        arguments["num_classes"] = head.num_classes
    # Imported here, since the names are wanted before torch: by `--help`, and by timm while it is being imported.
    module, class_name = head.build.split(":")
    return getattr(import_module(module), class_name)(**(arguments | overrides))


def count_parameters(name: ModelName | str, **overrides: Any) -> int:
    """Number of parameters, without allocating one of them."""
    import torch

    with torch.device("meta"):
        model = build_model(name, **overrides)
    return sum(parameter.numel() for parameter in model.parameters())


def listed_names(head: str = "") -> list[str]:
    """The names that timm knows, for every head or for one; without the head's suffix if `head` is empty."""
    suffix = f"_{head}" if head else ""
    return [
        f"beit3_{size}_patch{patch}_{resolution}{suffix}"
        for size, patch, resolutions in LISTED
        for resolution in resolutions
    ]


def register_with_timm() -> None:
    """Makes `timm.create_model` build every listed name."""
    from timm.models.registry import register_model

    for head in HEADS:
        for name in listed_names(head):
            register_model(_entrypoint(name))


def _entrypoint(name: str) -> "Callable[..., nn.Module]":
    def create(pretrained: bool = False, pretrained_cfg: Any = None, **overrides: Any) -> "nn.Module":
        if pretrained:
            raise InputError(f"{name}: load weights with --finetune FILE, or beit3_vqa.models.pretrained.")
        return build_model(name, **overrides)

    create.__name__ = name  # timm registers a function under its own name
    return create
