"""The files that a user names, with a limit on their size."""

from pathlib import Path
from typing import Any

from beit3_vqa import files

MAX_SOURCE = 2_000_000_000  # bytes; VQAv2's annotations have 400 million


def read_source(path: Path) -> bytes:
    """The content of a file; InputError when it is missing, empty, too large or can't be read."""
    return files.read_bounded(path, MAX_SOURCE)


def read_json(path: Path) -> Any:
    """The content of a JSON file in UTF-8, with or without a byte order mark; InputError as of `read_source`."""
    return files.read_json(path, MAX_SOURCE)
