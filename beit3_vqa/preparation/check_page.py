"""What `check` found as a page for people, with small pictures, and as JSON: two files of the prepared folder."""

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from beit3_vqa.data.images import resolve_image_path
from beit3_vqa.data.page import csp_sha256, encode_thumbnail, read_style, read_template
from beit3_vqa.errors import InputError, one_line, plural
from beit3_vqa.preparation.findings import Findings
from beit3_vqa.runtime.files import write_text

PAGE, DATA = "check.html", "check.json"
# On the page, of each kind; check.json lists more.
SHOWN = 12
SHOWN_IN_GROUP = 6
PICTURES = 150
PICTURE = (160, 60)  # longest side in pixels, and WebP's quality
MAX_PICTURES = 1_500_000  # characters of all pictures
MAX_TEXT = 300  # characters of a text from the data
_PACKAGE = "beit3_vqa.preparation"


def write_check(folder: Path, found: Findings, lines: Sequence[str], title: str, root: Path) -> list[str]:
    """Write the page and the data, and return their names.

    Args:
        folder: where to write them.
        found: what `check.find` returned.
        lines: what `check.tell` returned.
        title: what was prepared.
        root: the folder that image paths start from.
    """
    data = {**found, "findings": list(lines)}
    write_text(folder / DATA, [json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False), "\n"])
    style = read_style(_PACKAGE, "check.css")
    page = read_template(_PACKAGE, "check.html.j2", f"{PAGE} of prepare").generate(
        title=one_line(title),
        found=found,
        lines=[one_line(line) for line in lines],
        pictures=_pictures(_names(found), root),
        text=_text,
        plural=plural,
        style=style,
        style_sha256=csp_sha256(style),
        shown=SHOWN,
        in_group=SHOWN_IN_GROUP,
        data=DATA,
    )
    write_text(folder / PAGE, page)
    return [PAGE, DATA]


def _text(value: object) -> str:
    """Return a text from the data for the page: on one line, cut if it is long."""
    text = one_line(str(value))
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} ..."


def _names(found: Findings) -> Iterable[str]:
    """Yield the images that the page shows, most telling first, some of them more than once."""
    for of in found["in_train"].values():
        for entry in of["listed"][:SHOWN]:
            yield from (entry["train"], entry["image"])
    for repeated in found["repeated_questions"].values():
        for question in repeated["listed"][:SHOWN]:
            yield question["rows"][0]["image"]
    for copies in (found["copies"]["near"], found["copies"]["exact"]):
        for group in copies["listed"][:SHOWN]:
            yield from (image["image"] for image in group[:SHOWN_IN_GROUP])


def _pictures(names: Iterable[str], root: Path) -> dict[str, str]:
    """Return image -> WebP in base64, as many as fit; an image that can't be read is left out."""
    wanted = list(dict.fromkeys(names))[:PICTURES]
    # Without this outer frame one thread would undo what another did, as in `writer`.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        encoded = pool.map(lambda name: _encode(root, name), wanted)
        pictures, left = {}, MAX_PICTURES
        for name, picture in zip(wanted, encoded, strict=True):
            if picture and len(picture) <= left:
                pictures[name] = picture
                left -= len(picture)
    return pictures


def _encode(root: Path, name: str) -> str:
    try:
        return encode_thumbnail(resolve_image_path(root, name), *PICTURE)
    except InputError:  # a row that is kept though nobody can read its image
        return ""
