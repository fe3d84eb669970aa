"""Captioning on COCO."""

from beit3_vqa.data.index import IndexFiles
from beit3_vqa.tasks.captioning import Captioning


class COCOCaptioning(Captioning):
    """Our index and upstream's have the same names; references go by the name of the file that upstream downloads."""

    name = "coco_captioning"
    files = IndexFiles(name)
    reference_file = "coco_karpathy_{split}_gt.json"


TASK = COCOCaptioning
