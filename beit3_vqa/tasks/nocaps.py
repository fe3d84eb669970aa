"""Captioning on nocaps, which trains on COCO's captions."""

from pathlib import Path

from beit3_vqa.data.index import IndexFiles, split_files
from beit3_vqa.tasks.captioning import Captioning

TRAINING = IndexFiles("coco_captioning")


class NoCaps(Captioning):
    """Our index and upstream's have the same names; the training split is COCO's, in the same folder."""

    name = "nocaps"
    files = IndexFiles(name)
    reference_file = "nocaps_{split}_gt.json"

    def _files(self, split: str) -> list[Path]:
        assert self.data_path is not None
        return split_files(self.data_path, split, TRAINING if split == "train" else self.files)


TASK = NoCaps
