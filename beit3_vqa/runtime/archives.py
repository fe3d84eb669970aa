"""A checkpoint file's outside: torch's format is a zip archive whose entries are stored as they are."""

import zipfile
from pathlib import Path
from typing import NamedTuple


class Archive(NamedTuple):
    """A zip archive's entries, and whether it would take more memory than it has bytes: packed, or one over another.

    `torch.save` packs nothing, but `torch.load` unpacks: a file of a megabyte can fill the memory.
    """

    names: list[str]
    packed: bool


def read_archive(path: Path) -> Archive | None:
    """Return what a zip archive's directory says; None if the file is no zip archive, or its directory is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # a broken directory makes zipfile raise nearly anything
        return None
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    larger = sum(entry.file_size for entry in entries) > path.stat().st_size
    return Archive([entry.filename for entry in entries], packed or larger)


def is_packed(path: Path) -> bool:
    """Return whether it is a zip archive that `torch.load` would unpack; of other files torch has its own opinion."""
    archive = read_archive(path)
    return archive is not None and archive.packed


def damaged_entry(path: Path) -> str | None:
    """Return the first entry whose check sum is wrong, empty if all are right; None if it can't be read as a zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() or ""
    except Exception:  # as in `read_archive`
        return None
