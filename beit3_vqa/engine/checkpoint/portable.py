"""Read and write weights as safetensors: plain tensors behind a JSON header, a format that can hold no code.

A file is 8 bytes with the length of the header (little-endian), the header, and the tensors one after another. The
header maps each name to its kind of number, shape and place, and `__metadata__` to texts; there ours keeps what a
checkpoint holds beside its weights. Whoever made a file, every number in it is checked before it is used.
"""

import json
import math
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from beit3_vqa.engine.checkpoint.folder import BEST
from beit3_vqa.engine.checkpoint.manifest import HashingFile, write_manifest
from beit3_vqa.errors import InputError, short
from beit3_vqa.runtime.files import is_file, missing, replacing, require_names_once

SUFFIX: Final = ".safetensors"
WEIGHTS: Final = f"model{SUFFIX}"
METADATA, OURS = "__metadata__", "beit3_vqa"
MAX_HEADER = 2**24  # bytes; a model of 10,000 parameters and as many answers takes a tenth of it
MAX_DIMENSIONS = 8
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def checkpoint_file(path: Path) -> Path:
    """Return the weights in a folder that `export` made; any other path as it is."""
    return path / WEIGHTS if is_file(path / WEIGHTS) else path


def find_best_checkpoint(name: str, *, kind: str = "checkpoint") -> Path:
    """Return the checkpoint that a name stands for: a file, a folder that `export` made, or a run's, whose best it is.

    Args:
        name: as the user typed it.
        kind: of file that may be named, for messages.

    Raises:
        InputError: there is none.
    """
    path = checkpoint_file(Path(name))
    if path.is_dir():
        if not (path / BEST).is_file():
            raise InputError(f"{name}: has no {BEST}, so it is no run's folder. Name a {kind}.")
        return path / BEST
    if not path.is_file():
        raise InputError(missing(f"run folder or {kind}", path))
    return path


def write_portable(path: Path, weights: dict[str, Tensor], beside: dict[str, object], about: dict[str, object]) -> None:
    """Write weights as safetensors, and the JSON with their checksum beside them.

    Args:
        path: the file.
        weights: state dict.
        beside: what else a checkpoint holds, as plain data; `read_portable` returns it.
        about: plain data for the JSON.

    Raises:
        InputError: the file can't be written.
    """
    # The widest numbers first, as others write them: then each tensor begins at a multiple of its own width.
    ordered = sorted(weights.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, object] = {METADATA: {"format": "pt", OURS: json.dumps(beside, ensure_ascii=False)}}
    end = 0
    for name, value in ordered:
        begin, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False).encode("utf-8")
    # JSON allows blanks at its end; with them the tensors begin at a multiple of 8.
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        written = HashingFile(file)
        written.write(len(text).to_bytes(8, "little") + text)
        for _, value in ordered:
            # As bytes, since numpy knows no bf16.
            written.write(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    write_manifest(path, written, about)


def read_portable(path: Path, where: str, *, mapped: bool) -> dict[str, object]:
    """Read safetensors as the content of a checkpoint: the weights under `model`, and what else ours keeps.

    Args:
        path: the file.
        where: flag and file, for messages.
        mapped: leave tensors in the file until they are used.

    Raises:
        InputError: the file is cut short, or its header is too large, contradicts itself, or has a name twice.
    """
    try:
        header, start = _read_header(path)
        size = path.stat().st_size - start
        metadata = header.pop(METADATA, {})
        beside = json.loads(metadata[OURS]) if isinstance(metadata, dict) and OURS in metadata else {}
        if not isinstance(beside, dict):
            raise ValueError(f"its {METADATA} isn't what `export` writes")
        # Neither gaps nor overlaps: every byte belongs to one tensor.
        places = sorted(((*_place(name, entry), name) for name, entry in header.items()), key=lambda p: p[:2])
        end = 0
        for begin, after, *_, name in places:
            if begin != end:
                raise ValueError(f"{short(name)} begins at byte {begin}, where {end} is due")
            end = after
        if end != size:
            raise ValueError(f"it has {size:,} bytes of tensors, its header speaks of {end:,}: cut short?")
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise InputError(f"{where}: isn't a readable safetensors file: {error}.") from error
    data = np.memmap(path, np.uint8, "c", offset=start, shape=(size,)) if size else np.zeros(0, np.uint8)
    all_bytes = torch.from_numpy(data)  # a private map: whatever is written to it stays in this process
    weights = {}
    for begin, after, dtype, shape, name in places:
        part = all_bytes[begin:after]
        # Only there can torch view bytes as wider numbers without a copy.
        aligned = (start + begin) % dtype.itemsize == 0
        weights[name] = (part if mapped and aligned else part.clone()).view(dtype).reshape(shape)
    return {**beside, "model": weights}


def _read_header(path: Path) -> tuple[dict[str, object], int]:
    """Return the header, and the byte after it.

    Raises:
        ValueError: it is no JSON object, has a name twice, or is longer than the file or `MAX_HEADER`.
    """
    with path.open("rb") as file:
        length = int.from_bytes(first := file.read(8), "little")
        if len(first) < 8 or not 2 <= length <= min(MAX_HEADER, path.stat().st_size - 8):
            raise ValueError(f"its header would have {length:,} bytes; the file is cut short, damaged, or another kind")
        text = file.read(length)
    header = json.loads(text.decode("utf-8"), object_pairs_hook=require_names_once)
    if not isinstance(header, dict):
        raise ValueError("its header isn't a JSON object")
    return header, 8 + length


def _place(name: str, entry: object) -> tuple[int, int, torch.dtype, list[int]]:
    """Return a tensor's first byte, the byte after its last, its kind of number, and its shape.

    Raises:
        ValueError: the header's entry doesn't say them, or they contradict each other.
    """
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{short(name)} isn't described as a tensor")
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"{short(name)} is of {short(dtype)}, none of {', '.join(_DTYPES)}")
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if not all(type(n) is int and 0 <= n < 2**48 for n in numbers) or len(offsets) != 2 or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{short(name)} has the shape {short(shape)} at {short(offsets)}")
    begin, end = offsets
    if end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise ValueError(f"{short(name)} has the shape {short(shape)} of {dtype}, but {end - begin:,} bytes")
    return begin, end, _DTYPES[dtype], shape
