"""Decoded images are kept within a budget, and nobody can tell but by the clock."""

import pickle
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from beit3_vqa.data import images as image_cache
from beit3_vqa.data.images import BYTES_PER_IMAGE, BYTES_PER_PIXEL, BYTES_PER_ROW, ImageCache, open_image
from beit3_vqa.errors import InputError


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

    monkeypatch.setattr(image_cache, "open_image", counted)
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
