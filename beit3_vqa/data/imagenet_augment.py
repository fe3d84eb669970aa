"""Augment images without text as timm does (crop, colours, erasing, mixes of a batch), each from a seed of ours.

timm and torchvision draw from the global generators of Python, NumPy and torch. Here those are seeded before each call
and restored after it, so that a draw depends on (seed, epoch, draw) alone and changes no other random number.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import functional as F

from beit3_vqa.data.transforms import resize_and_crop
from beit3_vqa.errors import InputError, first_line
from beit3_vqa.runtime.libraries import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    Mixup,
    auto_augment,
    create_transform,
)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of the CPU in the block, and restore their states at its end."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep the `bits` highest bits of each channel; 0 gives black, as Pillow did before it refused 0."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else image.point(lambda value: 0)


@contextmanager
def _our_operations() -> Iterator[None]:
    """Give the policies that timm makes in the block our posterize: theirs fails with newer versions of Pillow."""
    before = {name: auto_augment.NAME_TO_OP[name] for name in auto_augment.NAME_TO_OP if name.startswith("Posterize")}
    auto_augment.NAME_TO_OP.update(dict.fromkeys(before, _posterize))
    try:
        yield
    finally:
        auto_augment.NAME_TO_OP.update(before)


class TimmTransform:
    """timm's training pipeline: from mode RGB to float32 (3, S, S), normalised with ImageNet's mean and deviation.

    Args:
        size: side S in pixels.
        policy: timm's name for an augmentation; "none" or empty for none.
        options: further arguments of timm's `create_transform`: scale, hflip, re_prob, ...

    Raises:
        InputError: timm has no such policy.
    """

    def __init__(self, size: int, policy: str, **options: Any):
        try:
            with _our_operations():
                self.transform: Callable[[Image.Image], Tensor] = create_transform(
                    size,
                    is_training=True,
                    auto_augment=None if policy in ("none", "") else policy,
                    mean=IMAGENET_DEFAULT_MEAN,
                    std=IMAGENET_DEFAULT_STD,
                    **options,
                )
        except (AssertionError, KeyError, ValueError) as error:
            raise InputError(f"--aa {policy}: timm has no such policy ({first_line(error)}).") from error

    def __call__(self, image: Image.Image, rng: random.Random) -> Tensor:
        """Return one augmented view, float32 (3, S, S); `rng` gives its seed."""
        with seeded(rng.getrandbits(32)):
            return self.transform(image)


class CentralCrop:
    """Evaluation's pipeline: from mode RGB to the central square of an image, uint8 (3, S, S).

    Args:
        size: side S in pixels.
        crop_pct: share of the shorter side that is kept.
    """

    def __init__(self, size: int, crop_pct: float = 1.0):
        self.size = size
        self.crop_pct = crop_pct

    def __call__(self, image: Image.Image) -> Tensor:
        """Return uint8 (3, S, S) of an image of mode RGB."""
        shorter = int(self.size / self.crop_pct)
        longer = int(shorter * max(image.size) / min(image.size))
        size = (shorter, longer) if image.width <= image.height else (longer, shorter)
        left, top = (round((side - self.size) / 2) for side in size)
        square = resize_and_crop(image, size, (left, top, left + self.size, top + self.size))
        pixels: Tensor = F.pil_to_tensor(square)
        return pixels


def check_cutmix_minmax(shares: Sequence[float], size: int) -> None:
    """Raise InputError unless the shares of `--cutmix_minmax` leave a range of sides in an image of S x S pixels."""
    if len(shares) not in (0, 2):
        raise InputError("--cutmix_minmax: give two numbers, the smallest and the largest share of a side.")
    if shares and not (shares[0] >= 0 and int(size * shares[0]) < int(size * shares[1]) and shares[1] <= 1):
        raise InputError(
            f"--cutmix_minmax {shares[0]:g} {shares[1]:g}: give the smallest share of a side, then the largest, from 0 "
            f"to 1 and at least a pixel of {size} apart."
        )


class Mix:
    """mixup and cutmix of a batch (Zhang et al. 2018; Yun et al. 2019) by timm.

    Args:
        num_classes: number of classes.
        smoothing: label smoothing, 0 to 1.
        mixup: alpha of mixup; 0: none.
        cutmix: alpha of cutmix; 0: none.
        cutmix_minmax: smallest and largest share of a side that cutmix replaces; empty: `cutmix` decides.
        options: further arguments of timm's `Mixup`: prob, switch_prob, mode.
    """

    def __init__(
        self,
        num_classes: int,
        smoothing: float = 0.0,
        *,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        cutmix_minmax: tuple[float, ...] = (),
        **options: Any,
    ):
        self.on = mixup > 0 or cutmix > 0 or bool(cutmix_minmax)
        self.mixup = Mixup(
            mixup_alpha=mixup,
            cutmix_alpha=cutmix,
            cutmix_minmax=cutmix_minmax or None,
            label_smoothing=smoothing,
            num_classes=num_classes,
            **options,
        )
        self.smoothing, self.num_classes = smoothing, num_classes

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mix float images (B, 3, S, S) with labels (B,) into mixed images and probabilities (B, classes).

        timm mixes an even number of images; if B is odd, the last stays as it is.
        """
        even = len(images) // 2 * 2
        plain = torch.full((len(images), self.num_classes), self.smoothing / self.num_classes)
        plain[torch.arange(len(images)), labels] += 1 - self.smoothing
        if not even:
            return images, plain
        with seeded(seed):
            mixed, targets = self.mixup(images[:even].clone(), labels[:even])
        return torch.cat([mixed, images[even:]]), torch.cat([targets, plain[even:]])
