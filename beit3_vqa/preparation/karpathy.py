"""Karpathy's splits of COCO and Flickr30k: images with about five captions each, one file for all splits.

Source: Karpathy & Fei-Fei 2015, https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip
"""

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from beit3_vqa.data.rows import Row, is_count
from beit3_vqa.data.tables import named_list, read_json
from beit3_vqa.errors import InputError, short
from beit3_vqa.preparation.writer import Prepared
from beit3_vqa.runtime.files import is_text

# COCO's "restval" are images of its validation set that everybody trains on.
SPLIT_OF = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def read_karpathy(prepared: Prepared, path: Path, image_id: str, folder: str, encoding: str = "") -> None:
    """Add a row for each caption: `{"id", "image_path", "image_id", "text_segment"}`.

    Args:
        prepared: takes the rows, and the problems that are met.
        path: the JSON.
        image_id: the field that tells images apart.
        folder: what comes before a file's name if an image has no `filepath`.
        encoding: of the JSON; see `data.tables.read_text`.
    """
    try:
        data, advice = read_json(path, encoding, prepared.notes), "give dataset_coco.json or dataset_flickr30k.json"
        images = named_list(data, "images", path, advice)
    except InputError as error:
        prepared.problems.append(str(error))
        return
    for origin, image in prepared.checked(images, path, "image", partial(_image_problem, image_id)):
        where = image.get("filepath", folder)
        image_path = f"{where}/{image['filename']}" if where else image["filename"]
        for number, sentence in enumerate(image["sentences"], start=1):
            problem = _sentence_problem(sentence)
            if problem:
                prepared.problems.append(f"{origin} ({image['filename']}), sentence {number}: {problem}")
                continue
            row = {"id": str(sentence["sentid"]), "image_path": image_path, "image_id": image[image_id]}
            row["text_segment"] = sentence["raw"].strip()
            prepared.add(SPLIT_OF[image["split"]], row, f"{origin}, sentence {number}")


def _image_problem(image_id: str, image: object) -> str:
    if not isinstance(image, dict):
        return "isn't an object"
    if image.get("split") not in tuple(SPLIT_OF):
        return f"split {short(image.get('split'))} is none of {', '.join(SPLIT_OF)}"
    if not is_count(image.get(image_id)):
        return f"{image_id} must be a whole number"
    for name in ("filename", "filepath"):
        if name in image and (not is_text(image[name]) or not image[name].strip()):
            return f"{name} must be text"
    if "filename" not in image:
        return "has no filename"
    return "" if isinstance(image.get("sentences"), list) and image["sentences"] else "has no list sentences"


def _sentence_problem(sentence: object) -> str:
    if not isinstance(sentence, dict):
        return "isn't an object"
    if not is_count(sentence.get("sentid")):
        return "sentid must be a whole number"
    return "" if is_text(sentence.get("raw")) and sentence["raw"].strip() else "raw must be text and not empty"


def one_row_per_image(rows: Iterable[Row]) -> list[Row]:
    """Return a row without caption for each image of some rows, in order."""
    first: dict[int, Row] = {}
    for row in rows:
        bare = {"id": str(row["image_id"]), "image_path": row["image_path"], "image_id": row["image_id"]}
        first.setdefault(row["image_id"], bare)
    return list(first.values())


def references(captions: Iterable[tuple[int, str]]) -> str:
    """Return (image id, caption) pairs as the JSON that COCO's evaluation reads."""
    pairs = list(captions)
    images = [{"id": image_id} for image_id in dict.fromkeys(image_id for image_id, _ in pairs)]
    annotations = [{"image_id": image, "caption": text, "id": number} for number, (image, text) in enumerate(pairs)]
    return json.dumps({"images": images, "annotations": annotations}, ensure_ascii=False, allow_nan=False) + "\n"


def json_lines(rows: Iterable[Row]) -> str:
    """Return the text of an index file with these rows."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
