"""Find images that are copies of others: the same bytes, or the same picture in another size, quality or brightness.

Two images are near copies if two things hold, both taken from the decoded image:

- their difference hashes differ in at most `MAX_DISTANCE` of 64 bits. A bit says whether, in a grid of 9x8 cells of
  grey, a cell is brighter than its neighbour on the left by more than `_NOISE` levels, which compression doesn't reach;
- no cell of an 8x8 grid of their mean colours differs by more than `MAX_COLOUR` of 255 levels.

The second is for pictures that a hash can't tell apart. A flat picture has no bit set, and a drawing on white has few:
of 2,500 drawings of easy-VQA 131,074 pairs have hashes that are near, and 20 are near copies. So two flat pictures are
near copies only if their colours are. A turned or cropped picture isn't found.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit3_vqa.data.images import image_size, open_with_size, resolve_image_path
from beit3_vqa.runtime.files import file_sha256

MAX_DISTANCE = 4  # bits
MAX_COLOUR = 24  # of 255 levels
_NOISE = 2  # of 255 levels
_SIDE = 8  # cells of a row of bits and of colours, and of a column
_AT_LEAST = 8 * _SIDE  # pixels of the shorter side; a JPEG is decoded at that scale, which takes half the time
_BEGINNING = 2**16  # bytes
_COLOURS = 3 * _SIDE * _SIDE
# A pair needs 5 nanoseconds to compare hashes and 300 to compare colours: this bounds the search to some seconds.
MAX_HASHES = 500_000_000
MAX_PAIRS = 10_000_000
CROWD = 64  # pictures with the same hash that are compared with those of another
_AT_ONCE = 50_000  # pairs of colours, 10 MB each

Hashes = NDArray[np.uint64]
Places = NDArray[np.intp]


@dataclass(frozen=True)
class ImageInfo:
    """What the check of an image saw.

    Attributes:
        size: (width, height) in pixels.
        length: bytes of the file.
        bits: the 64-bit difference hash; None if only the header was read.
        colours: mean colours, 8 x 8 x 3 bytes; empty if only the header was read.
    """

    size: tuple[int, int]
    length: int
    bits: int | None = None
    colours: bytes = b""


def read_image_info(path: Path, decode: bool) -> ImageInfo:
    """Read an image, or only its header unless `decode` is set; ImageError if it can't be read."""
    if not decode:
        return ImageInfo(image_size(path), _length(path))
    image, size = open_with_size(path, _AT_LEAST)
    return ImageInfo(size, _length(path), *_mark(image))


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # somebody has just removed it
        return -1


def _mark(image: Image.Image) -> tuple[int, bytes]:
    """Return the difference hash and the mean colours of an image of mode RGB."""
    factor = min(image.size) // _AT_LEAST
    if factor > 1:  # a quick mean over whole pixels, so that the exact one has less to do
        image = image.reduce(factor)
    grey = image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BILINEAR)
    cells = np.asarray(grey, np.int16)
    bits = np.packbits(cells[:, 1:] - cells[:, :-1] > _NOISE)
    return int.from_bytes(bits.tobytes(), "big"), image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR).tobytes()


@dataclass(frozen=True)
class Copies:
    """Which images are copies of which; an image without a copy isn't named.

    Attributes:
        exact: image -> the first, by name, of those with the same bytes.
        near: image -> the first, by name, of its group. A group holds exact copies too, and whatever is a near copy
            of any of its members.
        decoded: False if only headers were read, so that near copies weren't looked for.
        complete: False if so many pictures look alike that not all of them were compared.
    """

    exact: Mapping[str, str]
    near: Mapping[str, str]
    decoded: bool
    complete: bool


def find_copies(infos: Mapping[str, ImageInfo], root: Path) -> Copies:
    """Find the copies among images, each named by its path below `root`; the result doesn't depend on their order."""
    exact = _exact_copies(infos, root)
    names = sorted(name for name in infos if exact.get(name, name) == name and infos[name].bits is not None)
    first, complete = group_alike(
        np.array([infos[name].bits for name in names], np.uint64),
        np.frombuffer(b"".join(infos[name].colours for name in names), np.uint8).reshape(-1, _COLOURS),
    )
    group = {name: names[place] for name, place in zip(names, first.tolist(), strict=True)}
    members: dict[str, list[str]] = defaultdict(list)
    for name in infos:
        same = exact.get(name, name)
        members[group.get(same, same)].append(name)
    near = {name: min(alike) for alike in members.values() if len(alike) > 1 for name in alike}
    decoded = all(info.bits is not None for info in infos.values())
    return Copies(exact, near, decoded, complete)


def _exact_copies(infos: Mapping[str, ImageInfo], root: Path) -> dict[str, str]:
    """Return image -> the first with the same SHA-256, for images that have such a copy.

    Only files that look the same and are equally long are read again. Of those that weren't decoded, such as bitmaps of
    one size, the beginnings tell most apart.
    """
    names = sorted(infos)
    keys: Mapping[str, tuple[ImageInfo, str]] = {name: (info, "") for name, info in infos.items()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for checksum in (_checksum_of_beginning, file_sha256):
            counts = Counter(keys[name] for name in names)
            names = [name for name in names if counts[keys[name]] > 1]
            found = pool.map(partial(_checksum, checksum, root), names)
            keys = {name: (infos[name], one) for name, one in zip(names, found, strict=True)}
    same: dict[tuple[ImageInfo, str], list[str]] = defaultdict(list)
    for name in names:
        same[keys[name]].append(name)
    return {name: found[0] for found in same.values() if len(found) > 1 for name in found}


def _checksum(checksum: Callable[[Path], str], root: Path, name: str) -> str:
    try:
        return checksum(resolve_image_path(root, name))
    except OSError:  # somebody has just removed it
        return f"can't be read: {name}"


def _checksum_of_beginning(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(_BEGINNING)).hexdigest()


def group_alike(bits: Hashes, colours: NDArray[np.uint8]) -> tuple[Places, bool]:
    """Group pictures that are near copies, or linked by others that are.

    Args:
        bits: uint64 (N,), the difference hashes.
        colours: uint8 (N, 192), the mean colours.

    Returns:
        int (N,), the place of the first picture of each one's group; and whether all pairs were compared that could be
        near copies. Of more than `CROWD` pictures with the same hash, those that are near the first are one group, then
        those near the first of the others, and so on; past the limits of the search the rest stay alone.
    """
    parent = np.arange(len(bits))
    complete = True
    hashes, kind, counts = np.unique(bits, return_inverse=True, return_counts=True)
    order = np.argsort(kind, kind="stable")
    faces: list[Places] = []  # of each hash the pictures that stand for it
    for members in np.split(order, np.cumsum(counts)[:-1]):
        if len(members) > CROWD:
            members, all_seen = _stand_for(members, colours, parent)
            complete = complete and all_seen
        faces.append(members)
    if not faces:
        return parent, complete
    sizes = np.array([len(members) for members in faces])
    members, start = np.concatenate(faces), np.cumsum(sizes) - sizes
    left = MAX_PAIRS
    itself = np.nonzero((sizes > 1) & (sizes <= CROWD))[0]
    try:
        for one, other in chain([(itself, itself)], near_pairs(hashes)):
            for a, b in _pair_members(one, other, members, start, sizes):
                left -= len(a)
                if left < 0:
                    return _roots(parent, np.arange(len(parent))), False
                close = _differ(colours[a], colours[b]) <= MAX_COLOUR
                _join(parent, a[close], b[close])
    except TooAlike:
        complete = False
    return _roots(parent, np.arange(len(parent))), complete


def _stand_for(members: Places, colours: NDArray[np.uint8], parent: Places) -> tuple[Places, bool]:
    """Join pictures with the same hash to the first that is near; return those first ones, and if they are all."""
    firsts = []
    for _ in range(CROWD):
        if not len(members):
            break
        close = _differ(colours[members], colours[members[0]]) <= MAX_COLOUR
        _join(parent, members[close], np.full(int(close.sum()), members[0]))
        firsts.append(members[0])
        members = members[~close]
    return np.array(firsts, np.intp), not len(members)


def _differ(some: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the largest difference of two pictures' colours, for each pair."""
    largest: NDArray[np.uint8] = (np.maximum(some, others) - np.minimum(some, others)).max(axis=1, initial=0)
    return largest


def _pair_members(
    one: Places, other: Places, members: Places, start: Places, sizes: Places
) -> Iterator[tuple[Places, Places]]:
    """Yield the pairs of pictures that pairs of hashes stand for, `_AT_ONCE` or few more at a time."""
    counts = sizes[one] * sizes[other]
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(0, ends[-1] if len(ends) else 0, _AT_ONCE), side="right")
    for part in np.split(np.arange(len(one)), np.unique(cuts)):
        many, width = counts[part], sizes[other[part]]
        place = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        row, column = np.divmod(place, np.repeat(width, many))
        yield (
            members[np.repeat(start[one[part]], many) + row],
            members[np.repeat(start[other[part]], many) + column],
        )


def _roots(parent: Places, places: Places) -> Places:
    """Return the root of each place; a parent comes before its child, so there are no circles."""
    found = parent[places]
    while not np.array_equal(higher := parent[found], found):
        found = higher
    return found


def _join(parent: Places, some: Places, others: Places) -> None:
    """Join the groups of each pair (union-find); the root of a group is its first place."""
    while len(some):
        some, others = _roots(parent, some), _roots(parent, others)
        apart = some != others
        some, others = some[apart], others[apart]
        np.minimum.at(parent, np.maximum(some, others), np.minimum(some, others))


class TooAlike(Exception):  # noqa: N818
    """So many hashes are alike that comparing them all would take too long."""


def near_pairs(hashes: Hashes, budget: int = MAX_HASHES) -> Iterator[tuple[Places, Places]]:
    """Yield the pairs of different hashes that differ in `MAX_DISTANCE` bits or fewer, in blocks; some more than once.

    Bits are cut into one band more than may differ: then two hashes have one band in common (pigeonhole), and only
    those with a common band are compared. A band that many have in common is cut again in its other bits.

    Args:
        hashes: uint64 (N,), each once.
        budget: pairs to compare at most.

    Raises:
        TooAlike: the budget is used up; what was yielded is right, but isn't all.
    """
    waiting = [(np.arange(len(hashes)), tuple(range(64)))]
    while waiting:
        places, bits = waiting.pop()
        own = len(places) * (len(places) - 1) // 2
        buckets = _in_bands(hashes, places, bits) if own > _AT_ONCE else []
        # Cutting must halve the work, or it would go on for ever in a crowd of hashes that are all near each other.
        if buckets and sum(len(bucket) ** 2 for bucket, _ in buckets) < own:
            waiting += buckets
            continue
        budget -= own
        if budget < 0:
            raise TooAlike
        yield from _compare_all(hashes, places)


def _in_bands(hashes: Hashes, places: Places, bits: tuple[int, ...]) -> list[tuple[Places, tuple[int, ...]]]:
    """Return the places that have a band of the `bits` in common, for each band and value, with the other bits."""
    found = []
    for band in range(MAX_DISTANCE + 1):
        own = bits[band :: MAX_DISTANCE + 1]
        rest = tuple(bit for bit in bits if bit not in own)
        value = hashes[places] & np.uint64(sum(1 << bit for bit in own))
        order = np.argsort(value, kind="stable")
        edges = np.nonzero(np.diff(value[order]))[0] + 1
        found += [(bucket, rest) for bucket in np.split(places[order], edges) if len(bucket) > 1]
    return found


def _compare_all(hashes: Hashes, places: Places) -> Iterator[tuple[Places, Places]]:
    """Yield the near pairs among some places, each place compared with every later one."""
    rows = max(1, _AT_ONCE * 20 // max(1, len(places)))
    for start in range(0, len(places) - 1, rows):
        some, others = places[start : start + rows], places[start + 1 :]
        distance = np.bitwise_count(hashes[some][:, None] ^ hashes[others][None])
        one, other = np.nonzero(distance <= MAX_DISTANCE)
        later = other >= one  # `others` begins one place after `some`
        if later.any():
            yield some[one[later]], others[other[later]]
