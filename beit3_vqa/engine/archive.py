"""A checkpoint file's outside: torch's format is a zip archive whose entries are stored as they are."""

import shlex
import zipfile
from pathlib import Path

from beit3_vqa.files import is_file, is_folder

PICKLE = "data.pkl"  # the entry that makes an archive torch's


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


def opened_by_others(path: Path) -> str:
    """Say what happened where a browser or an archive program took a checkpoint for an archive; empty: nothing did.

    Some unpack what they download, and a user who finds a folder packs it again, compressed.
    """
    if not is_folder(path) and not is_file(path):  # a pipe, say, which would be waited for
        return ""
    folders = [path, *path.glob("*/")] if is_folder(path) else [path.parent] if path.name == PICKLE else []
    inside = next(
        (folder for folder in folders if (folder / PICKLE).is_file() and (folder / "version").is_file()), None
    )
    if inside is not None:
        what, folder = "is an unpacked checkpoint", inside.resolve()
        archive = f"{path.name if path.is_dir() else folder.name}.pth"
        above, archive, name = (shlex.quote(str(part)) for part in (folder.parent, archive, folder.name))
        pack = f"cd {above} && zip -0 -r -D {archive} {name}"
    elif is_packed(path) and any(name.rpartition("/")[2] == PICKLE for name in _names(path)):
        what = "is a packed zip archive, of a checkpoint that somebody unpacked"
        pack = "unzip it, and in the folder that it made, zip -0 -r -D checkpoint.pth *"
    else:
        return ""
    return (
        f"{what}: torch's files are zip archives, which must stay as they are. Download or copy the file anew without "
        f"opening it (a .zip that a browser made of it may just be renamed to .pth), or pack it again without "
        f"compression: {pack}"
    )


def _names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()
