"""Image-text retrieval on Flickr30k."""

from beit3_vqa.data.index import IndexFiles
from beit3_vqa.tasks.retrieval import Retrieval


class Flickr30k(Retrieval):
    """Our index and upstream's have the same names."""

    name = "flickr30k"
    files = IndexFiles(name)


TASK = Flickr30k
