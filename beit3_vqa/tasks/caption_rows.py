"""Rows of captions, of retrieval and of captioning, ours and upstream's.

Ours: `{"id", "image_path", "image_id", "caption": text}`, without a caption where it is to be written. Upstream's:
`{"image_path", "text_segment": [token ids] or null, "image_id"}`, without an id.
"""

from beit3_vqa.data.rows import MAX_ID, Row, id_problem, is_count
from beit3_vqa.files import is_text


def image_id_problem(row: Row) -> str:
    """What is wrong with the id of a row's image, or with the row's own."""
    image_id = row.get("image_id")
    if not is_count(image_id) and not (is_text(image_id) and str(image_id).strip() and len(str(image_id)) <= MAX_ID):
        return "image_id must be text or a whole number"
    return id_problem(row["id"]) if "id" in row else ""


def caption_problem(row: Row) -> str:
    """What is wrong with the caption of a row that must have one."""
    caption = row.get("caption", row.get("text_segment"))
    if isinstance(caption, list):
        return "" if caption and all(map(is_count, caption)) else "text_segment must be a list of token ids, or text"
    return "" if is_text(caption) and str(caption).strip() else "caption (or text_segment) must be text and not empty"


def has_caption(row: Row) -> bool:
    """Whether there is one; upstream writes null where there isn't."""
    return row.get("caption", row.get("text_segment")) is not None


def caption_id(row: Row) -> str | None:
    """The row's own id; None in upstream's, which have none."""
    return str(row["id"]) if "id" in row else None


def text_of(row: Row) -> tuple[str, tuple[int, ...] | None]:
    """The caption as text, or as token ids with an empty text; both are empty where there is none."""
    caption = row.get("caption", row.get("text_segment"))
    if caption is None:
        return "", ()
    return ("", tuple(caption)) if isinstance(caption, list) else (caption, None)
