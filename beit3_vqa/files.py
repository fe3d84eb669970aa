"""Files that are there whole or not at all, and messages for files that aren't there."""

import glob
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from beit3_vqa.errors import InputError, nearest

_TEMPORARY = re.compile(r"\..+\.(\d{1,10})\.tmp")
_temporaries: set[Path] = set()
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file that takes the name `path` when the block ends without an error; until then nothing changes there.

    The content is on disk before the name is: a crash in between leaves the old file.

    Raises:
        InputError: the folder doesn't exist or can't be written to, or the name is a pipe's or a device's.
    """
    path = Path(path)
    _require_replaceable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _temporaries.add(temporary)
    try:
        for stale in stale_temporaries(path.parent, path.name):  # a process was killed while it wrote this file
            stale.unlink(missing_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror}); choose a folder that can.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        _temporaries.discard(temporary)


def _require_replaceable(path: Path) -> None:
    """InputError for `/dev/null` and its like, whose place a file would take, where the user may do that."""
    with suppress(OSError, ValueError):
        if stat.S_IFMT(path.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            raise InputError(f"{path} is a pipe or a device, which a file would replace: give a file's name.")


def refuse_to_replace(flag: str, path: Path, inputs: Iterable[Path]) -> None:
    """InputError where a file to be written is one of those that are read."""
    if any(path.resolve() == other.resolve() for other in inputs):
        raise InputError(f"{flag} {path}: would replace what is read; give another name.")


def remove_temporaries() -> None:
    """Deletes what is half written, for a process that is about to end without unwinding."""
    for temporary in list(_temporaries):
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def stale_temporaries(folder: Path, name: str = "") -> list[Path]:
    """Return what processes that were killed left half written in a folder, or of one file in it."""
    pattern = f".{glob.escape(name)}.*.tmp" if name else ".*.tmp"
    found = ((path, _TEMPORARY.fullmatch(path.name)) for path in folder.glob(pattern))
    return [path for path, match in found if match and not _is_running(int(match[1]))]


def remove_stale_temporaries(folder: Path) -> None:
    """Deletes them."""
    for temporary in stale_temporaries(folder):
        with suppress(OSError):
            temporary.unlink()


def _is_running(process: int) -> bool:
    if os.name != "posix":  # signal 0 asks there, and ends the process on Windows
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True


def _flush_folder(folder: Path) -> None:
    """Puts names on disk too; not every system and file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def require_bounded(path: Path, most: int) -> None:
    """InputError where reading a file could fill the memory or never end: more than `most` bytes, a pipe, a device.

    That a file isn't there, or is a folder, is for whoever opens it to say.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path} is a pipe or a device: give a file.")
    if status.st_size > most:
        raise InputError(f"{path} has {status.st_size:,} bytes, more than {most:,}: is it the right file?")


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a file; InputError when it is missing, empty, of more than `most` bytes, or can't be read."""
    require_bounded(path, most)
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: no file can have that name
        raise InputError(missing("file", path)) from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.") from error
    if not content.strip():
        raise InputError(f"{path} is empty.")
    return content


def read_json(path: Path, most: int) -> Any:
    """The content of a JSON file in UTF-8, with or without a byte order mark.

    Raises:
        InputError: as `read_bounded`, or it is no JSON.
    """
    content = read_bounded(path, most)
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} isn't UTF-8 (byte {error.start}); save it as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} isn't JSON: {error}.") from error


def make_folder(path: Path) -> None:
    """Makes a folder and those above it; InputError where a file is in the way, or nothing can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} can't be made a folder ({error.strerror}); choose another.") from error


def require_writable(folder: Path) -> None:
    """Refuse a folder in which nothing can be written, before hours of work end there; it needn't be there yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{folder} can't be written to: {there} is read-only; choose another.")


def is_new_or_empty(folder: Path) -> bool:
    """Whether a folder can be filled without touching what somebody else put there."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def write_text(path: str | os.PathLike[str], text: str | Iterable[str]) -> Path:
    """Writes text, or pieces of it, as UTF-8 through `replacing`, and returns the path."""
    with replacing(path) as file:
        for piece in [text] if isinstance(text, str) else text:
            file.write(piece.encode("utf-8"))
    return Path(path)


def missing(kind: str, path: Path) -> str:
    """The message for a file or folder that isn't there, with the nearest one that is."""
    if not path.parent.is_dir():
        return f"there is no {kind} {path}: the folder {path.parent} doesn't exist either."
    return f"there is no {kind} {path}.{nearest(path.name, (entry.name for entry in path.parent.iterdir()))}"


def is_text(value: object) -> bool:
    """Whether `value` is a string that can be stored: no NUL and no lone surrogate, which JSON can smuggle in."""
    return isinstance(value, str) and not _UNSTORABLE.search(value)
