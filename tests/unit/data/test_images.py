"""Images: every mode and format, upright and on white; a broken file is one InputError that names it; the cache."""

import os
import pickle
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from beit3_vqa.data import decoding, images
from beit3_vqa.data.images import (
    BYTES_PER_IMAGE,
    BYTES_PER_PIXEL,
    BYTES_PER_ROW,
    MAX_IMAGE_PIXELS,
    MAX_JPEG_PIXELS,
    ImageCache,
    decode_here,
    image_size,
    open_image,
    resolve_image_path,
)
from beit3_vqa.errors import ImageError, InputError
from tests.helpers.photographs import AVIF

PHOTOGRAPHS = Path(skimage.data.__file__).parent
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def photograph(name: str = "astronaut.png", side: int = 96) -> Image.Image:
    with Image.open(PHOTOGRAPHS / name) as image:
        return image.convert("RGB").resize((side, side))


def levels_apart(a: Image.Image, b: Image.Image) -> np.ndarray:
    assert a.size == b.size
    return np.abs(np.asarray(a, dtype=np.int16) - np.asarray(b, dtype=np.int16))


def refused(path: Path | str, *said: str) -> None:
    for read in (open_image, image_size):
        with pytest.raises(InputError) as caught:
            read(path)
        message = str(caught.value)
        assert "\n" not in message
        for words in (repr(str(path)), *said):
            assert words in message


@pytest.mark.parametrize("name", ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"])
def test_photographs_decode_as_upstream_decodes_them(name: str) -> None:
    image = open_image(PHOTOGRAPHS / name)
    with Image.open(PHOTOGRAPHS / name) as upstream:
        assert image.mode == "RGB"
        assert image.tobytes() == upstream.convert("RGB").tobytes()
    assert image_size(str(PHOTOGRAPHS / name)) == image.size


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "ppm", "webp", "tif", "jp2", AVIF])
def test_content_decides_the_format_not_the_extension(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{suffix}"
    photograph().save(path)
    disguised = path.rename(tmp_path / "image.txt")
    assert levels_apart(open_image(disguised), photograph()).mean() < 8
    assert image_size(disguised) == (96, 96)


def test_grey_one_bit_and_palette_images_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "1", "P"):
        original = photograph().convert(mode)
        original.save(tmp_path / "image.png")
        assert levels_apart(open_image(tmp_path / "image.png"), original.convert("RGB")).max() == 0


def test_a_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    photograph().convert("CMYK").save(tmp_path / "image.jpg", quality=95)
    assert levels_apart(open_image(tmp_path / "image.jpg"), photograph()).mean() < 3


def test_transparent_pixels_are_white_and_opaque_ones_are_upstreams(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    rgba = photograph().convert("RGBA")
    rgba.putpixel((0, 0), (0, 0, 0, 0))
    rgba.putpixel((1, 0), (255, 0, 0, 51))
    rgba.save(path)
    ours, upstream = open_image(path), rgba.convert("RGB")
    assert upstream.getpixel((0, 0)) == (0, 0, 0)  # the hidden colour, which upstream shows
    assert ours.getpixel((0, 0)) == WHITE
    assert ours.getpixel((1, 0)) == (255, 204, 204)
    assert np.argwhere(levels_apart(ours, upstream).any(axis=2)).tolist() == [[0, 0], [0, 1]]


def test_transparent_grey_palette_and_colour_keys_become_white(tmp_path: Path) -> None:
    grey = Image.new("LA", (2, 1), (0, 0))
    grey.putpixel((1, 0), (100, 255))
    grey.save(tmp_path / "la.png")
    assert [open_image(tmp_path / "la.png").getpixel((x, 0)) for x in (0, 1)] == [WHITE, (100, 100, 100)]

    palette = Image.new("P", (3, 1))
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    for x in range(3):
        palette.putpixel((x, 0), x)
    for name, transparency in (("index.png", 0), ("bytes.png", b"\x00\xff\xff"), ("index.gif", 0)):
        palette.save(tmp_path / name, transparency=transparency)
        assert [open_image(tmp_path / name).getpixel((x, 0)) for x in range(3)] == [WHITE, RED, BLUE]

    keyed = Image.new("RGB", (2, 1), RED)
    keyed.putpixel((1, 0), BLUE)
    keyed.save(tmp_path / "keyed.png", transparency=RED)
    assert [open_image(tmp_path / "keyed.png").getpixel((x, 0)) for x in (0, 1)] == [WHITE, BLUE]


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    expected = np.arange(256).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    Image.fromarray(ramp).save(tmp_path / "ramp.tif")
    Image.fromarray(ramp.astype(">u2")).save(tmp_path / "big_endian.tif")
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "wide.tif")
    (tmp_path / "ramp.pgm").write_bytes(b"P5 16 16 65535\n" + ramp.astype(">u2").tobytes())
    for name in ("ramp.png", "ramp.tif", "big_endian.tif", "wide.tif", "ramp.pgm"):
        assert np.array_equal(np.asarray(open_image(tmp_path / name))[..., 0], expected), name
    # A dark scan stays dark: the format, not the brightest pixel, says what white is.
    Image.fromarray(ramp // 512).save(tmp_path / "dark.png")
    assert np.asarray(open_image(tmp_path / "dark.png")).max() <= 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 255.0), (0.0, 65535.0), (-3.0, 7.5), (2e5, 1e9)])
def test_float_and_32_bit_grey_are_scaled_to_8_bits(low: float, high: float, tmp_path: Path) -> None:
    ramp = np.linspace(low, high, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "float.tif")
    assert np.abs(np.asarray(open_image(tmp_path / "float.tif"))[..., 2].ravel() - np.arange(256.0)).max() <= 1
    if high > 100:
        Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "int.tif")
        assert np.abs(np.asarray(open_image(tmp_path / "int.tif"))[..., 2].ravel() - np.arange(256.0)).max() <= 1


def test_a_constant_float_image_is_read_and_one_that_is_not_finite_refused(tmp_path: Path) -> None:
    path = tmp_path / "float.tif"
    Image.fromarray(np.full((4, 4), -7.0, np.float32)).save(path)
    assert open_image(path).getpixel((0, 0)) == (0, 0, 0)
    for value in (np.nan, np.inf):
        Image.fromarray(np.full((4, 4), value, np.float32)).save(path)
        with pytest.raises(InputError, match=r"float\.tif.*finite"):
            open_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(suffix: str, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / f"image.{suffix}"
    upright = Image.new("RGB", (48, 32), BLUE)
    upright.paste(RED, (0, 0, 16, 16))  # red at the top left
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif)
    image = open_image(path)
    assert image_size(path) == image.size == (48, 32)
    assert levels_apart(image, upright).mean() < 8
    with Image.open(path) as upstream:
        # Upstream leaves it lying, but for TIFF, which Pillow turns by itself.
        upstream.load()
        assert upstream.size == ((48, 32) if suffix == "tif" else stored.size)


def test_damaged_exif_leaves_the_image_as_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    for exif in (b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage", b"Exif\0\0nonsense", b"Exif\0\0"):
        photograph().save(path, exif=exif)
        assert open_image(path).size == image_size(path) == (96, 96)


def test_first_frame_stands_for_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    for suffix in ("gif", "png", "webp", "tif"):
        path = tmp_path / f"animation.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert levels_apart(open_image(path), frames[0]).max() <= 2, suffix
    assert open_image(PHOTOGRAPHS / "no_time_for_that_tiny.gif").mode == "RGB"
    assert open_image(PHOTOGRAPHS / "multipage.tif").mode == "RGB"


def test_missing_and_empty_files_folders_and_other_files_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "gone.jpg", "doesn't exist", "image root")
    refused(tmp_path, "is a folder")
    refused(tmp_path / "a\0b.jpg", "can't be opened")
    refused(tmp_path / ("x" * 300), "can't be opened")
    (tmp_path / "empty.jpg").touch()
    refused(tmp_path / "empty.jpg", "empty (0 bytes)")
    (tmp_path / "page.jpg").write_text("<html>404 Not Found</html>")
    refused(tmp_path / "page.jpg", "no image that can be read")
    photograph().save(tmp_path / "drawing.eps")  # Pillow would hand it to Ghostscript
    refused(tmp_path / "drawing.eps", "no image that can be read")
    os.mkfifo(tmp_path / "pipe.jpg")
    refused(tmp_path / "pipe.jpg", "no regular file")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    refused(tmp_path / "loop.jpg", "can't be opened")


def test_huge_files_are_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "sparse.bmp").open("wb") as file:
        file.truncate(2**30)
    refused(tmp_path / "sparse.bmp", "bytes", "scale it down")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif", "jp2"])
def test_truncated_files_are_noticed(suffix: str, tmp_path: Path) -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    path = tmp_path / f"image.{suffix}"
    photograph("chelsea.png").save(path)
    whole = path.read_bytes()
    for part in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(InputError, match=rf"image\.{suffix}"):
            open_image(path)


def test_truncated_progressive_jpeg_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    photograph("chelsea.png").save(path, progressive=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(InputError, match="truncated"):
        open_image(path)


def survives(reader: Callable[[Path], object], path: Path) -> bool:
    """Whether the file was read; an error that isn't ours, or doesn't name it, fails the test."""
    try:
        reader(path)
    except InputError as error:
        assert repr(str(path)) in str(error)  # noqa: PT017
        return False
    return True


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 5_001), (12_000, 12_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_by_the_header(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    started = time.process_time()
    refused(tmp_path / "bomb.png", "pixels", "scale it down")
    assert time.process_time() - started < 1


def test_largest_allowed_header_passes_the_check(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png_header(10_000, 5_000))
    assert image_size(path) == (10_000, 5_000)
    assert MAX_IMAGE_PIXELS == 10_000 * 5_000
    photograph().save(path)
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 96 * 96)
    assert open_image(path).size == (96, 96)
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 96 * 96 - 1)
    with pytest.raises(InputError, match="96 x 96 pixels, more than 9,215"):
        open_image(path)


def test_a_text_bomb_in_a_png_is_refused(tmp_path: Path) -> None:
    text = b"Comment\0\0" + zlib.compress(b"\0" * 100_000_000, 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    header = png_header(4, 4)
    (tmp_path / "bomb.png").write_bytes(header[:33] + chunk + header[33:])
    refused(tmp_path / "bomb.png")


@pytest.mark.parametrize("options", [{"format": "JPEG"}, {"format": "JPEG", "progressive": True}, {"format": "PNG"}])
def test_mutated_bytes_give_an_image_or_an_input_error(options: dict, tmp_path: Path) -> None:
    path = tmp_path / "image"
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    photograph(side=64).save(path, exif=exif, **options)
    whole, rng, read = path.read_bytes(), random.Random(0), 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2, 8))):
            at = rng.randrange(min(len(data), rng.choice((64, 256, len(data)))))
            data[at : at + rng.choice((0, 1, 1, 1, 9))] = rng.randbytes(rng.choice((0, 1, 1, 1, 9)))
        path.write_bytes(data)
        started = time.process_time()
        read += sum(survives(reader, path) for reader in (image_size, open_image))
        assert time.process_time() - started < 5
    assert 0 < read < 300


def test_every_spelling_of_a_path_inside_the_root_is_resolved(tmp_path: Path) -> None:
    for written in ("images/0.jpg", "./images/0.jpg", r"images\0.jpg", r".\images\0.jpg", "images//0.jpg"):
        assert resolve_image_path(tmp_path, written) == tmp_path / "images" / "0.jpg"
    assert resolve_image_path(str(tmp_path), "a/../사진 1.jpg").resolve() == tmp_path.resolve() / "사진 1.jpg"
    assert resolve_image_path(tmp_path, "..name/..jpg") == tmp_path / "..name" / "..jpg"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("/etc/passwd", "absolute"),
        ("//server/share/0.jpg", "absolute"),
        (r"\\server\share\0.jpg", "absolute"),
        (r"C:\images\0.jpg", "absolute"),
        ("C:0.jpg", "absolute"),
        (r"\0.jpg", "absolute"),
        ("../0.jpg", "leaves"),
        ("a/../../0.jpg", "leaves"),
        (r"..\0.jpg", "leaves"),
        ("../root_with_a_longer_name/0.jpg", "leaves"),
        ("..", "leaves"),
        ("", "names no file"),
        (".", "names no file"),
        ("a/..", "names no file"),
        ("0\0.jpg", "NUL"),
        ("\ud800.jpg", "can't be the name"),
    ],
)
def test_bad_image_paths_are_refused_and_quoted(written: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(InputError) as caught:
        resolve_image_path(tmp_path / "root", written)
    assert repr(written) in str(caught.value)
    assert said in str(caught.value)


def test_symbolic_links_are_followed_and_only_images_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "root").symlink_to("real")  # the root itself may be a link
    (tmp_path / "real" / "also_inner").symlink_to("inner")
    (tmp_path / "real" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "real" / "loop").symlink_to("loop")
    assert resolve_image_path(tmp_path / "root", "also_inner/0.jpg") == tmp_path / "root" / "also_inner" / "0.jpg"
    (tmp_path / "elsewhere" / "images").mkdir(parents=True)
    for place in ("elsewhere/images/0.png", "elsewhere/1.png", "real/1.png"):
        Image.new("RGB", (8 + place.count("real"), 8)).save(tmp_path / place)
    (tmp_path / "real" / "2.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    for inside in ("out/images/0.png", "2.png"):  # the owner's links lead where the owner wants
        assert open_image(resolve_image_path(tmp_path / "root", inside)).size == (8, 8)
    # A path can't walk on from there: `..` is what its letters say.
    assert open_image(resolve_image_path(tmp_path / "root", "out/../1.png")).size == (9, 8)
    with pytest.raises(InputError, match=r"'out/\.\./\.\./elsewhere/1\.png' leaves the image root"):
        resolve_image_path(tmp_path / "root", "out/../../elsewhere/1.png")
    (tmp_path / "real" / "passwd").symlink_to("/etc/passwd")
    refused(resolve_image_path(tmp_path / "root", "passwd"), "no image that can be read")
    (tmp_path / "real" / "zero").symlink_to("/dev/zero")
    refused(resolve_image_path(tmp_path / "root", "zero"), "no regular file")
    refused(resolve_image_path(tmp_path / "root", "loop"), "can't be opened")
    monkeypatch.chdir(tmp_path)
    assert resolve_image_path("root", "0.jpg") == Path("root/0.jpg")


@pytest.mark.parametrize(
    ("at_least", "size"), [(None, (800, 640)), (500, (800, 640)), (320, (400, 320)), (40, (100, 80))]
)
def test_a_jpeg_is_decoded_at_a_fraction_that_is_large_enough(
    at_least: int | None, size: tuple[int, int], tmp_path: Path
) -> None:
    image = photograph(side=800).resize((800, 640))
    for name in ("x.jpg", "x.png"):
        image.save(tmp_path / name)
    assert open_image(tmp_path / "x.png", at_least=at_least).size == (800, 640)
    decoded = open_image(tmp_path / "x.jpg", at_least=at_least)
    assert decoded.size == size
    small = [np.asarray(i.resize((40, 40), Image.Resampling.BICUBIC)).astype(int) for i in (image, decoded)]
    assert np.abs(small[0] - small[1]).mean() < 3


def test_a_jpeg_may_be_larger_than_what_takes_more_to_decode(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"

    def resized(mode: str, width: int, height: int) -> Path:
        Image.new(mode, (8, 8)).save(path)
        data = bytearray(path.read_bytes())
        at = data.index(b"\xff\xc0") + 5  # of the frame header
        data[at : at + 4] = struct.pack(">HH", height, width)
        path.write_bytes(data)
        return path

    assert MAX_JPEG_PIXELS == 2 * MAX_IMAGE_PIXELS
    assert image_size(resized("RGB", 10_000, 10_000)) == (10_000, 10_000)
    refused(resized("RGB", 10_000, 10_001), "more than 100,000,000")
    refused(resized("CMYK", 10_000, 5_001), "more than 50,000,000")


def test_a_relative_root_means_the_folder_one_is_in(tmp_path, monkeypatch):
    for name, split in (("first", "train"), ("second", "val")):
        (tmp_path / name / "images").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        assert resolve_image_path("images", f"{split}/0.jpg") == Path(f"images/{split}/0.jpg")


# Photographs of iPhones: read if pillow-heif is installed, and only then is it imported.
HEIC_HEADER = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"


@pytest.fixture
def heic(tmp_path):
    """A HEIC file and the picture in it."""
    heif = pytest.importorskip("pillow_heif")
    picture = Image.fromarray(skimage.data.chelsea())
    heif.from_pillow(picture).save(tmp_path / "x.heic", quality=95)
    return tmp_path / "x.heic", picture


@pytest.fixture
def unregistered(monkeypatch):
    """The state of a process that has met no HEIC file yet."""
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    images._formats.cache_clear()
    yield
    images._formats.cache_clear()


def test_a_heic_photograph_is_read_as_it_was(heic, unregistered):
    path, picture = heic
    assert image_size(path) == picture.size
    for at_least in (None, 64):
        read = open_image(path, at_least=at_least)
        assert (read.mode, read.size) == ("RGB", picture.size)
        difference = np.abs(np.asarray(read, int) - np.asarray(picture, int))
        assert difference.mean() < 4


def test_a_heic_photograph_stands_upright(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    picture = Image.new("RGB", (80, 40), "red")
    picture.paste("blue", (40, 0, 80, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # the top is at the right
    heif.from_pillow(picture).save(tmp_path / "x.heic", exif=exif.tobytes(), quality=95)
    read = open_image(tmp_path / "x.heic")
    assert read.size == image_size(tmp_path / "x.heic")
    assert read.size == (40, 80)
    red, blue = np.asarray(read)[10, 20], np.asarray(read)[70, 20]
    assert red[0] > 200 > 60 > red[2]
    assert blue[2] > 200 > 60 > blue[0]


def test_limits_hold_for_heic(heic, monkeypatch):
    path, _ = heic
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 1000)
    for read in (decode_here, image_size):
        with pytest.raises(ImageError, match="pixels, more than 1,000: scale it down"):
            read(str(path))
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 1000)
    with pytest.raises(ImageError, match="bytes, more than 1,000"):
        open_image(path)


def test_heic_is_decoded_in_the_process_that_has_a_deadline(heic, monkeypatch):
    path, _ = heic
    asked = []
    monkeypatch.setattr(images, "decode_apart", lambda *arguments: asked.append(arguments) or Image.new("RGB", (1, 1)))
    open_image(path)
    assert len(asked) == 1
    assert "HEIF" in decoding.APART


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_half_a_heic_photograph_is_an_error(heic, share):
    path, _ = heic
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ImageError, match=r"x\.heic"):
        open_image(path)


def test_without_pillow_heif_the_error_says_what_the_file_is(tmp_path, monkeypatch, unregistered):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "x.jpg").write_bytes(HEIC_HEADER + bytes(100))
    for read in (open_image, image_size):
        with pytest.raises(ImageError, match=r'x\.jpg\' is a HEIC photograph: pip install "beit3_vqa\[heic\]"'):
            read(tmp_path / "x.jpg")


def test_other_images_do_not_import_pillow_heif(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    code = "import sys; from beit3_vqa.data.images import open_image; open_image(sys.argv[1])\n"
    code += "assert 'pillow_heif' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.png")], check=True)


# Decoded images are kept within a budget, and nobody can tell but by the clock.


@pytest.fixture
def files(tmp_path):
    paths = []
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (10, 20, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.fixture
def decoded(monkeypatch):
    names = []

    def counted(path, **options):
        names.append(path)
        return open_image(path, **options)

    monkeypatch.setattr(images, "open_image", counted)
    return names


COST = 10 * 20 * BYTES_PER_PIXEL + 10 * BYTES_PER_ROW + BYTES_PER_IMAGE


def test_an_image_is_decoded_once_while_it_fits(files, decoded):
    cache = ImageCache(max_bytes=3 * COST)
    for path in [files[0], files[0], str(files[0]), files[1], files[0]]:
        assert np.array_equal(cache.open(path), open_image(path))
    assert [path.name for path in map(type(files[0]), decoded)] == ["0.png", "1.png"]


def test_the_image_used_longest_ago_makes_room(files, decoded):
    cache = ImageCache(max_bytes=2 * COST)
    for number in (0, 1, 0, 2, 0, 1):  # 2 takes the place of 1
        cache.open(files[number])
    assert len(decoded) == 4
    assert cache.bytes == 2 * COST


def test_an_image_larger_than_the_budget_is_not_kept(files, decoded):
    cache = ImageCache(max_bytes=COST - 1)
    cache.open(files[0])
    cache.open(files[0])
    assert len(decoded) == 2
    assert cache.bytes == 0


def test_a_transform_makes_its_result_once_for_an_image_in_a_row_however_large(files, decoded):
    cache = ImageCache(max_bytes=COST - 1)
    result = cache.transformed(files[0], np.asarray)
    assert cache.transformed(str(files[0]), np.asarray) is result
    assert np.array_equal(result, open_image(files[0]))
    assert len(decoded) == 1
    assert cache.transformed(files[0], lambda image: image.size) == (20, 10)
    for forget, times in ((lambda: cache.transformed(files[1], np.asarray), 2), (cache.clear, 1)):
        cache.transformed(files[0], np.asarray)
        before = len(decoded)
        forget()
        cache.transformed(files[0], np.asarray)
        assert len(decoded) == before + times


def test_an_image_that_is_held_is_not_taken_for_the_last_of_its_name(files):
    cache = ImageCache()
    for color in ("red", "blue"):
        image = Image.new("RGB", (1, 1), color)
        with cache.holding("(given)", image):
            assert np.array_equal(cache.transformed("(given)", np.asarray), image)
    with pytest.raises(ImageError, match="doesn't exist"):  # a file of that name, which isn't there
        cache.transformed("(given)", np.asarray)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ImageError) as caught:
        ImageCache().transformed(tmp_path / "none.png", np.asarray)
    assert caught.value.path == str(tmp_path / "none.png")


def test_a_cache_says_which_image_does_not_fit_into_memory(monkeypatch):
    monkeypatch.setattr(images, "open_image", Mock(side_effect=MemoryError))
    with pytest.raises(ImageError, match=r"'second\.png' needs more memory") as caught:
        ImageCache().open("second.png")
    assert caught.value.path == "second.png"


def test_a_file_that_is_mended_after_an_error_is_read(tmp_path, files):
    cache = ImageCache()
    with pytest.raises(InputError, match="doesn't exist"):
        cache.open(tmp_path / "new.png")
    Image.new("RGB", (3, 3)).save(tmp_path / "new.png")
    assert cache.open(tmp_path / "new.png").size == (3, 3)


def test_a_cache_can_be_pickled_for_a_spawned_worker(files):
    cache = ImageCache()
    cache.open(files[0])
    assert np.array_equal(pickle.loads(pickle.dumps(cache)).open(files[0]), open_image(files[0]))


def test_what_a_file_holds_beside_its_pixels_is_not_kept(tmp_path, decoded):
    """Else a few kept pixels hold on to megabytes, of every image that comes."""
    megabyte = PngInfo()
    megabyte.add_text("Comment", "x" * 2**20)
    Image.new("RGB", (1, 1)).save(tmp_path / "0.png", pnginfo=megabyte)
    Image.new("RGB", (1, 1)).save(tmp_path / "0.jpg", comment=b"x" * 60_000, icc_profile=b"x" * 2**20)
    cache = ImageCache()
    tracemalloc.start()
    for place in range(20):
        for kind in ("png", "jpg"):
            path = tmp_path / f"{place}.{kind}"
            if place:
                path.write_bytes((tmp_path / f"0.{kind}").read_bytes())
            assert cache.open(path).info == {}
            assert type(cache.open(path)) is Image.Image
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(decoded) == 40
    assert kept < 2**20
    assert cache.bytes >= 40 * BYTES_PER_IMAGE
