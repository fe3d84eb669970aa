"""Photographs of iPhones: read if pillow-heif is installed, and only then is it imported."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from skimage import data

from beit3_vqa.data import decoding, images
from beit3_vqa.data.images import image_size, open_image
from beit3_vqa.errors import ImageError

HEADER = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"


@pytest.fixture
def photograph(tmp_path):
    """A HEIC file and the picture in it."""
    heif = pytest.importorskip("pillow_heif")
    picture = Image.fromarray(data.chelsea())
    heif.from_pillow(picture).save(tmp_path / "x.heic", quality=95)
    return tmp_path / "x.heic", picture


@pytest.fixture
def unregistered(monkeypatch):
    """The state of a process that has met no HEIC file yet."""
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    images._formats.cache_clear()
    yield
    images._formats.cache_clear()


def test_a_photograph_is_read_as_it_was(photograph, unregistered):
    path, picture = photograph
    assert image_size(path) == picture.size
    for at_least in (None, 64):
        read = open_image(path, at_least=at_least)
        assert (read.mode, read.size) == ("RGB", picture.size)
        difference = np.abs(np.asarray(read, int) - np.asarray(picture, int))
        assert difference.mean() < 4


def test_it_stands_upright(tmp_path):
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


def test_limits_hold(photograph, monkeypatch):
    path, _ = photograph
    with pytest.raises(ImageError, match="pixels, more than 1,000: scale it down"):
        open_image(path, max_pixels=1000)
    with pytest.raises(ImageError, match="pixels, more than 1,000: scale it down"):
        image_size(path, max_pixels=1000)
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 1000)
    with pytest.raises(ImageError, match="bytes, more than 1,000"):
        open_image(path)


def test_it_is_decoded_in_the_process_that_has_a_deadline(photograph, monkeypatch):
    path, _ = photograph
    asked = []
    monkeypatch.setattr(images, "decode_apart", lambda *arguments: asked.append(arguments) or Image.new("RGB", (1, 1)))
    open_image(path)
    assert len(asked) == 1
    assert "HEIF" in decoding.APART


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_half_a_photograph_is_an_error(photograph, share):
    path, _ = photograph
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ImageError, match=r"x\.heic"):
        open_image(path)


def test_without_the_package_the_error_says_what_the_file_is(tmp_path, monkeypatch, unregistered):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "x.jpg").write_bytes(HEADER + bytes(100))
    for read in (open_image, image_size):
        with pytest.raises(ImageError, match=r'x\.jpg\' is a HEIC photograph: pip install "beit3_vqa\[heic\]"'):
            read(tmp_path / "x.jpg")


def test_other_images_do_not_import_the_package(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    code = "import sys; from beit3_vqa.data.images import open_image; open_image(sys.argv[1])\n"
    code += "assert 'pillow_heif' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.png")], check=True)
