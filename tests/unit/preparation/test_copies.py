"""Exact and near copies of images: which are found, which aren't, and how long the search may take."""

import random
import shutil
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import skimage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance

from beit3_vqa.data.images import image_size
from beit3_vqa.data.index import assign_folds, split_by_image
from beit3_vqa.data.rows import read_rows
from beit3_vqa.errors import InputError
from beit3_vqa.preparation import PrepareOptions, copies, prepare
from beit3_vqa.preparation.copies import TooAlike, find_copies, group_alike, near_pairs, read_image_info
from tests.helpers.scpc import ANIMALS, PHOTOGRAPHS, copy_photographs, write_csv

DIFFERENT = (*PHOTOGRAPHS, "motorcycle_left.png", "motorcycle_right.png", "hubble_deep_field.jpg", "retina.jpg")
DIFFERENT = (*DIFFERENT, "ihc.png", "brick.png", "grass.png", "gravel.png", "page.png", "coins.png", "camera.png")
CHANGED = {
    "worse.jpg": lambda image: image,  # saved with quality 40
    "half.png": lambda image: image.resize((image.width // 2, image.height // 2)),
    "brighter.webp": ImageEnhance.Brightness,
    "tiny.jpg": lambda image: image.resize((96, 64)),
    "grown.jpg": lambda image: image.resize((image.width * 3 // 2, image.height * 3 // 2)),
}


def photograph(name):
    return Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")


def found_in(folder: Path):
    return find_copies({path.name: read_image_info(path, decode=True) for path in sorted(folder.iterdir())}, folder)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("changed", CHANGED)
def test_a_photograph_in_another_size_quality_or_brightness_is_a_near_copy(tmp_path, name, changed):
    image = CHANGED[changed](photograph(name))
    image = image.enhance(1.07) if isinstance(image, ImageEnhance.Brightness) else image
    image.save(tmp_path / changed, quality=40)
    photograph(name).save(tmp_path / "original.png")
    found = found_in(tmp_path)
    assert found.near == dict.fromkeys((changed, "original.png"), min(changed, "original.png"))
    assert found.exact == {}
    assert found.complete


def test_different_photographs_are_no_copies(tmp_path):
    for name in DIFFERENT:
        photograph(name).save(tmp_path / f"{name}.jpg", quality=90)
    found = found_in(tmp_path)
    assert (found.exact, found.near) == ({}, {})


def test_exact_copies_have_the_same_bytes_whatever_their_names(tmp_path):
    copy_photographs(tmp_path / "images")
    (tmp_path / "images" / "deep").mkdir()
    shutil.copy(tmp_path / "images" / "rocket.jpg", tmp_path / "images" / "deep" / "0.png")
    photograph("rocket.jpg").save(tmp_path / "images" / "again.png")  # the same pixels, other bytes
    names = [*PHOTOGRAPHS, "deep/0.png", "again.png"]
    infos = {name: read_image_info(tmp_path / "images" / name, decode=True) for name in names}
    found = find_copies(infos, tmp_path / "images")
    assert found.exact == {"deep/0.png": "deep/0.png", "rocket.jpg": "deep/0.png"}
    assert found.near == dict.fromkeys(("again.png", "deep/0.png", "rocket.jpg"), "again.png")
    assert find_copies(dict(reversed(infos.items())), tmp_path / "images") == found


def test_without_decoding_only_exact_copies_are_found(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        photograph("rocket.jpg").save(tmp_path / name)
    photograph("rocket.jpg").save(tmp_path / "c.jpg", quality=50)
    infos = {path.name: read_image_info(path, decode=False) for path in tmp_path.iterdir()}
    found = find_copies(infos, tmp_path)
    assert found.exact == found.near == {"a.jpg": "a.jpg", "b.jpg": "a.jpg"}
    assert not found.decoded


def test_of_files_that_were_not_decoded_the_beginnings_tell_most_apart(tmp_path, monkeypatch):
    for name, colours in {"a": (1, 2), "b": (3, 2), "c": (1, 4), "d": (1, 2)}.items():  # the lower and the upper half
        image = Image.new("RGB", (200, 300), (colours[1],) * 3)
        image.paste((colours[0],) * 3, (0, 150, 200, 300))
        image.save(tmp_path / f"{name}.bmp")
    read = []
    monkeypatch.setattr(copies, "file_sha256", lambda path: read.append(path.name) or path.read_bytes().hex())
    infos = {path.name: read_image_info(path, decode=False) for path in tmp_path.iterdir()}
    assert len(set(infos.values())) == 1
    assert find_copies(infos, tmp_path).exact == {"a.bmp": "a.bmp", "d.bmp": "a.bmp"}
    assert sorted(read) == ["a.bmp", "c.bmp", "d.bmp"]


def test_a_file_that_vanishes_between_the_two_looks_is_no_copy(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        photograph("rocket.jpg").save(tmp_path / name)
    infos = {path.name: read_image_info(path, decode=True) for path in tmp_path.iterdir()}
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "c.jpg").unlink()
    assert find_copies(infos, tmp_path).exact == {"b.jpg": "b.jpg", "d.jpg": "b.jpg"}


def test_files_that_only_seem_the_same_are_read(tmp_path):
    photograph("rocket.jpg").save(tmp_path / "a.jpg")
    content = bytearray((tmp_path / "a.jpg").read_bytes())
    content[15] ^= 1  # the density that JFIF names
    (tmp_path / "b.jpg").write_bytes(content)
    found = found_in(tmp_path)
    assert found.exact == {}
    assert set(found.near) == {"a.jpg", "b.jpg"}


def test_flat_pictures_are_near_copies_only_in_the_same_colour(tmp_path):
    for name, colour in {"white": 255, "paper": 248, "grey": 128, "red": (200, 0, 0), "wine": (190, 0, 10)}.items():
        colour = colour if isinstance(colour, tuple) else (colour,) * 3
        Image.new("RGB", (300, 200), colour).save(tmp_path / f"{name}.png")
    assert all(read_image_info(path, decode=True).bits == 0 for path in tmp_path.iterdir())
    expected = {"paper.png": "paper.png", "white.png": "paper.png", "red.png": "red.png", "wine.png": "red.png"}
    assert found_in(tmp_path).near == expected


def test_drawings_of_one_outline_differ_by_their_colours(tmp_path):
    for name, colour in {"red": (200, 30, 30), "blue": (30, 30, 200), "again": (205, 28, 33)}.items():
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((20, 20, 40, 40), fill=colour)
        image.save(tmp_path / f"{name}.png")
    assert found_in(tmp_path).near == {"again.png": "again.png", "red.png": "again.png"}


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_the_size_is_that_of_the_upright_picture_at_full_scale(tmp_path, suffix):
    path = tmp_path / f"lying.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph("coffee.png").save(path, exif=exif)
    info = read_image_info(path, decode=True)
    assert info.size == image_size(path) == (400, 600)
    photograph("coffee.png").transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    upright = read_image_info(tmp_path / "upright.png", decode=True)
    assert (info.bits ^ upright.bits).bit_count() <= 2  # as many bits as JPEG's smaller scale changes


# The search


def brute_force(hashes):
    return {
        (one, other)
        for one in range(len(hashes))
        for other in range(one + 1, len(hashes))
        if (int(hashes[one]) ^ int(hashes[other])).bit_count() <= 4
    }


def pairs_of(hashes, **more):
    blocks = near_pairs(np.array(hashes, np.uint64), **more)
    return {
        (min(pair), max(pair)) for some, others in blocks for pair in zip(some.tolist(), others.tolist(), strict=True)
    }


@st.composite
def hash_sets(draw):
    """Different hashes, many of them a few bits apart."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    flips = draw(st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 63), max_size=6)), max_size=60))
    changed = [centres[place % len(centres)] ^ sum(1 << bit for bit in bits) for place, bits in flips]
    return sorted({*centres, *changed})


@given(hashes=hash_sets(), at_once=st.sampled_from([1, 20, 50_000]))
def test_the_search_by_bands_finds_what_comparing_all_pairs_does(hashes, at_once):
    with mock.patch.object(copies, "_AT_ONCE", at_once):  # 1 cuts even small sets into bands
        assert pairs_of(hashes) == brute_force(hashes)


def test_a_large_set_is_cut_into_bands_and_nothing_is_lost():
    rng = random.Random(0)
    hashes = {rng.getrandbits(64) for _ in range(3000)}
    planted = {value ^ sum(1 << bit for bit in rng.sample(range(64), 4)) for value in sorted(hashes)[:300]}
    hashes = sorted(hashes | planted)
    compared = []
    compare = copies._compare_all

    def counting(hashes, places):
        compared.append(len(places) * (len(places) - 1) // 2)
        return compare(hashes, places)

    with mock.patch.object(copies, "_compare_all", counting):
        assert len(pairs_of(hashes)) == 300
    assert sum(compared) < 20_000  # of 5 million


@given(
    data=st.lists(
        st.tuples(st.sampled_from([0, 1, 0b1111, 0b11111, 2**63, 2**63 + 0b111]), st.integers(0, 90)), max_size=40
    )
)
def test_groups_are_those_that_near_pairs_link(data):
    bits = np.array([value for value, _ in data], np.uint64)
    colours = np.array([[level] * 192 for _, level in data], np.uint8).reshape(-1, 192)
    expected = list(range(len(data)))
    for _ in data:
        for one, (value, level) in enumerate(data):
            for other, (another, next_level) in enumerate(data):
                if (value ^ another).bit_count() <= 4 and abs(level - next_level) <= 24:
                    expected[one] = expected[other] = min(expected[one], expected[other])
    found, complete = group_alike(bits, colours)
    assert found.tolist() == expected
    assert complete


@pytest.mark.parametrize("count", [200_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_the_work_for_many_hashes_is_far_from_quadratic(count):
    rng = np.random.default_rng(0)
    hashes = np.unique(rng.integers(0, 2**64, count, dtype=np.uint64))
    hashes[1] = hashes[0] ^ np.uint64(0b1001)
    hashes = np.unique(hashes)
    # Five bands of 13 bits, so that a picture is compared with five in 8,192.
    found = sum(len(some) for some, _ in near_pairs(hashes, budget=count * count // 2 * 7 // 8192))
    assert found >= 1


@pytest.mark.parametrize("noise", [0, 5])
def test_a_hundred_thousand_pictures_with_one_hash_are_grouped(noise):
    """Blank pages: as PNG their colours are the same too, as JPEG they differ a little."""
    rng = np.random.default_rng(0)
    colours = (200 + rng.integers(0, noise + 1, (100_000, 192))).astype(np.uint8)
    colours[::2] -= 100
    found, complete = group_alike(np.zeros(100_000, np.uint64), colours)
    assert complete
    assert Counter(found.tolist()) == {0: 50_000, 1: 50_000}


def test_a_crowd_in_too_many_colours_is_left_and_said_to_be():
    rng = np.random.default_rng(0)
    colours = np.repeat(rng.integers(0, 256, (3000, 3), dtype=np.uint8), 64, axis=0).reshape(3000, 192)
    found, complete = group_alike(np.zeros(3000, np.uint64), colours)
    assert not complete
    largest = Counter(found.tolist()).most_common(1)[0]
    assert largest[1] > 1
    members = colours[found == largest[0]].astype(int)
    assert np.abs(members - colours[largest[0]]).max() <= copies.MAX_COLOUR


def test_a_search_that_would_take_too_long_ends_and_says_so(monkeypatch):
    hashes = [1 << bit for bit in range(64)]
    with pytest.raises(TooAlike):
        pairs_of(hashes, budget=2015)
    assert len(pairs_of(hashes, budget=2016)) == 2016
    colours = np.zeros((64, 192), np.uint8)
    assert group_alike(np.array(hashes, np.uint64), colours)[1]
    monkeypatch.setattr(copies, "MAX_PAIRS", 100)
    assert not group_alike(np.array(hashes, np.uint64), colours)[1]
    assert [part.tolist() for part in group_alike(np.empty(0, np.uint64), np.empty((0, 192), np.uint8))[:1]] == [[]]


# Splits


@given(
    group_of=st.lists(st.integers(0, 12), min_size=2, max_size=40).filter(lambda groups: len(set(groups)) > 1),
    ratio=st.floats(0.05, 0.95),
    seed=st.integers(0, 3),
    data=st.data(),
)
@settings(max_examples=60)
def test_no_group_is_on_both_sides_of_a_split_by_groups(group_of, ratio, seed, data):
    rows = [
        {"id": str(number), "image_path": f"{number}.jpg", "answer": "ABCD"[data.draw(st.integers(0, 3))]}
        for number in range(len(group_of))
    ]

    def key(row):
        return f"group {group_of[int(row['id'])]}"

    train, val = split_by_image(rows, ratio, seed, key)
    assert not {key(row) for row in train} & {key(row) for row in val}
    assert sorted(train + val, key=lambda row: int(row["id"])) == rows
    assert train
    assert val
    shuffled = data.draw(st.permutations(rows))
    assert {row["id"] for row in split_by_image(shuffled, ratio, seed, key)[1]} == {row["id"] for row in val}
    folds = assign_folds(rows, 2, seed, key)
    assert len({(key(row), fold) for row, fold in zip(rows, folds, strict=True)}) == len(set(group_of))


@pytest.fixture
def copied(tmp_path):
    """Four photographs and four near copies of each, one question about each picture."""
    images = copy_photographs(tmp_path / "images")
    rows = []
    for place, name in enumerate(PHOTOGRAPHS):
        for number, quality in enumerate((95, 70, 50, 30)):
            photograph(name).save(images / f"{number}_{place}.jpg", quality=quality)
            rows.append([f"{place}{number}", f"{number}_{place}.jpg", "What is this?", *ANIMALS, "ABCD"[place]])
    return write_csv(tmp_path / "train.csv", rows)


def subject(row):
    return row["image_path"].split("_")[1]


def test_group_near_copies_keeps_them_on_one_side(tmp_path, copied):
    out, train = tmp_path / "out", {"train": str(copied)}
    summary = prepare("choices", train, PrepareOptions(out, tmp_path / "images", val_ratio=0.25))
    assert "VAL IMAGES IN TRAIN: 4 of 4 (near copy 4), such as " in summary.text()
    assert "; --group_near_copies keeps them on one side" in summary.text()
    options = PrepareOptions(out, tmp_path / "images", val_ratio=0.25, group_near_copies=True)
    summary = prepare("choices", train, options)
    sides = [{subject(row) for row in read_rows(out / f"vqacustom.{split}.jsonl")} for split in ("train", "val")]
    assert sides[0].isdisjoint(sides[1])
    assert len(sides[1]) == 1
    assert "IN TRAIN" not in summary.text()
    assert "validation split cut from train by image, ratio 0.25, seed 41, near copies together" in summary.text()


def test_group_near_copies_keeps_them_in_one_fold(tmp_path, copied):
    for grouped in (False, True):
        options = PrepareOptions(tmp_path / "out", tmp_path / "images", folds=2, group_near_copies=grouped)
        summary = prepare("choices", {"train": str(copied)}, options)
        rows = read_rows(tmp_path / "out" / "vqacustom.train.jsonl")
        assert (len({(subject(row), row["fold"]) for row in rows}) == 4) == grouped
        assert ("groups of copies lie in more than one fold" in summary.text()) != grouped


def test_group_near_copies_changes_no_split_of_images_without_copies(tmp_path):
    images = copy_photographs(tmp_path / "images")
    rows = [[f"{n}", PHOTOGRAPHS[n % 4], f"What is {n}?", *ANIMALS, "ABCD"[n % 4]] for n in range(12)]
    train = {"train": str(write_csv(tmp_path / "train.csv", rows))}
    written = []
    for grouped in (False, True):
        out = tmp_path / f"out{grouped}"
        prepare("choices", train, PrepareOptions(out, images, group_near_copies=grouped))
        written.append([(out / f"vqacustom.{split}.jsonl").read_bytes() for split in ("train", "val")])
    assert written[0] == written[1]


def test_group_near_copies_says_when_it_cant_do_anything(tmp_path, copied):
    images, train = tmp_path / "images", {"train": str(copied)}
    with pytest.raises(InputError, match="--group_near_copies compares decoded images: leave --no_verify_images out"):
        PrepareOptions(tmp_path / "out", images, group_near_copies=True, verify_images=False)
    options = PrepareOptions(tmp_path / "out", images, group_near_copies=True, val_ratio=0)
    assert "--group_near_copies changes nothing" in prepare("choices", train, options).text()
    rows = [[str(number), f"{number}_2.jpg", "What?", *ANIMALS, "A"] for number in range(4)]
    alike = {"train": str(write_csv(tmp_path / "alike.csv", rows))}
    with pytest.raises(InputError, match=r"have 1 image.*with --group_near_copies, near copies count as one image"):
        prepare("choices", alike, PrepareOptions(tmp_path / "alike", images, group_near_copies=True))
    with pytest.raises(InputError, match="give --group_near_copies with --folds"):
        prepare("easy_vqa", {}, PrepareOptions(tmp_path / "easy", group_near_copies=True))
