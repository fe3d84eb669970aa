"""Names of CLIP models: `clip_vit_{size}_patch{P}[_{resolution}][_lora]`."""

import re
from dataclasses import dataclass
from typing import Any

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


TEXT_IDS, TEXT_TOKENS = 49408, 77  # of every published size
CHANNELS, MLP_RATIO = 3, 4

# Radford et al. 2021, table 20; huge: LAION's ViT-H/14. `tiny` has no published size: its folder decides.
CLIP_SIZES: dict[str, CLIPSize | None] = {
    "tiny": None,
    "base": CLIPSize(768, 12, 12, 512, 12, 8, 512),
    "large": CLIPSize(1024, 24, 16, 768, 12, 12, 768),
    "huge": CLIPSize(1280, 32, 16, 1024, 24, 16, 1024),
}
# What `beit3-vqa models` lists, with the `--pretrained` of the weights.
LISTED_CLIP = {
    "clip_vit_base_patch32": "hf:openai/clip-vit-base-patch32",
    "clip_vit_base_patch16": "hf:openai/clip-vit-base-patch16",
    "clip_vit_large_patch14": "hf:openai/clip-vit-large-patch14",
    "clip_vit_large_patch14_336": "hf:openai/clip-vit-large-patch14-336",
    "clip_vit_huge_patch14": "hf:laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
}

_NAME = re.compile(
    r"clip_vit_(?P<size>[a-z]+)_patch(?P<patch>[0-9]{1,5})(?:_(?P<resolution>[0-9]{1,5}))?(?P<lora>_lora)?"
)


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


def clip_config_values(name: CLIPName) -> dict[str, Any]:
    """Arguments of `transformers.CLIPConfig` for a published size.

    Raises:
        InputError: a size whose folder decides.
    """
    size = CLIP_SIZES[name.size]
    if size is None:
        raise InputError(f"size {name.size!r} has no published numbers; its folder says them.")

    def tower(width: int, layers: int, heads: int) -> dict[str, int]:
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        return sizes | {"intermediate_size": MLP_RATIO * width, "projection_dim": size.projection}

    image = {"image_size": name.img_size, "patch_size": name.patch_size}
    return {
        "projection_dim": size.projection,
        "text_config": tower(size.text_width, size.text_layers, size.text_heads),
        "vision_config": tower(size.vision_width, size.vision_layers, size.vision_heads) | image,
    }


def count_clip_parameters(name: CLIPName) -> int:
    """Number of parameters of a published size, without adapters.

    Of each layer: four square projections and an MLP of two, with biases, and two norms.
    """
    size = CLIP_SIZES[name.size]
    assert size is not None

    def tower(width: int, layers: int) -> int:
        layer = 4 * (width + 1) * width + (width + 1) * MLP_RATIO * width + (MLP_RATIO * width + 1) * width + 4 * width
        return layers * layer

    patches = (name.img_size // name.patch_size) ** 2
    vision = size.vision_width * (CHANNELS * name.patch_size**2 + patches + 1 + 1 + 4 + size.projection)
    text = size.text_width * (TEXT_IDS + TEXT_TOKENS + 2 + size.projection)
    towers = tower(size.vision_width, size.vision_layers) + tower(size.text_width, size.text_layers)
    return towers + vision + text + 1


def least_clip_parameters(name: CLIPName) -> int:
    """Return how many parameters a size has without its vocabulary; 0 for a size that has no published numbers."""
    size = CLIP_SIZES[name.size]
    return 0 if size is None else count_clip_parameters(name) - size.text_width * (TEXT_IDS + TEXT_TOKENS)


def count_adapters(name: CLIPName, rank: int, targets: int = 3) -> int:
    """Parameters of adapters beside square projections, `targets` of them in each layer of both towers."""
    size = CLIP_SIZES[name.size]
    assert size is not None
    widths = size.vision_width * size.vision_layers + size.text_width * size.text_layers
    return 2 * rank * targets * widths
