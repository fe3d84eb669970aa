"""What pages have in common that are one file and load nothing: style, template, policy, small pictures."""

import base64
import hashlib
import io
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from beit3_vqa.data.images import open_image
from beit3_vqa.errors import ImageError
from beit3_vqa.runtime.extras import import_extra

if TYPE_CHECKING:
    import jinja2


def read_template(package: str, name: str, what: str) -> "jinja2.Template":
    """Read a page's template, which escapes whatever isn't marked as safe.

    Args:
        package: the package that holds the file.
        name: the file's name.
        what: what the page is, for the message.

    Raises:
        InputError: jinja2 isn't installed, which is best found out first.
    """
    engine = import_extra("jinja2", "report", what)
    environment: jinja2.Environment = engine.Environment(
        autoescape=True, undefined=engine.StrictUndefined, keep_trailing_newline=True
    )
    return environment.from_string(read_part(package, name))


def read_part(package: str, name: str) -> str:
    """Return the text of a file that belongs to a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def read_style(package: str, name: str) -> str:
    """Return the style that all pages have, with a page's own behind it."""
    return read_part("beit3_vqa.data", "page.css") + read_part(package, name)


def csp_sha256(text: str) -> str:
    """Return the hash by which a Content-Security-Policy names an inline element."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def encode_thumbnail(path: Path, side: int, quality: int) -> str:
    """Return base64 of a picture as WebP, its longest side at most `side` pixels; empty if it can't be read."""
    try:
        image = open_image(path, at_least=side)
    except ImageError:
        return ""
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, "WEBP", quality=quality, method=4)
    return base64.b64encode(content.getvalue()).decode("ascii")
