"""Model names -> models: one table of sizes, one parser, and timm's registry.

`beit3_{size}_patch{P}_{resolution}_{head}`, with any resolution that the patch divides."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from beit3_vqa.errors import InputError, nearest

if TYPE_CHECKING:
    from beit3_vqa.models.beit3.model import BEiT3Model


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
        num_classes: number of classes; None for a head that has no such number.
    """

    build: str
    num_classes: int | None


SIZES = {
    "tiny": Size(embed_dim=128, depth=3, num_heads=4),
    "base": Size(embed_dim=768, depth=12, num_heads=12),
    "large": Size(embed_dim=1024, depth=24, num_heads=16),
}
HEADS = {
    "vqacustom": Head("beit3_vqa.models.beit3.model:BEiT3ForVisualQuestionAnswering", num_classes=4),
    "vqav2": Head("beit3_vqa.models.beit3.model:BEiT3ForVisualQuestionAnswering", num_classes=3129),
    "nlvr2": Head("beit3_vqa.models.beit3.model:BEiT3ForVisualReasoning", num_classes=2),
    "imageclassification": Head("beit3_vqa.models.beit3.model:BEiT3ForImageClassification", num_classes=1000),
    "retrieval": Head("beit3_vqa.models.beit3.retrieval:BEiT3ForRetrieval", num_classes=None),
    "captioning": Head("beit3_vqa.models.beit3.captioning:BEiT3ForCaptioning", num_classes=None),
}
SMALLEST_HEAD = "imageclassification"
# What `register_with_timm` and `beit3-vqa models` list; the parser takes any other resolution too.
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
    """Split a model name into its parts; a name without a head takes `head`.

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


def build_model(name: ModelName | str, **overrides: Any) -> "BEiT3Model":
    """Build a model by name; keyword arguments override the table (`embed_dim`, `depth`, `num_classes`, ...)."""
    if isinstance(name, str):
        name = parse_name(name)
    size, head = SIZES[name.size], HEADS[name.head]
    arguments = {**vars(size), "img_size": name.img_size, "patch_size": name.patch_size}
    if head.num_classes is not None:
        arguments["num_classes"] = head.num_classes
    # Imported here, since `--help` wants the names without waiting for torch.
    module, class_name = head.build.split(":")
    model: BEiT3Model = getattr(import_module(module), class_name)(**(arguments | overrides))
    return model


def count_parameters(name: ModelName | str, **overrides: Any) -> int:
    """Count a model's parameters, without allocating one of them."""
    import torch

    with torch.device("meta"):
        model = build_model(name, **overrides)
    return sum(parameter.numel() for parameter in model.parameters())


def listed_names(head: str = "") -> list[str]:
    """Return the names that are listed: with the suffix of a head, or without one if `head` is empty."""
    suffix = f"_{head}" if head else ""
    return [
        f"beit3_{size}_patch{patch}_{resolution}{suffix}"
        for size, patch, resolutions in LISTED
        for resolution in resolutions
    ]


def register_with_timm() -> None:
    """Make `timm.create_model` build every listed name; a second call changes nothing."""
    from beit3_vqa.runtime.libraries import is_model, register_model

    for head in HEADS:
        for name in listed_names(head):
            if not is_model(name):
                register_model(_entrypoint(name))


def _entrypoint(name: str) -> "Callable[..., BEiT3Model]":
    def create(
        pretrained: bool = False,
        pretrained_cfg: object = None,
        pretrained_cfg_overlay: object = None,
        cache_dir: object = None,
        **overrides: Any,
    ) -> "BEiT3Model":
        # timm from 0.9 on hands on all four, given or not; they are about weights, which aren't loaded here.
        if pretrained:
            raise InputError(f"{name}: load weights with --finetune FILE, or beit3_vqa.models.beit3.pretrained.")
        return build_model(name, **overrides)

    create.__name__ = name  # timm registers a function under its own name
    return create


# Names of CLIP models: `clip_vit_{size}_patch{P}[_{resolution}][_lora]`.

DEFAULT_RESOLUTION = 224


@dataclass(frozen=True)
class CLIPSize:
    """Width, layers and heads of both towers, and the width of the space that they share."""

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

_CLIP_NAME = re.compile(
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
    """Split a CLIP model's name into its parts.

    Raises:
        InputError: not such a name, an unknown size, or a resolution that the patch doesn't divide.
    """
    match = _CLIP_NAME.fullmatch(name)
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
    """Return the names with published weights, each with the suffix that trains adapters."""
    return [f"{name}_lora" for name in LISTED_CLIP]


def clip_config_values(name: CLIPName) -> dict[str, object]:
    """Return the arguments of `transformers.CLIPConfig` for a published size.

    Raises:
        InputError: a size without published numbers.
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
    """Count the parameters of a published size, without adapters and without building it."""
    size = CLIP_SIZES[name.size]
    assert size is not None

    def tower(width: int, layers: int) -> int:
        # Of each layer: four square projections and an MLP of two, with biases, and two norms.
        layer = 4 * (width + 1) * width + (width + 1) * MLP_RATIO * width + (MLP_RATIO * width + 1) * width + 4 * width
        return layers * layer

    patches = (name.img_size // name.patch_size) ** 2
    # The patch embedding without bias, positions of patches and [CLS], [CLS] itself, two norms, the projection.
    vision = size.vision_width * (CHANNELS * name.patch_size**2 + patches + 1 + 1 + 4 + size.projection)
    # Token embeddings, positions, one norm, the projection.
    text = size.text_width * (TEXT_IDS + TEXT_TOKENS + 2 + size.projection)
    towers = tower(size.vision_width, size.vision_layers) + tower(size.text_width, size.text_layers)
    return towers + vision + text + 1  # the logit scale


def least_clip_parameters(name: CLIPName) -> int:
    """Return how many parameters a size has without its vocabulary; 0 for a size that has no published numbers."""
    size = CLIP_SIZES[name.size]
    return 0 if size is None else count_clip_parameters(name) - size.text_width * (TEXT_IDS + TEXT_TOKENS)


def count_adapters(name: CLIPName, rank: int, targets: int = 3) -> int:
    """Count the parameters of adapters beside square projections, `targets` of them in each layer of both towers."""
    size = CLIP_SIZES[name.size]
    assert size is not None
    widths = size.vision_width * size.vision_layers + size.text_width * size.text_layers
    return 2 * rank * targets * widths
