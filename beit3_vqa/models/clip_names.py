"""Names of CLIP models: `clip_vit_{size}_patch{P}[_{resolution}][_lora]`."""

import re
from dataclasses import dataclass

from beit3_vqa.errors import InputError, nearest

DEFAULT_RESOLUTION = 224


@dataclass(frozen=True)
class CLIPSize:
    """Width and layers of both towers, heads of both, and the width in which they meet."""

    vision_width: int
    vision_layers: int
    vision_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    projection: int


# Radford et al. 2021, table 20; huge: LAION's ViT-H/14. `tiny` has no published size: its folder decides.
CLIP_SIZES: dict[str, CLIPSize | None] = {
    "tiny": None,
    "base": CLIPSize(768, 12, 12, 512, 12, 8, 512),
    "large": CLIPSize(1024, 24, 16, 768, 12, 12, 768),
    "huge": CLIPSize(1280, 32, 16, 1024, 24, 16, 1024),
}
# What `beit3-vqa models` lists, with the hub's name of the weights.
LISTED_CLIP = {
    "clip_vit_base_patch32": "openai/clip-vit-base-patch32",
    "clip_vit_base_patch16": "openai/clip-vit-base-patch16",
    "clip_vit_large_patch14": "openai/clip-vit-large-patch14",
    "clip_vit_large_patch14_336": "openai/clip-vit-large-patch14-336",
    "clip_vit_huge_patch14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
}

_NAME = re.compile(r"clip_vit_(?P<size>[a-z]+)_patch(?P<patch>\d+)(?:_(?P<resolution>\d+))?(?P<lora>_lora)?")


@dataclass(frozen=True)
class CLIPName:
    """A parsed name; `lora`: only adapters are trained."""

    size: str
    patch_size: int
    img_size: int
    lora: bool


def parse_clip_name(name: str) -> CLIPName:
    """The parts of a CLIP model's name.

    Raises:
        InputError: not such a name, an unknown size, or a resolution that the patch doesn't divide.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(
            f"model {name!r} isn't of the form clip_vit_SIZE_patchP[_RESOLUTION][_lora], for example "
            f"clip_vit_large_patch14_lora.{nearest(name, listed_clip_names())}"
        )
    if match["size"] not in CLIP_SIZES:
        raise InputError(f"model {name!r}: size must be one of {', '.join(CLIP_SIZES)}.")
    patch, resolution = int(match["patch"]), int(match["resolution"] or DEFAULT_RESOLUTION)
    if patch == 0 or resolution == 0 or resolution % patch:
        raise InputError(f"model {name!r}: the resolution ({resolution}) must be a multiple of the patch ({patch}).")
    return CLIPName(match["size"], patch, resolution, bool(match["lora"]))


def listed_clip_names() -> list[str]:
    """The names with published weights, each trained by adapters."""
    return [f"{name}_lora" for name in LISTED_CLIP]
