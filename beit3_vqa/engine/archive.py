"""A checkpoint file's outside: torch's format is a zip archive whose entries are stored as they are."""

import zipfile
from pathlib import Path


def is_packed(path: Path) -> bool:
    """Whether it is a zip archive that would take more memory than it has bytes: packed, or entries over one another.

    `torch.save` packs nothing, but `torch.load` unpacks: a file of a megabyte can fill the memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # no zip archive, or a damaged one, of which torch has its own opinion
        return False
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    return packed or sum(entry.file_size for entry in entries) > path.stat().st_size
