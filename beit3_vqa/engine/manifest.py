"""The readable JSON beside a checkpoint, and whether the checkpoint is still what was written."""

import hashlib
import json
import platform
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from beit3_vqa.engine.archive import is_packed
from beit3_vqa.engine.run_folder import manifest_file
from beit3_vqa.files import write_text

_PACKAGES = ("beit3_vqa", "torch", "torchvision", "timm", "torchscale", "sentencepiece", "numpy", "pillow")
_CHUNK = 2**22


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
        """Writes bytes; keeps the error if it can't, since torch.save hides it behind one of its own."""
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._hash.update(data)
        self.bytes += written
        return written

    def flush(self) -> None:
        """Flushes the file."""
        self.file.flush()

    @property
    def sha256(self) -> str:
        """Checksum so far, in hexadecimal digits."""
        return self._hash.hexdigest()


def write_manifest(path: Path, written: HashingFile, about: dict[str, Any]) -> None:
    """Writes the JSON beside the checkpoint `path`.

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
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
    }
    write_text(manifest_file(path), json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its source
        return None


def damage(path: Path) -> str:
    """What is wrong with a checkpoint file; empty where it is what was written.

    The JSON beside it says size and SHA-256. Without one, the checksums inside the file are looked at, which torch
    writes but doesn't check; files of the format before torch 1.6 have none.
    """
    expected = _expected(path)
    if expected is None:
        return _bad_record(path)
    size, sha256 = expected
    advice = f"if the file was replaced on purpose, delete {manifest_file(path).name}"
    if path.stat().st_size != size:
        return f"has {path.stat().st_size:,} bytes, {size:,} were written; {advice}"
    if _sha256(path) != sha256:
        return f"its bytes have changed since it was written (SHA-256); {advice}"
    return ""


def sha256_of(path: Path) -> str:
    """The checksum of a checkpoint that isn't damaged: the one beside it, or the file's own where there is none."""
    expected = _expected(path)
    return expected[1] if expected else _sha256(path)


def _expected(path: Path) -> tuple[int, str] | None:
    """Size and checksum of the manifest; None where there is none that can be read."""
    try:
        content = json.loads(manifest_file(path).read_text(encoding="utf-8"))
        size, sha256 = content["bytes"], content["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return (size, sha256) if isinstance(size, int) and isinstance(sha256, str) else None


def _sha256(path: Path) -> str:
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum.update(chunk)
    return checksum.hexdigest()


def _bad_record(path: Path) -> str:
    try:
        if not zipfile.is_zipfile(path) or is_packed(path):
            return ""
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception:  # a damaged directory makes zipfile raise anything; whoever reads the file says what it is
        return ""
    return f"its part {bad} isn't what was written (CRC-32)" if bad else ""
