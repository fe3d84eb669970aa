"""Read and write one checkpoint file.

A file is written under a temporary name and renamed once all of it is on disk. A file that is read may come from
anybody: it is checked for damage, read as plain data, and its code (a pickle can hold any) runs only if the user
trusts it, which `_trusted` alone decides. `validate.py` then looks at what it holds.
"""

import argparse
import logging
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypedDict, cast

import numpy as np
import torch

from beit3_vqa.config.resolve import GivenOptions
from beit3_vqa.engine.checkpoint.folder import manifest_file
from beit3_vqa.engine.checkpoint.manifest import HashingFile, opened_by_others, verify, write_manifest
from beit3_vqa.engine.checkpoint.portable import SUFFIX, checkpoint_file, read_portable
from beit3_vqa.engine.checkpoint.validate import Content
from beit3_vqa.errors import InputError, nearest, short
from beit3_vqa.runtime.archives import is_packed
from beit3_vqa.runtime.files import fetch_first, is_address, is_file, is_folder, replacing, what_is_there
from beit3_vqa.tasks import find_task

logger = logging.getLogger(__name__)

# How torch says that a pickle wants to import or run something.
_REFUSED = ("unsupported global", "unsupported class", "is blocked", "can only build tensor")
# Entries that only resuming needs: large, and in other programs' files often of classes of their own.
_TRAINING_ONLY = ("optimizer", "random_state", "random_states")


class _NumpyDtype:
    """Stand in for numpy.dtype in a pickle: remember the kind of number, and call nothing of numpy's.

    numpy's own constructor may hand out the one float64 that all of a process shares, whose byte order a hostile file
    could then change; and its scalars of kind `object` are pickles inside the pickle.
    """

    def __init__(self, code: object, *flags: object):
        if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]|c(8|16)|[US][1-9]\d{0,4}", code):
            raise pickle.UnpicklingError(f"unsupported class: a number of numpy's kind {short(code)}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]


def _number(dtype: object, data: object) -> object:
    """Return a numpy scalar of a pickle as Python's own bool, int, float, complex, str or bytes."""
    if not isinstance(dtype, _NumpyDtype) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("unsupported class: a numpy scalar of no kind of number")
    kind = np.dtype(dtype.order + dtype.code)
    if len(data) != kind.itemsize:
        raise pickle.UnpicklingError(f"a numpy scalar of {len(data)} bytes, not {kind.itemsize}")
    return np.frombuffer(data, kind)[0].item()


def _called(name: str, stand_in: Callable[..., object]) -> Callable[..., object]:
    """Return `stand_in` under the full name that a pickle calls it by, where torch looks for it."""
    stand_in.__module__, _, stand_in.__qualname__ = name.rpartition(".")
    stand_in.__name__ = stand_in.__qualname__
    return stand_in


# Learning rates of upstream's schedule are numpy's float64, in every checkpoint of mixed precision. Since numpy 2 its
# module has another name.
_PLAIN: list[Any] = [
    argparse.Namespace,
    _called("numpy.dtype", _NumpyDtype),
    _called("numpy.core.multiarray.scalar", lambda dtype, data: _number(dtype, data)),
    _called("numpy._core.multiarray.scalar", lambda dtype, data: _number(dtype, data)),
]
_PLAIN_NAMES = {f"{item.__module__}.{item.__qualname__}" for item in _PLAIN}
_TRUST = "If you trust the file, add --trust_checkpoint."
_TAMPERED = "Checkpoints of this package hold plain data only, so this isn't one, or somebody changed it."


def save_checkpoint(path: Path, content: Content, about: dict[str, object] | None = None) -> None:
    """Write a checkpoint and the JSON beside it; the file gets its name only when all of it is on disk.

    Args:
        path: the file.
        content: tensors and plain data.
        about: plain data for the JSON.

    Raises:
        InputError: the file can't be written; the old file of that name, if there was one, is still there.
    """
    with replacing(path) as file:
        written = HashingFile(file)
        try:
            torch.save(content, cast(IO[bytes], written))  # torch.save needs only `write` and `flush`
        except RuntimeError:  # torch hides an OSError (a full disk) behind one of its own
            if written.error is None:
                raise
            raise written.error from None
        # Before the rename: the old file's checksum would make the new file look damaged.
        manifest_file(path).unlink(missing_ok=True)
    write_manifest(path, written, about or {})


def read_checkpoint(
    path: str | Path, flag: str, given: GivenOptions | None = None, *, mapped: bool = False, verified: bool = False
) -> Content:
    """Read a checkpoint file, tensors into main memory.

    Args:
        path: the file, or a folder that `export` made.
        flag: the option that named it, for messages.
        given: the user's options, which decide whether the file is trusted; None: it isn't.
        mapped: leave out the optimizer, and leave tensors in the file until they are used.
        verified: the same file was read before: don't read all of it once more for its checksum.

    Raises:
        InputError: no such file, not a checkpoint, cut short, changed since it was written, or more than plain data
            in a file that isn't trusted.
    """
    path = checkpoint_file(Path(path))
    opened = opened_by_others(path)
    if opened:
        raise InputError(f"{flag} {path}: {opened}")
    if not is_file(path):
        raise InputError(_missing(flag, path))
    if is_packed(path):
        raise InputError(f"{flag} {path}: is a packed zip archive, which torch.save never writes; unpack it first.")
    problem = "" if verified else verify(path)
    if problem:
        raise InputError(f"{flag} {path} is damaged: {problem}.")
    if path.suffix == SUFFIX:
        return read_portable(path, f"{flag} {path}", mapped=mapped)
    try:
        mmap = mapped and zipfile.is_zipfile(path)  # the format before torch 1.6 can't be mapped
        # Plain data and these names alone. Whatever else a pickle asks for is an error, and isn't run.
        with torch.serialization.safe_globals(_PLAIN):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        foreign = _foreign_names(path, error)
        if not foreign:
            raise InputError(_broken(flag, path)) from error
        more = f"holds more than weights and plain data ({foreign})"
        if not _trusted(path, given):
            # Commands with --checkpoint read this package's own checkpoints alone.
            advice = _TAMPERED if flag == "--checkpoint" else _TRUST
            raise InputError(f"{flag} {path}: {more}, which would run code of whoever made it. {advice}") from error
        logger.warning(f"{flag} {path}: {more}: it contains code, which runs now because you trust the file.")
        content = _read_trusted(path, flag)
    except Exception as error:  # a damaged file makes torch raise anything
        raise InputError(_broken(flag, path)) from error
    if not isinstance(content, dict):
        raise InputError(f"{flag} {path}: holds a {type(content).__name__}, not a checkpoint.")
    return {name: value for name, value in content.items() if not mapped or name not in _TRAINING_ONLY}


def _trusted(path: Path, given: GivenOptions | None) -> bool:
    """Return whether code that a checkpoint brings may run; no other place decides it.

    It may if the user typed this very file after `--resume`, or typed `--trust_checkpoint`. A file that was found in a
    folder, or that an ensemble or a `--config` names, is not trusted.
    """
    if given is None:
        return False
    if "trust_checkpoint" in given.typed_flags and given["trust_checkpoint"]:
        return True
    return "resume" in given.typed_flags and path == Path(given["resume"])


def _read_trusted(path: Path, flag: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a pickle may raise anything
        raise InputError(_broken(flag, path)) from error


def _missing(flag: str, path: Path) -> str:
    if is_address(path):
        return f"{flag} {fetch_first(path)}"
    folder = path if is_folder(path) else path.parent
    siblings = sorted(str(other) for other in folder.glob("*.pt*")) if is_folder(folder) else []
    there = f" Checkpoints there: {', '.join(siblings[:8])}." if siblings else ""
    if folder == path:
        return f"{flag} {path}: is a folder; name a checkpoint in it.{there}"
    if other := what_is_there(path):
        return f"{flag} {path}: is {other}; name a checkpoint."
    return f"{flag} {path}: no such file.{nearest(str(path), siblings)}{there}"


def _broken(flag: str, path: Path) -> str:
    """Explain what a file that torch can't read may be, judged by its first bytes and its length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    reason = "it isn't a PyTorch file, or is damaged"
    if size == 0:
        reason = "it is empty"
    elif start.startswith(b"pk"):
        reason = "it begins as one but is cut short or damaged; copy or download it again"
    elif start.startswith(b"version https://git-lfs"):
        reason = "it only points to the real one; fetch that with `git lfs pull`"
    elif start.startswith((b"<!doctype", b"<html", b"<?xml")):
        reason = "it is a web page; download the file itself"
    return f"{flag} {path} ({size:,} bytes) isn't a readable checkpoint: {reason}."


def _foreign_names(path: Path, error: Exception) -> str:
    """Return the names that a pickle wants to import beside plain data; empty if something else is wrong with it."""
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - _PLAIN_NAMES
    except Exception:  # it reads zip files only, and raises anything on a damaged one
        names = set()
    refused = any(hint in str(error).lower() for hint in _REFUSED)
    return ", ".join(sorted(names)) or ("other objects" if refused else "")


def with_saved_task(given: GivenOptions, content: Content) -> GivenOptions:
    """Return the options with the task that a checkpoint was trained on; InputError if there is no such task."""
    # Upstream's checkpoints have no task_state, and may call the task by another name.
    task = get_options(content).get("task") if "task_state" in content else None
    if not isinstance(task, str):
        return given
    find_task(task)
    return given.also(task=task)


def get_options(content: Content) -> dict[str, object]:
    """Return the options (flat) that a checkpoint was trained with; empty if it holds none.

    They are a dict in our checkpoints and a Namespace in upstream's. A value of a kind that no option has, such as a
    tensor, is replaced by a short description: text fits no such option, so whoever needs the value refuses it.
    """
    options = content.get("args", {})
    options = vars(options) if isinstance(options, argparse.Namespace) else options
    if not isinstance(options, dict):
        return {}
    return {name: value if _is_option(value) else short(value) for name, value in options.items()}


def _is_option(value: object) -> bool:
    plain = (type(None), bool, int, float, str)
    return isinstance(value, plain) or (isinstance(value, (list, tuple)) and all(isinstance(v, plain) for v in value))


class RandomState(TypedDict, total=False):
    """The state of torch's random generators, on the CPU and on every GPU, as uint8 tensors."""

    cpu: torch.Tensor
    cuda: list[torch.Tensor]


def random_state() -> RandomState:
    """Return the state of this process's random generators."""
    state: RandomState = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: RandomState) -> None:
    """Restore what `random_state` returned; that of the GPUs only if their number is the same."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
