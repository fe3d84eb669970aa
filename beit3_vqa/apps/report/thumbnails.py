"""Small pictures for the page, as many and as large as fit."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from beit3_vqa.data.page import encode_thumbnail
from beit3_vqa.engine.logging import Progress
from beit3_vqa.errors import plural

# Longest side in pixels and WebP's quality, from a few hundred pictures to some ten thousand.
STEPS = ((480, 80), (400, 75), (320, 70), (256, 65), (208, 60), (176, 55), (144, 50), (112, 45), (80, 40), (48, 35))
SAMPLE = 48  # pictures from which the size of all is estimated
MARGIN = 1.1  # what the others may be larger by than the sample


def make_thumbnails(paths: Sequence[Path | None], budget: int) -> list[str]:
    """Encode each picture as WebP in base64, as an empty text if it can't be read.

    The largest of `STEPS` that fits is taken for all; if even the smallest doesn't, later pictures are left out.

    Args:
        paths: files of the pictures, None if one isn't known.
        budget: limit on the characters of all together.
    """
    there = [path for path in paths if path is not None]
    start = _first_step(there[:: max(1, len(there) // SAMPLE)][:SAMPLE], len(there), budget)
    for step in range(start, len(STEPS)):
        found = _encode_all(paths, STEPS[step], budget, must_fit=step + 1 < len(STEPS))
        if found is not None:
            break
    assert found is not None
    unread = sum(path is not None and not picture for path, picture in zip(paths, found, strict=True))
    if unread:
        print(f"{unread} of {plural(len(paths), 'picture')} not in the report: can't be read, or too many")
    return found


def _first_step(sample: list[Path], count: int, budget: int) -> int:
    """Return the index of the largest step at which `count` pictures like those of the sample would fit."""
    for place, step in enumerate(STEPS):
        mean = sum(len(encode_thumbnail(path, *step)) for path in sample) / max(1, len(sample))
        if mean * count * MARGIN <= budget:
            return place
    return len(STEPS) - 1


def _encode_all(
    paths: Sequence[Path | None], step: tuple[int, int], budget: int, *, must_fit: bool
) -> list[str] | None:
    """Encode all pictures; return None if they must fit and don't."""
    found, left = [], budget
    progress = Progress("pictures", len(paths))
    for picture in _in_threads(paths, step):
        if len(picture) > left:
            if must_fit:
                return None
            picture = ""
        left -= len(picture)
        found.append(picture)
        progress.update(1, dict)
    progress.close()
    return found


def _in_threads(paths: Sequence[Path | None], step: tuple[int, int]) -> Iterator[str]:
    """Encode pictures in threads, since Pillow decodes and encodes without Python's lock."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(paths), 256):  # a few in memory, and an early end if they don't fit
            yield from pool.map(lambda path: encode_thumbnail(path, *step) if path else "", paths[start : start + 256])
