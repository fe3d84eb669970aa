"""RandAugment as BEiT-3's fine-tuning uses it: two random operations of magnitude 7 of 10, each applied half the time.

Cubuk et al., RandAugment (2019), in the variant that upstream's VQA recipe runs with `--randaug`. Kept from it: the
ten operations, drawn with replacement; the probability of 1/2 for each; magnitudes as shares of the same maxima
(enhancement factor 0.1 + 1.8 m, shear 0.3 m, translation 10 m pixels whatever the image's size, rotation 30 m
degrees, m = magnitude / 10); random signs for the geometric ones; grey (128) where nothing of the image is left.
Different: Pillow's operations stand for upstream's OpenCV code, so geometric results differ by parts of a pixel, and
sharpness also reaches the image's outermost pixels; all randomness comes from the generator that is passed in.
"""

import random
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

MAX_MAGNITUDE = 10
PROBABILITY = 0.5
FILL = (128, 128, 128)

_MAX_SHEAR = 0.3
_MAX_TRANSLATION = 10.0  # pixels
_MAX_ROTATION = 30.0  # degrees


def _enhancement(strength: float) -> float:
    return 0.1 + 1.8 * strength


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    """Output pixel (x, y) shows input pixel (a x + b y + c, d x + e y + f)."""
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR, fillcolor=FILL
    )


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, resample=Image.Resampling.BILINEAR, fillcolor=FILL)


# Each takes (image, strength m in 0..1, sign -1 or 1); those without a direction ignore the sign.
OPERATIONS: dict[str, Callable[[Image.Image, float, int], Image.Image]] = {
    "Identity": lambda image, m, sign: image,
    "AutoContrast": lambda image, m, sign: ImageOps.autocontrast(image),
    "Equalize": lambda image, m, sign: ImageOps.equalize(image),
    "Brightness": lambda image, m, sign: ImageEnhance.Brightness(image).enhance(_enhancement(m)),
    "Sharpness": lambda image, m, sign: ImageEnhance.Sharpness(image).enhance(_enhancement(m)),
    "ShearX": lambda image, m, sign: _affine(image, 1, sign * _MAX_SHEAR * m, 0, 0, 1, 0),
    "ShearY": lambda image, m, sign: _affine(image, 1, 0, 0, sign * _MAX_SHEAR * m, 1, 0),
    "TranslateX": lambda image, m, sign: _affine(image, 1, 0, sign * _MAX_TRANSLATION * m, 0, 1, 0),
    "TranslateY": lambda image, m, sign: _affine(image, 1, 0, 0, 0, 1, sign * _MAX_TRANSLATION * m),
    "Rotate": lambda image, m, sign: _rotate(image, sign * _MAX_ROTATION * m),
}


class RandAugment:
    """`count` operations, each drawn anew from `OPERATIONS` and applied with `PROBABILITY`.

    None of them mirrors the image, so that left stays left.

    Args:
        count: how many operations are drawn for an image.
        magnitude: 0 to `MAX_MAGNITUDE`, the share of each operation's maximum.
    """

    def __init__(self, count: int = 2, magnitude: float = 7) -> None:
        self.count = count
        self.strength = magnitude / MAX_MAGNITUDE

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """Mode RGB in, mode RGB of the same size out; the very image that came in when nothing was applied."""
        for name in rng.choices(list(OPERATIONS), k=self.count):
            applied, sign = rng.random() < PROBABILITY, rng.choice((-1, 1))
            if applied:
                image = OPERATIONS[name](image, self.strength, sign)
        return image
