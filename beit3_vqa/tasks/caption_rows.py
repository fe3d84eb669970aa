"""Rows of captions, of retrieval and of captioning.

`{"id", "image_path", "text_segment": text, "image_id"}`; where the caption is to be written, there is no text, or, in
upstream's, null. Upstream's have token ids for the text, and no `id`.
"""

from beit3_vqa.data.rows import MAX_ID, Row, id_problem, is_count
from beit3_vqa.files import is_text
from beit3_vqa.schema import Example


def image_id_problem(row: Row) -> str:
    """What is wrong with the id of a row's image, or with the row's own."""
    image_id = row.get("image_id")
    if not is_count(image_id) and not (is_text(image_id) and str(image_id).strip() and len(str(image_id)) <= MAX_ID):
        return "image_id must be text or a whole number"
    return id_problem(row["id"]) if "id" in row else ""


def caption_problem(row: Row) -> str:
    """What is wrong with the caption of a row that must have one."""
    caption = row.get("text_segment")
    if isinstance(caption, list):
        return "" if caption and all(map(is_count, caption)) else "text_segment must be a list of token ids, or text"
    return "" if is_text(caption) and str(caption).strip() else "text_segment must be a caption"


def has_caption(row: Row) -> bool:
    """Whether there is one."""
    return row.get("text_segment") is not None


def caption_id(row: Row) -> str | None:
    """The row's own id; None where it has none."""
    return str(row["id"]) if "id" in row else None


def text_of(row: Row) -> tuple[str, tuple[int, ...] | None]:
    """The caption as text, or as token ids with an empty text; both are empty where there is none."""
    caption = row.get("text_segment")
    if caption is None:
        return "", ()
    return ("", tuple(caption)) if isinstance(caption, list) else (caption, None)


def caption_example(row: Row, place: int) -> Example:
    """A caption and its image; a row without an id is called by its place."""
    text, ids = text_of(row)
    name = caption_id(row)
    return Example(id=str(place) if name is None else name, image_path=row["image_path"], question=text, token_ids=ids)
