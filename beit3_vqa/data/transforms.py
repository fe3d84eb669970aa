"""Turn a decoded image into pixels for the model: uint8 (3, S, S), the red, green and blue planes.

S is the model's resolution. Pixels travel as uint8, a quarter of the bytes of float32, and the model normalises them on
its own device. The pipelines are upstream's."""

import math
import random
import re
import unicodedata
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

# RandAugment as BEiT-3's fine-tuning uses it: two random operations of magnitude 7 of 10, each applied half the time.
#
# Cubuk et al., RandAugment (2019), in the variant that upstream's VQA recipe runs with `--randaug`. Kept from it: the
# ten operations, drawn with replacement; the probability 1/2 of each; magnitudes as shares of the same maxima
# (enhancement factor 0.1 + 1.8 m, shear 0.3 m, translation 10 m pixels whatever the image's size, rotation 30 m
# degrees, m = magnitude / 10); random signs for the geometric ones; grey (128) outside the image.
# Different: these are Pillow's operations, not upstream's OpenCV code, so geometric results differ by parts of a pixel,
# and sharpness changes the outermost pixels too; all randomness comes from the generator that is passed in.

MAX_MAGNITUDE = 10
PROBABILITY = 0.5
FILL = (128, 128, 128)

_MAX_SHEAR = 0.3
_MAX_TRANSLATION = 10.0  # pixels
_MAX_ROTATION = 30.0  # degrees


def _enhancement(strength: float) -> float:
    return 0.1 + 1.8 * strength


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    """Transform the image so that pixel (x, y) of the result shows (a x + b y + c, d x + e y + f) of the input."""
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
    """RandAugment: `count` operations, each drawn anew from `OPERATIONS` and applied with `PROBABILITY`.

    None of them mirrors the image, so left stays left.

    Args:
        count: number of operations that are drawn for an image.
        magnitude: strength of each operation, from 0 to `MAX_MAGNITUDE`, its maximum.
    """

    def __init__(self, count: int = 2, magnitude: float = 7) -> None:
        self.count = count
        self.strength = magnitude / MAX_MAGNITUDE

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """Return an image of the same size, mode RGB; `image` itself if no operation was applied."""
        for name in rng.choices(list(OPERATIONS), k=self.count):
            applied, sign = rng.random() < PROBABILITY, rng.choice((-1, 1))
            if applied:
                image = OPERATIONS[name](image, self.strength, sign)
        return image


Pixels = NDArray[np.uint8]  # (height, width, 3)

_RATIO = 3 / 4, 4 / 3  # smallest and largest width / height of a crop
_CROP_TRIES = 10
SMALL_IMAGE = 128 * 128  # pixels
HUGE_IMAGE = 2**24  # pixels
BICUBIC_REACH = 2  # the filter reads so many pixels to either side, in pixels of the coarser grid


class EvalTransform:
    """Evaluation's pipeline: a bicubic resize of the whole image to `size` x `size`, as torchvision's `Resize`."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Tensor:
        """Return uint8 (3, size, size) of an image of mode RGB."""
        _require_rgb(image)
        return _planes(np.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC)))


class TrainTransform:
    """Training's pipeline: RandomResizedCrop, horizontal flip and, if asked for, RandAugment(2, 7); upstream's order.

    The crop makes the draws of timm's `RandomResizedCropAndInterpolation`: a generator with the same seed gives the
    same box. Every value is within one grey level of Pillow's crop and resize.

    Args:
        size: side S of the result in pixels.
        scale: smallest and largest share of the image's area that a crop covers; (1, 1): nothing is cropped.
        interpolation: `bicubic`, `bilinear`, or `random`: one of the two, drawn for each image.
        flip: probability of a horizontal flip.
        randaug: True to apply RandAugment(2, 7) after the flip.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.5, 1.0),
        interpolation: str = "bicubic",
        flip: float = 0.5,
        randaug: bool = False,
    ) -> None:
        self.size = size
        self.scale = scale
        self.interpolation = interpolation
        self.flip = flip
        self.randaug = RandAugment() if randaug else None

    def __call__(self, image: Image.Image, rng: random.Random, keep_left_right: bool = False) -> Tensor:
        """Return one augmented view.

        Args:
            image: mode RGB.
            rng: the only source of randomness; seed it by (seed, epoch, example).
            keep_left_right: True to never flip this image. The draws stay the same, so the crop doesn't depend on it.

        Returns:
            uint8 (3, size, size), contiguous.
        """
        _require_rgb(image)
        if self.scale[0] < 1:
            image = image.crop(sample_crop(*image.size, self.scale, _RATIO, rng))
        mode = rng.choice(("bilinear", "bicubic")) if self.interpolation == "random" else self.interpolation
        mirrored = rng.random() < self.flip and not keep_left_right
        pixels = _resize(image, self.size, mode)
        if mirrored:
            pixels = pixels[:, ::-1]
        if self.randaug is not None:
            pixels = np.asarray(self.randaug(Image.fromarray(pixels), rng))
        return _planes(pixels)


def sample_crop(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: random.Random
) -> tuple[int, int, int, int]:
    """Draw a box (left, top, right, bottom) in pixels inside an image of `width` x `height`.

    The share of the area is uniform in `scale`, the aspect ratio log-uniform in `ratio`, the place uniform. A box that
    doesn't fit is drawn anew, ten times at most; then it is the largest central box whose aspect ratio lies in `ratio`
    (Szegedy et al. 2015, as in timm).
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_CROP_TRIES):
        area = rng.uniform(*scale) * width * height
        aspect = math.exp(rng.uniform(*log_ratio))
        w = max(1, round(math.sqrt(area * aspect)))
        h = max(1, round(math.sqrt(area / aspect)))
        if w <= width and h <= height:
            top = rng.randint(0, height - h)
            left = rng.randint(0, width - w)
            return left, top, left + w, top + h

    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def resize_and_crop(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """Return `image.resize(size, BICUBIC).crop(box)` without computing a huge image on the way.

    If the resized image would be huge (think of an image of 1 x 20,000 pixels), only the box is computed. Pillow may
    then do its two passes in another order, and each of them rounds.

    Args:
        image: mode RGB.
        size: width and height after the resize.
        box: left, top, right and bottom in the resized image; what lies outside it is black.
    """
    crop = box[2] - box[0], box[3] - box[1]
    if size[0] * size[1] <= max(HUGE_IMAGE, crop[0] * crop[1]):
        return image.resize(size, Image.Resampling.BICUBIC).crop(box)
    kept = max(0, box[0]), max(0, box[1]), min(size[0], box[2]), min(size[1], box[3])
    ratios = image.width / size[0], image.height / size[1]
    margins = [math.ceil(BICUBIC_REACH * max(1.0, ratio)) + 1 for ratio in ratios]
    left, top = (max(0, math.floor(kept[axis] * ratios[axis]) - margins[axis]) for axis in (0, 1))
    right, bottom = (math.ceil(kept[axis + 2] * ratios[axis]) + margins[axis] for axis in (0, 1))
    # Cut a part out first: Pillow's `box` is in single precision, too coarse for positions along a long side.
    part = image.crop((left, top, min(image.width, right), min(image.height, bottom)))
    x = [min(kept[at] * ratios[0] - left, part.width) for at in (0, 2)]
    y = [min(kept[at] * ratios[1] - top, part.height) for at in (1, 3)]
    kept_size = kept[2] - kept[0], kept[3] - kept[1]
    resized = part.resize(kept_size, Image.Resampling.BICUBIC, box=(x[0], y[0], x[1], y[1]))
    canvas = Image.new("RGB", crop)
    canvas.paste(resized, (kept[0] - box[0], kept[1] - box[1]))
    return canvas


def _require_rgb(image: Image.Image) -> None:
    if image.mode != "RGB":
        raise ValueError(f"an image of mode RGB is needed, as open_image returns it; this one's is {image.mode}")


def _resize(image: Image.Image, size: int, mode: str) -> Pixels:
    """Resize the whole image, antialiased, to uint8 (size, size, 3).

    PyTorch's kernel does what Pillow's does, several times as fast, but with 16-bit weights: each of the two passes is
    off by one grey level here and there, and the errors can add up. So Pillow does the first pass, and one level
    remains the bound. For small images the calls take most of the time, and Pillow does both passes.
    """
    filter = Image.Resampling[mode.upper()]
    if image.width * image.height <= SMALL_IMAGE and size * size <= SMALL_IMAGE:
        return np.asarray(image.resize((size, size), filter))
    image = image.resize((size, image.height), filter)
    # The fast kernel needs channels last in memory.
    batch = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
    resized = torch.nn.functional.interpolate(batch, (size, size), mode=mode, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _planes(pixels: Pixels) -> Tensor:
    """Turn uint8 (height, width, 3) into a contiguous tensor (3, height, width)."""
    height, width, _ = pixels.shape
    planes = np.empty((3, height, width), dtype=np.uint8)
    for plane in range(3):  # twice as fast as copying the transposed array at once
        planes[plane] = pixels[:, :, plane]
    return torch.from_numpy(planes)


_SIDES = re.compile(
    # English words; ASCII borders, so that a Korean particle may follow: bright, copyright, leftover don't count.
    r"(?<![a-z0-9])(?:left|right)(?:most|wards?|side|hand(?:ed|er)?s?)?(?![a-z0-9])"
    # 왼 begins left and nothing else. 오른 is also "risen", 바른 "correct": they need what has a side.
    r"|왼|(?:오른|바른)\s?(?:쪽|편|측|손|발|팔|다리|눈|귀|뺨|볼|어깨|무릎)"
    # The Sino-Korean syllables begin many words (좌석 seat, 우산 umbrella, 우편 mail): compounds, or standing alone.
    r"|좌우|좌편|[좌우](?:측|쪽|회전|향|상단|하단|현|완)"
    r"|(?<![가-힣a-z0-9])[좌우]로?(?![가-힣a-z0-9])",
    re.IGNORECASE,
)


def speaks_of_sides(texts: Iterable[str]) -> bool:
    """Return whether any of the texts (a question, its options, answers) speaks of left or right; English or Korean.

    A mirrored image would make the answer wrong. Better one flip too few: "all right" counts too.
    """
    return any(_SIDES.search(unicodedata.normalize("NFKC", text)) for text in texts)
