"""Put what `prepare` wrote into its folder: all of it or nothing, without replacing anybody else's files.

A fork's answer2label.txt is the only record of what the outputs of its checkpoints mean. dataset.json holds the SHA-256
of every file that `prepare` wrote; files that aren't in that record are somebody else's. Files of an earlier `prepare`
are replaced and kept in `previous-N`.
"""

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from beit3_vqa.data import index
from beit3_vqa.data.index import DatasetInfo
from beit3_vqa.errors import InputError
from beit3_vqa.runtime import files
from beit3_vqa.runtime.files import file_sha256, link_or_copy, next_previous, remove_stale_temporaries, staged

logger = logging.getLogger(__name__)

_OF_ANSWERS = ("vqacustom.", "vqav2.")  # beginnings of the names of index files whose answers are in the table


@contextmanager
def staging(data_path: Path, check: bool) -> Iterator[Path]:
    """Yield an empty folder that is removed at the end; if the block fails, so is a data path that was made for it.

    The folder lies in the data path, so that files move from it in one step; for a check it lies elsewhere.

    Raises:
        InputError: the data path can't be written to.
    """
    if check:
        with tempfile.TemporaryDirectory() as elsewhere:
            yield Path(elsewhere)
        return
    created = [folder for folder in (data_path, *data_path.parents) if not folder.exists()]
    try:
        remove_stale_temporaries(data_path)  # of a `prepare` that was killed
        with staged(data_path) as folder:
            yield folder
    except BaseException as error:
        with suppress(OSError):  # somebody else may have put a file there meanwhile
            for new in created:
                new.rmdir()
        if isinstance(error, OSError):
            raise InputError(f"--data_path {data_path} can't be written to: {error.strerror}") from error
        raise


def require_own_files(data_path: Path, folder: Path, names: list[str], stale: list[str]) -> dict[str, str]:
    """Return name -> SHA-256 of what an earlier run wrote; InputError if somebody else's file would be replaced."""
    in_the_way = [str(data_path / name) for name in (*names, *stale, index.INFO_FILE) if (data_path / name).is_dir()]
    if in_the_way:
        raise InputError(f"{', '.join(in_the_way)} must become a file but is a folder: remove it")
    try:
        info = DatasetInfo.read(data_path)
    except InputError:  # its own message says to prepare again; a copy of everything is kept
        return {}
    there = [name for name in (*names, *stale) if (data_path / name).exists()]
    # A file that would stay the same may be anybody's.
    foreign = [
        name
        for name in there
        if not info.wrote(data_path / name) and (name in stale or _differs(folder / name, data_path / name))
    ]
    if foreign:
        raise InputError.of_problems(
            f"--data_path {data_path} holds files that `prepare` didn't write, or that have changed since:",
            foreign,
            "They are left as they are, since they may be the only record of what a checkpoint's outputs mean. Give "
            "another --data_path, or move them away. Nothing was written.",
        )
    table = data_path / index.ANSWERS_FILE
    if index.ANSWERS_FILE in names and table.exists() and _differs(folder / index.ANSWERS_FILE, table):
        others = [name for name in info.written if name.endswith(".jsonl") and name not in (*names, *stale)]
        numbered = [name for name in others if name.startswith(_OF_ANSWERS) and (data_path / name).exists()]
        if numbered:
            raise InputError(
                f"--data_path {data_path} holds {', '.join(numbered)}, whose answers are those of "
                f"{index.ANSWERS_FILE}, and this run has others: give another --data_path. Nothing was written."
            )
    return info.written


def _differs(one: Path, other: Path) -> bool:
    return one.stat().st_size != other.stat().st_size or file_sha256(one) != file_sha256(other)


def publish(folder: Path, data_path: Path, names: tuple[str, ...], stale: list[str]) -> None:
    """Move the files `names` from `folder` to the data path, and remove the `stale` ones from there."""
    there = [name for name in names if (data_path / name).exists()]
    replaced = [name for name in there if _differs(folder / name, data_path / name)] + stale
    if replaced:
        kept = folder / "kept"
        kept.mkdir()
        for name in replaced:
            link_or_copy(data_path / name, kept / name)
        aside = next_previous(data_path)
        kept.rename(aside)
        logger.info(f"{', '.join(replaced)}: what was there before is kept in {aside}")
    info = data_path / index.INFO_FILE
    before = info.read_bytes() if info.exists() else None
    # Whoever reads a folder between the first file and the last, or after a kill there, gets an error.
    files.write_text(info, json.dumps(index.UNFINISHED))
    for name in stale:
        (data_path / name).unlink()
    try:
        files.move_into([folder / name for name in names], data_path)  # dataset.json last
    except InputError:
        if not stale and (folder / names[0]).exists():  # nothing has changed
            info.unlink()
            if before is not None:
                info.write_bytes(before)
        raise
