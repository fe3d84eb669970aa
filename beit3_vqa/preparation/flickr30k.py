"""Flickr30k's images and captions in Karpathy's splits (`dataset_flickr30k.json`), for retrieval."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from beit3_vqa.preparation.karpathy import read_karpathy
from beit3_vqa.preparation.writer import Prepared, PrepareOptions
from beit3_vqa.runtime.fields import Options, option


@dataclass(frozen=True)
class Arguments(Options):
    """The file to read, and its images."""

    json: str = option(MISSING, "dataset_flickr30k.json")
    image_folder: str = option("flickr30k-images", "folder of the images inside --image_root")


def read(arguments: Arguments, options: PrepareOptions) -> Prepared:
    """Read the captions, a row for each."""
    prepared = Prepared("flickr30k", [], options.image_root, task="flickr30k")
    path, folder = Path(arguments.json), arguments.image_folder
    read_karpathy(prepared, path, image_id="imgid", folder=folder, encoding=options.encoding)
    return prepared
