"""Take a zip archive as the image root: unpack it once beside the data, if it holds images and nothing dangerous."""

import json
import logging
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from beit3_vqa.data.file_kinds import IMAGE_ENDINGS, KINDS, file_kind
from beit3_vqa.errors import InputError, first_line, plural, short
from beit3_vqa.preparation.publish import staging
from beit3_vqa.preparation.writer import PrepareOptions
from beit3_vqa.runtime.archives import require_no_bomb, zip_entries
from beit3_vqa.runtime.bar import progress_bar
from beit3_vqa.runtime.files import (
    file_sha256,
    is_file,
    next_previous,
    read_json,
    what_is_there,
    write_text,
)

logger = logging.getLogger(__name__)

FOLDER = "images"  # in the data path
_RECORD = ".unpacked.json"  # in that folder: which archive it was
_RESERVE = 10**8  # bytes of the disk that stay free
_UTF8_NAME, _ENCRYPTED = 0x800, 0x1  # flags of an entry


@contextmanager
def unpacked_images(options: PrepareOptions) -> Iterator[PrepareOptions]:
    """Yield the options with a folder as image root, if it is a zip archive of images.

    The folder is `images` in the data path and stays, so that the next run finds it there. For a check it lies
    elsewhere, and is removed at the end.

    Raises:
        InputError: the image root is another kind of file, or an archive that is damaged, has a password, or holds no
            images, names that lead out of the folder, links, or more than fits on the disk.
    """
    path = Path(options.image_root)
    if not options.image_root or not is_file(path):
        yield options
        return
    kind = file_kind(path)
    if kind not in ("zip", "images"):
        named = what_is_there(path).partition(";")[0]  # what its ending says: a table, most likely
        what = KINDS.get(kind, "damaged, or no zip archive" if path.suffix.lower() == ".zip" else named)
        raise InputError(f"--image_root {path} is {what}; the folder of the images is needed, or a zip of it")
    if options.check:
        with staging(Path(options.data_path), check=True) as elsewhere:
            _unpack(path, elsewhere / FOLDER)
            yield replace(options, image_root=str(elsewhere / FOLDER))
        return
    yield replace(options, image_root=str(_unpack_once(path, Path(options.data_path))))


def _unpack_once(path: Path, data_path: Path) -> Path:
    """Return the folder of the unpacked images, made by an earlier run or now."""
    folder = data_path / FOLDER
    status = path.stat()
    now: dict[str, int | str] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    there = _read_record(folder)
    if there is not None and now.items() <= there.items():
        return folder
    now["sha256"] = file_sha256(path)
    if there is not None and there.get("sha256") == now["sha256"]:
        return folder
    if there is None and folder.exists():
        raise InputError(
            f"--image_root {path} would be unpacked to {folder}, which is there already: move it away, or give it as "
            "--image_root if it holds these images"
        )
    with staging(data_path, check=False) as temporary:
        count = _unpack(path, temporary / FOLDER)
        write_text(temporary / FOLDER / _RECORD, json.dumps(now))
        if there is not None:
            aside = next_previous(data_path)
            aside.mkdir()
            folder.rename(aside / FOLDER)
            logger.info(f"{folder}: the images of another archive are kept in {aside}")
        (temporary / FOLDER).rename(folder)
    logger.info(f"{path}: {plural(count, 'file')} unpacked to {folder}")
    return folder


def _read_record(folder: Path) -> dict[str, object] | None:
    """Return what is known of the archive that was unpacked to a folder; None if none was."""
    try:
        record = read_json(folder / _RECORD, 10_000)
    except InputError:
        return None
    return record if isinstance(record, dict) else None


def _unpack(path: Path, folder: Path) -> int:
    """Unpack the files of an archive into a new folder; return how many they are."""
    names = _safe_names(path, zip_entries(path))
    require_no_bomb(path, names.values(), max(shutil.disk_usage(folder.parent).free - _RESERVE, 0))
    folder.mkdir()
    name = ""
    try:
        with zipfile.ZipFile(path) as archive:
            for name, entry in progress_bar(names.items(), "unpack", len(names), unit="file"):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file, 2**20)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path}: {short(name)} can't be unpacked: {first_line(error)}") from error
    except Exception as error:  # zlib, bz2 and lzma have errors of their own
        raise InputError(f"{path}: {short(name)} is damaged: {first_line(error)}") from error
    return len(names)


def _safe_names(path: Path, entries: Sequence[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Return name -> entry of the files to unpack; InputError if one is dangerous, or none is an image."""
    names: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        name = _real_name(entry)
        parts = PurePosixPath(name).parts
        if name.endswith("/") or "__MACOSX" in parts or (parts and parts[-1].startswith((".", "Thumbs.db"))):
            continue
        where = f"{path}: {short(name)}"
        if not parts or parts[0] == "/" or re.match("[A-Za-z]:", name) or ".." in parts or "\0" in name:
            raise InputError(f"{where} would be unpacked outside of the image folder: is this archive what you think?")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise InputError(f"{where} is a link: unpack the archive yourself and give the folder")
        if entry.flag_bits & _ENCRYPTED:
            raise InputError(f"{where} has a password: unpack the archive yourself and give the folder")
        if str(PurePosixPath(name)) in names:
            raise InputError(f"{where} is in the archive twice: unpack it yourself and give the folder")
        names[str(PurePosixPath(name))] = entry
    if not any(name.lower().endswith(IMAGE_ENDINGS) for name in names):
        raise InputError(f"--image_root {path} is a zip archive without images: is it the right one?")
    return names


def _real_name(entry: zipfile.ZipInfo) -> str:
    r"""Return an entry's name with slashes; Windows writes Korean ones in CP949 and doesn't say so."""
    name = entry.filename
    if not entry.flag_bits & _UTF8_NAME and not name.isascii():
        raw = name.encode("cp437")  # as zipfile has read it
        for encoding in ("utf-8", "cp949"):
            try:
                name = raw.decode(encoding)
                break
            except UnicodeDecodeError:
                continue
    return name.replace("\\", "/")
