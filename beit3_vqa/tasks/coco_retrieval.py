"""Image-text retrieval on COCO."""

from beit3_vqa.data.index import IndexFiles
from beit3_vqa.tasks.retrieval import Retrieval


class COCORetrieval(Retrieval):
    """Our index and upstream's have the same names."""

    name = "coco_retrieval"
    files = IndexFiles(name)


TASK = COCORetrieval
