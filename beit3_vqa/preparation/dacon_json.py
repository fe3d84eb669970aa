"""Open-ended questions of DACON: JSON of {"image_id", "question", "answer", "question_id"}, or the same as CSV.

It is `table` for files whose columns have these names. Images are `train/{image_id}.jpg` and the like, or lie in the
image root itself; if a folder has an image in several formats, .jpg is meant before .jpeg and .png.
"""

from beit3_vqa.preparation.table import Arguments, Dialect, read_tables
from beit3_vqa.preparation.writer import Prepared, PrepareOptions

__all__ = ["Arguments", "read"]

_OWN = {"id": "question_id", "image": "image_id", "question": "question", "answer": "answer"}


def read(arguments: Arguments, options: PrepareOptions) -> Prepared:
    """Read the questions of each split; those of test may lack an answer."""
    return read_tables(arguments, options, Dialect("dacon_json", _OWN, images_by_id=True))
