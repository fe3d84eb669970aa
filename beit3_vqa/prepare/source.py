"""Reading the files that a user names, with errors that help when they aren't there."""

import json
from pathlib import Path
from typing import Any

from beit3_vqa.errors import InputError
from beit3_vqa.files import missing, require_bounded

MAX_SOURCE = 2_000_000_000  # bytes; VQAv2's annotations have 400 million


def read_source(path: Path) -> bytes:
    """The content of a file; InputError when it is missing, empty or can't be read."""
    if not path.exists():
        raise InputError(missing("file", path))
    require_bounded(path, MAX_SOURCE)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    if not content.strip():
        raise InputError(f"{path} is empty")
    return content


def read_json(path: Path) -> Any:
    """The content of a JSON file in UTF-8, with or without a byte order mark."""
    content = read_source(path)
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} isn't UTF-8 (byte {error.start}); save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} isn't valid JSON: {error}") from error
