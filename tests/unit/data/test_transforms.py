"""The image pipelines against timm, torchvision and Pillow; flips and sides."""

import random
import resource
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

from beit3_vqa.data import transforms as ours
from beit3_vqa.data.imagenet_augment import CentralCrop
from beit3_vqa.data.images import open_image
from beit3_vqa.data.transforms import (
    FILL,
    OPERATIONS,
    EvalTransform,
    RandAugment,
    TrainTransform,
    resize_and_crop,
    sample_crop,
    speaks_of_sides,
)
from beit3_vqa.models.clip.processor import CLIPTransform

NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
SCALE, RATIO = (0.5, 1.0), (3 / 4, 4 / 3)


@pytest.fixture(scope="module", params=NAMES)
def photograph(request: pytest.FixtureRequest) -> Image.Image:
    return open_image(Path(skimage.data.__file__).parent / request.param)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> torch.Tensor:
    return transforms.PILToTensor()(image)


@pytest.mark.parametrize("size", [32, 224, 480])
def test_evaluation_equals_torchvisions_resize_to_the_pixel(size: int, photograph: Image.Image) -> None:
    reference = transforms.Resize((size, size), interpolation=transforms.InterpolationMode.BICUBIC)
    ours = EvalTransform(size)(photograph)
    assert ours.dtype == torch.uint8
    assert ours.shape == (3, size, size)
    assert ours.is_contiguous()
    assert torch.equal(ours, pixels(reference(photograph)))


SIZES = [(640, 480), (480, 640), (333, 500), (1000, 200), (200, 1000), (1, 500), (500, 1), (1, 1), (3, 2)]


@pytest.mark.parametrize("size", SIZES)
def test_crops_equal_timms_draw_by_draw(size: tuple[int, int]) -> None:
    image, rng = Image.new("L", size), random.Random(7)
    random.seed(7)
    for _ in range(100):
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, SCALE, RATIO)
        assert sample_crop(*size, SCALE, RATIO, rng) == (left, top, left + width, top + height)
    assert random.random() == rng.random()


def test_crops_are_distributed_as_timms_with_other_seeds() -> None:
    image, rng, n = Image.new("L", (640, 480)), random.Random(1), 4000
    random.seed(2)
    theirs = np.array([RandomResizedCropAndInterpolation.get_params(image, SCALE, RATIO) for _ in range(n)], float)
    boxes = np.array([sample_crop(640, 480, SCALE, RATIO, rng) for _ in range(n)], float)
    left, top, right, bottom = boxes.T
    ours = np.stack([top, left, bottom - top, right - left], axis=1)
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / n)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4 * error).all()
    assert np.allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.06)


def test_crops_stay_inside_for_any_shape() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        width, height = rng.randint(1, 40), rng.randint(1, 40)
        left, top, right, bottom = sample_crop(width, height, (0.01, 1.0), (0.2, 5.0), rng)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [64, 480])
def test_train_pixels_are_within_one_grey_level_of_pillows(
    size: int, interpolation: str, photograph: Image.Image
) -> None:
    resample = Image.Resampling[interpolation.upper()]
    ours = TrainTransform(size, interpolation=interpolation, flip=0.0)
    for seed, image in enumerate([photograph, photograph, noise(640, 480), noise(1500, 90), noise(40, 50)]):
        box = sample_crop(*image.size, SCALE, RATIO, random.Random(seed))
        expected = pixels(image.crop(box).resize((size, size), resample))
        result = ours(image, random.Random(seed))
        assert (result.int() - expected.int()).abs().max() <= 1
        assert result.dtype == torch.uint8
        assert result.is_contiguous()


def test_crop_scale_1_takes_the_whole_image_whatever_its_shape() -> None:
    wide = noise(300, 100)
    result = TrainTransform(64, scale=(1.0, 1.0), flip=0.0)(wide, random.Random(0))
    expected = pixels(wide.resize((64, 64), Image.Resampling.BICUBIC))
    assert (result.int() - expected.int()).abs().max() <= 1


def test_random_interpolation_is_one_of_both(photograph: Image.Image) -> None:
    single = [TrainTransform(48, interpolation=name, scale=(1, 1), flip=0) for name in ("bilinear", "bicubic")]
    mixed = TrainTransform(48, interpolation="random", scale=(1, 1), flip=0)
    square = photograph.resize((90, 90))
    expected = [transform(square, random.Random(0)) for transform in single]
    counts = Counter(
        next(i for i in (0, 1) if torch.equal(mixed(square, random.Random(seed)), expected[i])) for seed in range(40)
    )
    assert min(counts[0], counts[1]) > 8


@pytest.mark.parametrize("randaug", [False, True])
def test_a_view_depends_on_its_seed_alone(randaug: bool, photograph: Image.Image) -> None:
    transform = TrainTransform(64, interpolation="random", randaug=randaug)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    original = photograph.tobytes()
    views = [transform(photograph, random.Random(seed)) for seed in range(8)]
    again = [
        TrainTransform(64, interpolation="random", randaug=randaug)(photograph, random.Random(s)) for s in range(8)
    ]
    assert all(torch.equal(a, b) for a, b in zip(views, again, strict=True))
    assert len({view.numpy().tobytes() for view in views}) == 8
    assert photograph.tobytes() == original
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_flip_mirrors_half_of_the_images_and_none_that_keep_left_and_right(photograph: Image.Image) -> None:
    straight, always, half = (TrainTransform(40, flip=probability) for probability in (0.0, 1.0, 0.5))
    flipped = 0
    for seed in range(60):
        plain = straight(photograph, random.Random(seed))
        mirrored = torch.flip(plain, dims=[-1])
        assert torch.equal(always(photograph, random.Random(seed)), mirrored)
        assert torch.equal(always(photograph, random.Random(seed), keep_left_right=True), plain)
        assert torch.equal(half(photograph, random.Random(seed), keep_left_right=True), plain)
        view = half(photograph, random.Random(seed))
        assert torch.equal(view, plain) or torch.equal(view, mirrored)
        flipped += torch.equal(view, mirrored)
    assert 15 < flipped < 45


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (7, 2000), (31, 900), (900, 20), (20, 20)])
@pytest.mark.parametrize("shorter", [32, 20, 100])
def test_a_crop_that_is_computed_alone_is_the_crop_of_the_whole(size, shorter, monkeypatch):
    """With black around it where the square is larger than the resized image (shorter side 20, square 32)."""
    # Grey levels from which no overshoot is cut off between the two passes, whose order Pillow chooses.
    levels = np.random.default_rng(0).integers(80, 176, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(levels)
    resized = [round(shorter * side / min(size)) for side in size]
    left, top = ((side - 32) // 2 for side in resized)
    arguments = image, (resized[0], resized[1]), (left, top, left + 32, top + 32)
    whole = np.asarray(resize_and_crop(*arguments)).astype(int)
    monkeypatch.setattr(ours, "HUGE_IMAGE", 0)
    alone = np.asarray(resize_and_crop(*arguments)).astype(int)
    assert np.abs(whole - alone).max() <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the process's size, and bounds it")
@pytest.mark.parametrize("size", [(1, 65_535), (65_535, 1), (65_535, 700)])
def test_the_longest_images_take_little_memory(size):
    """Resized before the crop, the first is 224 x 14,679,840 pixels: 13 GB."""
    square = CLIPTransform(224, 224), CentralCrop(224), EvalTransform(224)
    image = Image.new("RGB", size, (10, 20, 30))
    resource.setrlimit(resource.RLIMIT_AS, (memory_of_this_process() + 500 * 2**20, before := resource.RLIM_INFINITY))
    try:
        for transform in square:
            pixels = transform(image)
            assert pixels.shape == (3, 224, 224)
            assert pixels.flatten(1).amin(1).tolist() == pixels.flatten(1).amax(1).tolist() == [10, 20, 30]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, before))


def memory_of_this_process() -> int:
    """Bytes of address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def test_other_modes_than_rgb_are_refused() -> None:
    for transform in (EvalTransform(8), lambda image: TrainTransform(8)(image, random.Random(0))):
        with pytest.raises(ValueError, match="mode RGB"):
            transform(Image.new("L", (8, 8)))


def test_randaug_operations_keep_size_and_mode(photograph: Image.Image) -> None:
    small = photograph.resize((80, 80))
    for name, operation in OPERATIONS.items():
        for sign in (-1, 1):
            result = operation(small, 0.7, sign)
            assert (result.mode, result.size) == ("RGB", small.size)
            assert (result.tobytes() == small.tobytes()) == (name == "Identity" or _is_stretched(name, small))
    assert len(OPERATIONS) == 10


def _is_stretched(name: str, image: Image.Image) -> bool:
    return name == "AutoContrast" and all(extrema == (0, 255) for extrema in image.getextrema())


def test_randaug_magnitudes_are_upstreams() -> None:
    grey, half = Image.new("RGB", (100, 100), (100, 100, 100)), 50
    assert OPERATIONS["Brightness"](grey, 0.7, 1).getpixel((0, 0)) == (136, 136, 136)  # 0.1 + 1.8 * 0.7 = 1.36
    for sign in (-1, 1):
        moved = np.asarray(OPERATIONS["TranslateX"](grey, 0.7, sign))[half, :, 0]
        assert (moved == FILL[0]).sum() == 7
        assert (moved[:7] == FILL[0]).all() == (sign < 0)
        moved = np.asarray(OPERATIONS["TranslateY"](grey, 0.7, sign))[:, half, 0]
        assert (moved == FILL[0]).sum() == 7
        # 0.3 * 0.7 of the distance from the edge where the coordinates begin.
        assert (np.asarray(OPERATIONS["ShearX"](grey, 0.7, sign))[-1, :, 0] == FILL[0]).sum() in (20, 21)
        assert (np.asarray(OPERATIONS["ShearY"](grey, 0.7, sign))[:, -1, 0] == FILL[0]).sum() in (20, 21)
    bar = Image.new("RGB", (101, 101))
    bar.paste((255, 255, 255), (50, 0, 51, 101))
    row = np.asarray(OPERATIONS["Rotate"](bar, 0.7, 1))[20, :, 0].astype(float)
    row[row == FILL[0]] = 0
    assert (row @ np.arange(101)) / row.sum() == pytest.approx(50 - 30 * np.tan(np.radians(21)), abs=0.5)


def test_randaug_draws_each_operation_equally_and_applies_half(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: Counter[tuple[str, int]] = Counter()

    def record(name: str):
        def operation(image: Image.Image, strength: float, sign: int) -> Image.Image:
            assert strength == 0.7
            applied[name, sign] += 1
            return image

        return operation

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, record(name))
    augment, rng, n = RandAugment(), random.Random(0), 10_000
    for _ in range(n):
        augment(Image.new("RGB", (1, 1)), rng)
    assert len(applied) == 20
    expected = n * 2 * 0.5 / 20
    assert all(abs(count - expected) < 5 * expected**0.5 for count in applied.values())


@pytest.mark.parametrize(
    "text",
    [
        "What is on the left?",
        "RIGHT",
        "the leftmost man",
        "his right-hand side",
        "left-handed",
        "Is he lefthanded?",
        "righthand",
        "moving rightwards",
        "leftward",
        "the dog's left's colour",
        "left_side",
        "ｌｅｆｔ",
        "left에 있는 것은?",
        "왼쪽에 무엇이 있나요?",
        "사람의 오른쪽",
        "오른 손에 든 것",
        "좌측",
        "우측 상단",
        "왼편",
        "오른편",
        "왼손",
        "오른발",
        "바른쪽",
        "좌우로",
        "좌/우",
        "좌",
        "우",
        "우로 굽은 길",
        "좌회전",
        "우하단",
        "\u110b\u116c\u11ab\u110d\u1169\u11a8",  # 왼쪽 as macOS decomposes it
    ],
)
def test_texts_that_speak_of_sides_are_recognised(text: str) -> None:
    assert speaks_of_sides([text])
    assert speaks_of_sides(["What is it?", "a", text])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Is it bright?",
        "copyright notice",
        "upright",
        "leftovers",
        "human rights",
        "cleft",
        "righteous",
        "우산의 색은?",
        "좌석이 몇 개인가요?",
        "우리",
        "우편함",
        "우유",
        "산에 오른 사람",
        "바른 자세",
        "배우",
        "What colour is the sky?",
    ],
)
def test_words_that_only_look_like_sides_are_not_recognised(text: str) -> None:
    assert not speaks_of_sides([text])
    assert not speaks_of_sides([])
