"""Read what the directory of a zip archive says, and tell a zip bomb, which unpacks to far more than it has."""

import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from beit3_vqa.errors import InputError, first_line

MAX_ENTRIES = 2_000_000
MAX_RATIO = 200  # of unpacked to packed bytes, once they are more than
MAX_UNCHECKED = 10**8  # bytes, which harm nobody; text shrinks to a tenth, images hardly


def grows(path: Path, entries: Collection[zipfile.ZipInfo], ratio: float, unchecked: int = 0) -> bool:
    """Return whether entries unpack to more than `unchecked` bytes and `ratio` times the file."""
    return sum(entry.file_size for entry in entries) > max(unchecked, ratio * path.stat().st_size)


def require_no_bomb(path: Path, entries: Collection[zipfile.ZipInfo], most: int) -> None:
    """Raise InputError if entries of a zip archive would unpack to more than `most` bytes, or far more than it has."""
    size, packed = sum(entry.file_size for entry in entries), path.stat().st_size
    if size > most:
        raise InputError(f"{path} would unpack to {size:,} bytes, more than {most:,}")
    if grows(path, entries, MAX_RATIO, MAX_UNCHECKED):
        raise InputError(f"{path} has {packed:,} bytes and would unpack to {size:,}, as a zip bomb does")


def zip_entries(path: Path) -> list[zipfile.ZipInfo]:
    """Return what a zip archive says of its entries; InputError if it is damaged or has more than `MAX_ENTRIES`."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # a broken directory makes zipfile raise nearly anything
        raise InputError(f"{path} is a damaged spreadsheet or zip archive: {first_line(error)}") from error
    if len(entries) > MAX_ENTRIES:
        raise InputError(f"{path} has more than {MAX_ENTRIES:,} entries: split the archive")
    return entries


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
    return Archive([entry.filename for entry in entries], packed or grows(path, entries, ratio=1))


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
