"""nocaps: images to be described that show things which COCO's captions don't name. Models train on COCO's captions.

The validation file's captions go into `nocaps_val_gt.json`. Only the evaluation server has those of the test images.

Source: Agrawal et al. 2019, "nocaps: novel object captioning at scale", https://nocaps.org
"""

from dataclasses import dataclass
from pathlib import Path

from beit3_vqa.data.rows import is_count
from beit3_vqa.data.tables import named_list, read_json
from beit3_vqa.errors import MAX_PROBLEMS, InputError
from beit3_vqa.preparation.karpathy import references
from beit3_vqa.preparation.writer import Prepared, PrepareOptions, Splits
from beit3_vqa.runtime.fields import Options, option
from beit3_vqa.runtime.files import is_text


@dataclass(frozen=True)
class Arguments(Options):
    """The files to read."""

    val: str = option("", "nocaps_val_4500_captions.json; its images are in val/ of --image_root")
    test: str = option("", "nocaps_test_image_info.json; its images are in test/ of --image_root")


def read(arguments: Arguments, options: PrepareOptions) -> Prepared:
    """Read the lists of images, a row for each, and the captions if there are any."""
    captions: list[tuple[int, str]] = []

    def files(splits: Splits) -> dict[str, str]:
        return {"nocaps_val_gt.json": references(captions)} if captions else {}

    prepared = Prepared("nocaps", [], options.image_root, extra_files=files, task="nocaps")
    prepared.extra_names = ("nocaps_{split}_gt.json",)
    if not (arguments.val or arguments.test):
        raise InputError("prepare nocaps needs --val, --test or both.")
    for split in ("val", "test"):
        if file := getattr(arguments, split):
            found = _read(prepared, split, Path(file), options.encoding)
            captions += found if split == "val" else []
    return prepared


def _read(prepared: Prepared, split: str, path: Path, encoding: str) -> list[tuple[int, str]]:
    """Add the rows of a file and return its captions as (image id, caption)."""
    try:
        data = read_json(path, encoding, prepared.notes)
        images = named_list(data, "images", path, "is it one of nocaps' files?")
    except InputError as error:
        prepared.problems.append(str(error))
        return []
    for origin, image in prepared.checked(images, path, "image", _image_problem):
        row = {"id": str(image["id"]), "image_path": f"{split}/{image['file_name']}", "image_id": image["id"]}
        prepared.add(split, row, origin)
    return _captions(prepared, data.get("annotations", []), path)


def _image_problem(image: object) -> str:
    if not isinstance(image, dict) or not is_count(image.get("id")):
        return "must be an object whose id is a whole number"
    return "" if is_text(image.get("file_name")) and image["file_name"].strip() else "file_name must be text"


def _captions(prepared: Prepared, annotations: object, path: Path) -> list[tuple[int, str]]:
    if not isinstance(annotations, list):
        prepared.problems.append(f"{path}: annotations must be a list")
        return []
    known = {row["image_id"] for rows in prepared.splits.values() for row in rows}
    pairs = []
    for place, annotation in enumerate(annotations, start=1):
        pair = annotation if isinstance(annotation, dict) else {}
        image_id, caption = pair.get("image_id"), pair.get("caption")
        if not is_count(image_id) or image_id not in known:
            prepared.problems.append(f"{path}: annotation {place}: image_id is of none of the images")
        elif not is_text(caption) or not str(caption).strip():
            prepared.problems.append(f"{path}: annotation {place}: caption must be text and not empty")
        else:
            pairs.append((pair["image_id"], str(caption).strip()))
        if len(prepared.problems) >= MAX_PROBLEMS:
            break
    return pairs
