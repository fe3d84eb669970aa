"""The zip archive around a checkpoint: torch stores its entries uncompressed."""

import zipfile
from pathlib import Path
from typing import NamedTuple


class Archive(NamedTuple):
    """What the directory of a zip archive says.

    `torch.save` compresses nothing, but `torch.load` unpacks: a compressed file of a megabyte can fill the memory.

    Attributes:
        names: names of the entries.
        packed: True if reading it takes more memory than the file has bytes: entries are compressed or overlap.
    """

    names: list[str]
    packed: bool


def read_archive(path: Path) -> Archive | None:
    """Read the directory of a zip archive; None if the file is no zip archive, or its directory is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # a broken directory makes zipfile raise nearly anything
        return None
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    larger = sum(entry.file_size for entry in entries) > path.stat().st_size
    return Archive([entry.filename for entry in entries], packed or larger)


def is_packed(path: Path) -> bool:
    """Return whether the file is a zip archive that `torch.load` would unpack; False for other files."""
    archive = read_archive(path)
    return archive is not None and archive.packed


def damaged_entry(path: Path) -> str | None:
    """Return the first entry with a wrong checksum; empty if all are right, None if the file can't be read as a zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() or ""
    except Exception:  # as in `read_archive`
        return None
