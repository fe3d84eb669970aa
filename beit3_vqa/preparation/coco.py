"""COCO's images and captions in Karpathy's splits (`dataset_coco.json`), for retrieval and for captioning.

One run writes both indexes: `coco_retrieval.SPLIT.jsonl` has a row for each caption; `coco_captioning.SPLIT.jsonl` has
the same for training, and a row for each image in the other splits, whose captions are to be written. People's captions
of those images go into `coco_karpathy_SPLIT_gt.json`, in the format of COCO's own evaluation and under the name of the
file that upstream downloads.
"""

from dataclasses import MISSING, dataclass
from pathlib import Path

from beit3_vqa.preparation.karpathy import json_lines, one_row_per_image, read_karpathy, references
from beit3_vqa.preparation.writer import Prepared, PrepareOptions, Splits
from beit3_vqa.runtime.fields import Options, option

_INDEX, _REFERENCES = "coco_captioning.{split}.jsonl", "coco_karpathy_{split}_gt.json"


@dataclass(frozen=True)
class Arguments(Options):
    """The file to read."""

    json: str = option(MISSING, "dataset_coco.json")


def read(arguments: Arguments, options: PrepareOptions) -> Prepared:
    """Read the captions; `--image_root` holds train2014/ and val2014/."""
    prepared = Prepared("coco", [], options.image_root, extra_files=_captioning_files, task="coco_retrieval")
    prepared.extra_names = (_INDEX, _REFERENCES)
    read_karpathy(prepared, Path(arguments.json), image_id="cocoid", folder="", encoding=options.encoding)
    return prepared


def _captioning_files(splits: Splits) -> dict[str, str]:
    files = {}
    for split, rows in splits.items():
        written = rows if split == "train" else one_row_per_image(rows)
        files[_INDEX.format(split=split)] = json_lines(written)
        if split != "train":
            captions = ((row["image_id"], row["text_segment"]) for row in rows)
            files[_REFERENCES.format(split=split)] = references(captions)
    return files
