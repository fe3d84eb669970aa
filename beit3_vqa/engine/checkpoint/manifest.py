"""The readable JSON beside a checkpoint, and the check that the checkpoint is still what was written."""

import hashlib
import json
import logging
import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from beit3_vqa import __version__
from beit3_vqa.config.config import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE
from beit3_vqa.engine.checkpoint.folder import manifest_file
from beit3_vqa.errors import InputError, short
from beit3_vqa.runtime.archives import damaged_entry, is_packed, read_archive
from beit3_vqa.runtime.files import file_sha256, is_file, is_folder, read_json, stale_temporaries, write_text

logger = logging.getLogger(__name__)

PICKLE = "data.pkl"  # the entry that makes an archive torch's


def opened_by_others(path: Path) -> str:
    """Explain that a browser or an archive program unpacked or repacked a checkpoint; empty if none did.

    Torch's files are zip archives: some programs unpack what they download, and a user who finds a folder packs it
    again, compressed.
    """
    if not is_folder(path) and not is_file(path):  # reading a pipe, say, would wait forever
        return ""
    folders = [path, *path.glob("*/")] if is_folder(path) else [path.parent] if path.name == PICKLE else []
    inside = next(
        (folder for folder in folders if (folder / PICKLE).is_file() and (folder / "version").is_file()), None
    )
    archive = read_archive(path)
    if inside is not None:
        what, folder = "is an unpacked checkpoint", inside.resolve()
        packed = f"{path.name if path.is_dir() else folder.name}.pth"
        above, packed, name = (shlex.quote(str(part)) for part in (folder.parent, packed, folder.name))
        pack = f"cd {above} && zip -0 -r -D {packed} {name}"
    elif archive and archive.packed and any(name.rpartition("/")[2] == PICKLE for name in archive.names):
        what = "is a packed zip archive, of a checkpoint that somebody unpacked"
        pack = "unzip it, and in the folder that it made, zip -0 -r -D checkpoint.pth *"
    else:
        return ""
    return (
        f"{what}: torch's files are zip archives, which must stay as they are. Download or copy the file anew without "
        f"opening it (a .zip that a browser made of it may just be renamed to .pth), or pack it again without "
        f"compression: {pack}"
    )


_PACKAGES = ("torch", "torchvision", "timm", "torchscale", "sentencepiece", "numpy", "pillow")
MAX_MANIFEST = 10_000_000  # bytes
ROLLING = "rolling"  # true if the checkpoint is only kept until the next one is written
TEMPERATURE = "temperature"  # what logits are to be divided by, found by --temperature fit


class HashingFile:
    """A file being written that knows the size and the SHA-256 of what went into it.

    Args:
        file: written from its beginning to its end.
    """

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.bytes = 0
        self.error: OSError | None = None
        self._hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write bytes; keep the error if that fails, since torch.save hides it behind one of its own."""
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._hash.update(data)
        self.bytes += written
        return written

    def flush(self) -> None:
        """Flush the file."""
        self.file.flush()

    @property
    def sha256(self) -> str:
        """Return the SHA-256 so far, in hexadecimal digits."""
        return self._hash.hexdigest()


def write_manifest(path: Path, written: HashingFile, about: dict[str, object]) -> None:
    """Write the JSON beside the checkpoint `path`.

    Args:
        path: the checkpoint.
        written: the file as it was written.
        about: plain data for people: epoch, step, score, options.
    """
    content = {
        "file": path.name,
        "bytes": written.bytes,
        "sha256": written.sha256,
        **about,
        "versions": {
            "python": platform.python_version(),
            "beit3_vqa": __version__,
            **{name: _version(name) for name in _PACKAGES},
        },
    }
    write_text(manifest_file(path), json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # unpacked by hand
        return None


def read_temperature(path: Path) -> float | None:
    """Return the temperature that is kept beside the checkpoint `path`; None if there is none.

    Raises:
        InputError: the JSON holds something else under that name.
    """
    value = _read(path).get(TEMPERATURE)
    if value is None:
        return None
    if type(value) not in (int, float) or not LOWEST_TEMPERATURE <= value <= HIGHEST_TEMPERATURE:
        raise InputError(
            f"{manifest_file(path)}: {TEMPERATURE} {short(value)} must be a number from {LOWEST_TEMPERATURE} to "
            f"{HIGHEST_TEMPERATURE:,}. Fit it again (`beit3-vqa finetune --eval --split val --temperature fit`), "
            "or delete the line."
        )
    return float(value)


def keep_temperature(path: Path, temperature: float, fit: dict[str, object]) -> Path:
    """Add a temperature, and how it was found, to the JSON beside the checkpoint `path`; return that JSON's path.

    Raises:
        InputError: there is no such JSON, or it can't be written; the old one is still there.
    """
    content = {**require_manifest(path), TEMPERATURE: temperature, "temperature_fit": fit}
    return write_text(manifest_file(path), json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def is_rolling(path: Path) -> bool:
    """Return whether the checkpoint was only to be kept until the next one is written."""
    return _read(path).get(ROLLING) is True


def is_after(path: Path, epoch: int, steps: int) -> bool:
    """Return whether the JSON beside a checkpoint says that it was made after `steps` optimizer steps of an epoch."""
    content = _read(path)
    made, inside = content.get("epoch"), content.get("steps_in_epoch")
    if not isinstance(made, int):
        return False
    return made > epoch or (made == epoch and (not isinstance(inside, int) or inside > steps))


def require_manifest(path: Path) -> dict[str, object]:
    """Return the JSON beside the checkpoint `path`; InputError if there is none, or if it isn't a checkpoint's."""
    content = _read(path)
    if not _identity(content):
        raise InputError(
            f"{manifest_file(path)} isn't the JSON that is written beside a checkpoint, so a temperature can't be kept "
            "there. Fit it on one of your own checkpoints, or give the number with each --eval."
        )
    return content


def _read(path: Path) -> dict[str, Any]:
    """Return the JSON beside a checkpoint; empty if there is none that can be read."""
    try:
        content = read_json(manifest_file(path), MAX_MANIFEST)
    except InputError:
        return {}
    return content if isinstance(content, dict) else {}


def _identity(content: dict[str, object]) -> tuple[int, str] | None:
    """Return size in bytes and SHA-256; None if one is missing."""
    size, sha256 = content.get("bytes"), content.get("sha256")
    return (size, sha256) if isinstance(size, int) and isinstance(sha256, str) else None


def verify(path: Path) -> str:
    """Return what is wrong with a checkpoint file; empty if it is what was written.

    The JSON beside it holds size and SHA-256. Without a JSON, the CRC-32 of each part inside the file is checked, which
    torch writes but doesn't check; files of the format before torch 1.6 have none.
    """
    expected = _identity(_read(path))
    if expected is None:
        return _bad_record(path)
    size, sha256 = expected
    advice = f"if the file was replaced on purpose, delete {manifest_file(path).name}"
    # First, since it costs nothing.
    if path.stat().st_size != size:
        return f"has {path.stat().st_size:,} bytes, {size:,} were written; {advice}"
    if file_sha256(path) != sha256:
        return f"its bytes have changed since it was written (SHA-256); {advice}"
    return ""


def finish_renames(folder: Path) -> None:
    """Rename checkpoints and log.txt that were written in full when a process was killed before or in the renaming.

    On some network drives a rename that replaces a file isn't atomic: for a moment no file has the name, or it is a
    copy that isn't complete.
    """
    for temporary in stale_temporaries(folder):
        path = folder / temporary.name.lstrip(".").rsplit(".", 2)[0]
        is_whole = {".pth": _is_whole, ".txt": Path.exists}.get(path.suffix)
        if is_whole is not None and is_whole(temporary) and not is_whole(path):
            manifest_file(path).unlink(missing_ok=True)  # it holds the checksum of the file before
            temporary.replace(path)
            logger.info(f"{path}: was written but not yet renamed to its final name")


def _is_whole(path: Path) -> bool:
    return damaged_entry(path) == ""


def get_sha256(path: Path) -> str:
    """Return the SHA-256 of a checkpoint that was verified: from the JSON beside it, or else computed."""
    expected = _identity(_read(path))
    return expected[1] if expected else file_sha256(path)


def _bad_record(path: Path) -> str:
    bad = "" if is_packed(path) else damaged_entry(path)  # None if it is no archive: reading it gives that error
    return f"its part {bad} isn't what was written (CRC-32)" if bad else ""
