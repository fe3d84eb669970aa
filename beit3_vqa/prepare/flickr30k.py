"""Flickr30k's images and captions in Karpathy's splits (`dataset_flickr30k.json`), for retrieval."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beit3_vqa.prepare import Argument
from beit3_vqa.prepare.karpathy import read_karpathy
from beit3_vqa.prepare.writer import Prepared, PrepareOptions

ARGUMENTS = (
    Argument("json", "dataset_flickr30k.json", required=True),
    Argument("image_folder", "folder of the images inside --image_root", default="flickr30k-images"),
)


def read(values: Mapping[str, Any], options: PrepareOptions) -> Prepared:
    """Read the captions, a row for each."""
    prepared = Prepared("flickr30k", [], options.image_root, task="flickr30k")
    path, folder = Path(values["json"]), values["image_folder"]
    read_karpathy(prepared, path, image_id="imgid", folder=folder, encoding=options.encoding)
    return prepared
