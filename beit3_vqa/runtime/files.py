"""Write files whole or not at all, explain files that can't be read, and clean text that comes from files."""

import errno
import glob
import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from beit3_vqa.errors import InputError, nearest, short

_TEMPORARY = re.compile(r"\..+\.(\d{1,10})\.tmp")
_temporaries: set[Path] = set()
_CHUNK = 2**22  # bytes
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
# Soft hyphen, joiners, fillers of Hangul, zero-width space, direction marks, variation selectors, byte order mark.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0]"
)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a binary file that takes the name `path` if the block ends without an error; until then `path` stays.

    The content is on disk before the name changes, so a crash leaves the old file or the new one, both whole.

    Raises:
        InputError: the folder doesn't exist or can't be written to, or `path` is a folder, a pipe or a device.
    """
    path = Path(path)
    require_replaceable(path)
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
        flush_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror}); choose a folder that can.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        _temporaries.discard(temporary)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a new folder inside `folder` for files that `move_into` moves into `folder`; remove it at the end.

    Those that killed processes left there are removed at the start.

    Raises:
        InputError: `folder` can't be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in stale_temporaries(folder, "staged"):  # of a bundle, gigabytes
            shutil.rmtree(stale, ignore_errors=True)
        # The process's number is in the name: `remove_stale_temporaries` asks whether that process still runs.
        temporary = Path(tempfile.mkdtemp(prefix=".staged.", suffix=f".{os.getpid()}.tmp", dir=folder))
    except OSError as error:
        raise InputError(f"{folder} can't be written to ({error.strerror}); choose another.") from error
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_into(files: Sequence[Path], folder: Path) -> list[Path]:
    """Move files into a folder of the same file system, in order, and return their new paths.

    Raises:
        InputError: one of them can't take its place.
    """
    places = [folder / path.name for path in files]
    for path, place in zip(files, places, strict=True):
        try:
            path.replace(place)
        except OSError as error:
            raise InputError(f"{place} can't be written ({error.strerror}); choose a folder that can.") from error
        flush_folder(folder)
    return places


def require_replaceable(path: Path) -> None:
    """Raise InputError for a folder, a pipe or a device (`/dev/null`): a rename would put a file in its place."""
    with suppress(OSError, ValueError):
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind == stat.S_IFDIR:
            raise InputError(f"{path} is a folder, but a file is to be written there; move it away.")
        if kind != stat.S_IFREG:
            raise InputError(f"{path} is a pipe or a device, which a file would replace: give a file's name.")


def refuse_to_replace(flag: str, path: Path, inputs: Iterable[Path]) -> None:
    """Raise InputError if the file that `flag` names for writing is also one of the `inputs`."""
    if any(real_path(path) == real_path(other) for other in inputs):
        raise InputError(f"{flag} {path}: would overwrite a file that is read; give another name.")


def remove_temporaries() -> None:
    """Delete what is half written; for a process that is about to end without unwinding."""
    for temporary in list(_temporaries):
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def stale_temporaries(folder: Path, name: str = "") -> list[Path]:
    """Return the half-written files that killed processes left in a folder; with a `name`, those of that file."""
    pattern = f".{glob.escape(name)}.*.tmp" if name else ".*.tmp"
    found = ((path, _TEMPORARY.fullmatch(path.name)) for path in folder.glob(pattern))
    return [path for path, match in found if match and not _is_running(int(match[1]))]


def remove_stale_temporaries(folder: Path) -> None:
    """Delete the half-written files and folders that killed processes left in a folder."""
    for temporary in stale_temporaries(folder):
        if temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink()


def _is_running(process: int) -> bool:
    """Return whether a process with this number runs; True if the system doesn't say."""
    if os.name != "posix":  # signal 0 asks there, and ends the process on Windows
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True


def flush_folder(folder: Path) -> None:
    """Put the names in a folder on disk too, if the system and the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def require_bounded(path: Path, most: int) -> None:
    """Raise InputError if a file has more than `most` bytes, or is a pipe or a device, whose reading may never end.

    A missing file and a folder pass: opening them gives the error.
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
    """Return a file's bytes; InputError if it is missing, empty, larger than `most` bytes, or can't be read."""
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
    """Return the content of a JSON file in UTF-8, with or without a byte order mark.

    Raises:
        InputError: as `read_bounded`, or it isn't JSON.
    """
    return parse_json(read_bounded(path, most), path)


def parse_json(content: bytes | str, path: Path) -> Any:
    """Parse JSON that was read from `path`; InputError, naming `path`, if it isn't JSON in UTF-8."""
    try:
        return json.loads(content if isinstance(content, str) else content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} isn't UTF-8 (byte {error.start}); save it as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} isn't JSON: {error}.") from error


def require_names_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the names and values of a JSON object as a dict; ValueError if a name is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"{short(twice)} is there twice")
    return found


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits."""
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum.update(chunk)
    return checksum.hexdigest()


def make_folder(path: Path) -> None:
    """Make a folder and those above it; InputError if a file is in the way, or nothing can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"{path} is a file, not a folder; choose another.") from error
    except OSError as error:
        raise InputError(f"{path} can't be made a folder ({error.strerror}); choose another.") from error


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether there is such a file; False, not an error, for a name that no file can have (too long, NUL)."""
    return os.path.isfile(path)  # noqa: PTH113 - pathlib's raises for a name that is too long


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether there is such a folder, as `is_file` does."""
    return os.path.isdir(path)  # noqa: PTH112


def require_writable(folder: Path) -> None:
    """Raise InputError if a folder, or the one it would be made in, is read-only; to be called before hours of work."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{folder} can't be written to: {there} is read-only; choose another.")


def is_new_or_empty(folder: Path) -> bool:
    """Return whether a folder is missing or empty, so that nobody's files are touched if it is filled."""
    return not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))


def write_text(path: str | os.PathLike[str], text: str | Iterable[str]) -> Path:
    """Write text, or an iterable of pieces, as UTF-8 through `replacing`; return the path."""
    with replacing(path) as file:
        for piece in [text] if isinstance(text, str) else text:
            file.write(piece.encode("utf-8"))
    return Path(path)


def is_address(path: Path) -> bool:
    """Return whether a web address was given instead of a file."""
    return path.parts[:1] in (("https:",), ("http:",))


def fetch_first(path: Path) -> str:
    """Return the advice to download an address that was given as a path (which turns `https://` into `https:/`)."""
    address = f"{path.parts[0]}//{'/'.join(path.parts[1:])}"
    name = path.name.split("?")[0]
    command = f"beit3-vqa download {shlex.quote(name)} --url {shlex.quote(address)}"
    return f"{address}: is an address, not a file. Fetch it with `{command}`, then give checkpoints/{name}."


def missing(kind: str, path: Path) -> str:
    """Return the message for a file or folder that is missing or of another kind, with the nearest name there."""
    if is_address(path):
        return fetch_first(path)
    if other := what_is_there(path):
        return f"there is no {kind} {path}: that is {other}."
    if not is_folder(path.parent):
        other = what_is_there(path.parent)
        there = f"{path.parent} is {other}" if other else f"the folder {path.parent} doesn't exist either"
        return f"there is no {kind} {path}: {there}."
    return f"there is no {kind} {path}.{nearest(path.name, (entry.name for entry in path.parent.iterdir()))}"


def real_path(path: Path) -> Path:
    """Follow all links, as `Path.resolve` does; before Python 3.13 that fails at a link to itself."""
    return Path(os.path.realpath(path))


_PACKED = "an archive; unpack it and give the folder"
_TABLE = "a table, not a folder; `beit3-vqa prepare` makes the folder of --data_path from it"
_KINDS = {
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"), _PACKED),
    **dict.fromkeys((".csv", ".tsv", ".xlsx"), _TABLE),
}


def what_is_there(path: Path) -> str:
    """Return what kind of thing has this name, in words such as "a folder"; empty if nothing has it."""
    if not os.path.lexists(path):
        return ""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            known = {errno.ELOOP: "points to itself", errno.ENOENT: "points to nothing"}
            return f"a link that {known.get(error.errno or 0, 'points out of reach')} ({path.readlink()})"
        return f"out of reach ({error.strerror})"
    if stat.S_ISDIR(mode):
        return "a folder"
    if not stat.S_ISREG(mode):
        return "a pipe or a device"
    return _KINDS.get(path.suffix.lower(), "a file")


def is_text(value: object) -> bool:
    """Return whether `value` is a string that can be stored: no NUL, no lone surrogate, both of which JSON allows."""
    if not isinstance(value, str):
        return False
    # Seven texts in each of a million rows are asked, and most are ASCII.
    return "\0" not in value if value.isascii() else not _UNSTORABLE.search(value)


def one_form(text: str) -> str:
    """Return the one form that `text` shares with all texts that look the same; ASCII stays as it is.

    Syllables and accents are composed (NFC), full-width and half-width characters get their ordinary width, every
    kind of space becomes a space, and invisible characters are removed. NFKC would do more: 10² would become 102.
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", text).translate(_WIDTHS))


def is_blank(text: str) -> bool:
    """Return whether nothing of a text can be seen."""
    return not one_form(text).strip()


class _Widths(dict[int, str]):
    """Map a character to its ordinary width; each is looked up when it is first met."""

    def __missing__(self, code: int) -> str:
        width, _, ordinary = unicodedata.decomposition(chr(code)).partition(" ")
        plain = chr(int(ordinary, 16)) if width in ("<wide>", "<narrow>") else chr(code)
        self[code] = " " if unicodedata.category(plain) == "Zs" else plain
        return self[code]


_WIDTHS = _Widths()


def look_alikes(some: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return a line for each pair of names that look the same but differ; escapes show the difference."""
    known = {one_form(name): name for name in some}
    return [f"{known[one_form(name)]!a} and {name!a}" for name in others if one_form(name) in known]


def link_or_copy(path: Path, other: Path) -> None:
    """Make `other` a second name of the file; the file that later replaces `path` leaves `other` as it is."""
    try:
        other.hardlink_to(path)
    except OSError:  # not every file system can
        shutil.copy2(path, other)


def next_previous(folder: Path) -> Path:
    """Return the first `folder/previous-N` that isn't there yet."""
    number = 1
    while (folder / f"previous-{number}").exists():
        number += 1
    return folder / f"previous-{number}"
