"""Images of a few bytes that ask for minutes or for all memory: refused before, or ended; ordinary ones are not."""

import io
import multiprocessing
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from beit3_vqa.data import decoding
from beit3_vqa.data.images import MAX_JPEG_PIXELS, decode_here, image_size, open_image
from beit3_vqa.errors import ImageError
from tests.helpers.hostile_images import jpeg2000_of_precincts, jpeg_of_scans, segment
from tests.helpers.photographs import AVIF

PHOTOGRAPH = Path(skimage.data.__file__).parent / "astronaut.png"


def photograph(side: int = 96) -> Image.Image:
    with Image.open(PHOTOGRAPH) as image:
        return image.convert("RGB").resize((side, side))


def refused(path: Path, *said: str) -> None:
    started = time.process_time()
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert time.process_time() - started < 5
    for words in (repr(str(path)), *said):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("size", "scans", "most"), [((10_000, 10_000), 1000, 20), ((64, 64), 101, 100), ((5000, 5000), 81, 80)]
)
def test_jpegs_of_many_scans_are_refused_before_they_are_decoded(tmp_path, size, scans, most):
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg_of_scans(*size, scans))
    refused(path, f"a JPEG of more than {most} scans")
    assert image_size(path) == size  # by the header


def test_jpegs_that_hold_the_marker_elsewhere_are_read(tmp_path):
    """Cameras put thumbnails before an image, and videos and other images behind it."""
    photograph().save(tmp_path / "x.jpg", progressive=True)
    expected = open_image(tmp_path / "x.jpg").tobytes()
    data = (tmp_path / "x.jpg").read_bytes()
    assert 5 < data.count(b"\xff\xda") < 20
    (tmp_path / "x.jpg").write_bytes(data[:2] + segment(0xE5, b"\xff\xda" * 500) + data[2:] + b"\xff\xda" * 500)
    assert open_image(tmp_path / "x.jpg").tobytes() == expected
    # With restart markers too, which stand in the data by the thousand.
    photograph(480).save(tmp_path / "y.jpg", restart_marker_blocks=1)
    data = (tmp_path / "y.jpg").read_bytes()
    assert data.count(b"\xff\xd0") > 100
    (tmp_path / "y.jpg").write_bytes(data + b"\xff\xda" * 500)
    assert open_image(tmp_path / "y.jpg").tobytes() == Image.open(io.BytesIO(data)).tobytes()


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\xda", b"\xff\xfe\0\2", b"\xff\xda\0\2"])
def test_counting_scans_is_quick(filling, tmp_path):
    data = b"\xff\xd8" + filling * (40_000_000 // len(filling))
    started = time.process_time()
    with io.BytesIO(data) as file:
        file.seek(7)
        if filling == b"\xff":
            decoding.check_scans(file, 1, "x")
            assert file.tell() == 7
        else:
            try:
                decoding.check_scans(file, 1, "x")
            except ImageError:
                assert b"\xda" in filling
    assert time.process_time() - started < 3


@pytest.mark.slow
@pytest.mark.parametrize(("size", "scans"), [((10_000, 10_000), 20), ((5000, 4000), 100)])
def test_the_slowest_jpeg_that_is_allowed_decodes_in_time(tmp_path, size, scans):
    (tmp_path / "x.jpg").write_bytes(jpeg_of_scans(*size, scans, components=3))
    started = time.process_time()
    assert open_image(tmp_path / "x.jpg").size == size
    assert time.process_time() - started < decoding.MAX_DECODE_SECONDS


def test_pillows_loops_in_python_have_a_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_DECODE_SECONDS", 0.2)
    (tmp_path / "x.ppm").write_bytes(b"P3 2000 1000 255\n" + b"0 " * 6_000_000)
    refused(tmp_path / "x.ppm", "takes more than 0.2 s to decode")
    photograph(8).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    chunk = struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
    (tmp_path / "x.png").write_bytes(data[:33] + chunk * 500_000 + data[33:])
    refused(tmp_path / "x.png", "takes more than 0.2 s to decode")


def test_a_decoder_that_goes_on_for_ever_is_ended_and_the_next_image_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_DECODE_SECONDS", 1)
    (tmp_path / "x.jp2").write_bytes(jpeg2000_of_precincts(7000))
    refused(tmp_path / "x.jp2", "can't be decoded within 1 s and 4 GiB")
    monkeypatch.setattr(decoding, "MAX_DECODE_SECONDS", 20)
    photograph().save(tmp_path / "good.jp2")
    assert open_image(tmp_path / "good.jp2").size == (96, 96)


def test_another_process_keeps_the_limit_of_pixels(tmp_path):
    Image.new("1", (10_001, 5_000)).save(tmp_path / "x.tif", compression="group4")
    with pytest.raises(ImageError, match="10001 x 5000 pixels, more than 50,000,000"):
        open_image(tmp_path / "x.tif")


@pytest.mark.parametrize("suffix", ["tif", "jp2", AVIF])
def test_another_process_decodes_to_the_same_pixels(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"x.{suffix}"
    photograph().save(path)
    assert open_image(path).tobytes() == decode_here(str(path)).tobytes()
    monkeypatch.chdir(tmp_path)  # a relative path means the folder that one is in
    assert open_image(path.name).size == (96, 96)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ImageError, match=rf"^image 'x\.{suffix}' is"):
        open_image(path.name)


def test_a_process_that_is_forked_has_a_decoder_of_its_own(tmp_path):
    photograph().save(tmp_path / "x.tif")
    expected = open_image(tmp_path / "x.tif").tobytes()
    context = multiprocessing.get_context("fork")
    there, here = context.Pipe()
    worker = context.Process(target=lambda: there.send(open_image(tmp_path / "x.tif").tobytes()), daemon=True)
    worker.start()
    assert here.poll(30)
    assert here.recv() == expected
    worker.join(30)
    assert open_image(tmp_path / "x.tif").tobytes() == expected


def test_an_image_with_too_long_a_side_is_refused(tmp_path):
    """A resize of an image goes through one as high as it was."""
    path = tmp_path / "x.png"
    Image.new("L", (1, 70_000)).save(path)
    refused(path, "1 x 70000 pixels, a side of more than 65,535")
    Image.new("L", (1, 65_535)).save(path)
    assert open_image(path).size == (1, 65_535)


def test_an_mpo_is_read_as_a_jpeg(tmp_path):
    images = photograph(800), photograph(400)
    images[0].save(tmp_path / "x.jpg", quality=90)
    images[0].save(tmp_path / "x.mpo", save_all=True, append_images=images[1:], quality=90)
    with Image.open(tmp_path / "x.mpo") as opened:
        assert opened.format == "MPO"
    for at_least in (None, 200):
        jpeg, mpo = (open_image(tmp_path / name, at_least=at_least) for name in ("x.jpg", "x.mpo"))
        assert np.array_equal(jpeg, mpo)
        assert mpo.width == (800 if at_least is None else 200)
    data = bytearray((tmp_path / "x.mpo").read_bytes())
    at = data.index(b"\xff\xc0") + 5  # of the frame header
    data[at : at + 4] = struct.pack(">HH", 10_000, 10_000)
    (tmp_path / "x.mpo").write_bytes(data)
    assert image_size(tmp_path / "x.mpo") == (10_000, 10_000)
    assert MAX_JPEG_PIXELS == 10_000 * 10_000
