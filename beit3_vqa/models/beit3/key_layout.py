"""Is this file a BEiT-3 checkpoint? Keys and shapes say so; no code in the file is run."""

import argparse
import re
from pathlib import Path
from typing import NamedTuple

from beit3_vqa.errors import InputError
from beit3_vqa.runtime.archives import damaged_entry, read_archive

VOCAB_ROWS = 64_010


class KeyLayout(NamedTuple):
    """The sizes that a checkpoint's tensors have: width D, layers, image patches, rows of the token embedding."""

    width: int
    layers: int
    patches: int
    vocab_rows: int


def check_key_layout(path: str | Path, vocab_rows: int | None = VOCAB_ROWS) -> KeyLayout:
    """Read a checkpoint's keys and shapes, not its weights (the file is mapped), and make sure that it is BEiT-3.

    Args:
        path: a file written by torch.save since torch 1.6, holding `{"model": weights}`, `{"module": weights}` or the
            weights themselves. It is read as plain data; code in it does not run.
        vocab_rows: rows that the token embedding must have; None takes any.

    Returns:
        Width, layers, image patches and token rows.

    Raises:
        InputError: the file is missing, is something else, or lacks keys; the message names them.
    """
    import torch

    path = Path(path)
    require_torch_zip(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a stranger's pickle makes torch raise
        reason = str(error).strip().partition("\n")[0][:200]
        raise InputError(f"{path} can't be read as a checkpoint of plain data ({reason})") from error
    weights = checkpoint
    if isinstance(checkpoint, dict):
        weights = next((checkpoint[key] for key in ("model", "module") if key in checkpoint), checkpoint)
    if not isinstance(weights, dict):
        raise InputError(f"{path} holds a {type(weights).__name__}, not named weights: it isn't a BEiT-3 checkpoint")
    shapes = {str(key): tuple(value.shape) for key, value in weights.items() if isinstance(value, torch.Tensor)}
    return _find_layout(shapes, path, vocab_rows)


def _find_layout(shapes: dict[str, tuple[int, ...]], path: Path, vocab_rows: int | None) -> KeyLayout:
    """Return the sizes that the shapes have, once every layer's are as BEiT-3's must be; see `check_key_layout`."""
    token_table = shapes.get("beit3.text_embed.weight", ())
    if len(token_table) != 2:
        keys = ", ".join(list(shapes)[:3]) or "no tensors"
        raise InputError(f"{path} isn't a BEiT-3 checkpoint: it has no beit3.text_embed.weight, but {keys}")
    rows, width = token_table
    numbers = [re.match(r"beit3\.encoder\.layers\.([0-9]{1,4})\.", key) for key in shapes]
    layers = 1 + max((int(number[1]) for number in numbers if number), default=0)
    required: dict[str, tuple[int | None, ...]] = {  # None: any size
        "beit3.text_embed.weight": (vocab_rows, width),
        "beit3.vision_embed.proj.weight": (width, 3, None, None),
        "beit3.encoder.embed_positions.A.weight": (None, width),
        "beit3.encoder.embed_positions.B.weight": (None, width),
    }
    for layer in range(layers):
        for way in "AB":
            required[f"beit3.encoder.layers.{layer}.self_attn.q_proj.{way}.weight"] = (width, width)
            required[f"beit3.encoder.layers.{layer}.ffn.{way}.fc1.weight"] = (None, width)
    problems = []
    for key, sizes in required.items():
        shape = shapes.get(key, ())
        if len(shape) != len(sizes) or any(size not in (None, n) for size, n in zip(sizes, shape, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in sizes)
            problems.append(f"{key}: {list(shape) or 'missing'}, expected [{wanted}]")
    # The other three rows are fairseq's two and that of [CLS].
    patches = shapes.get("beit3.encoder.embed_positions.A.weight", (0,))[0] - 3
    if patches < 1 and not problems:
        problems.append(f"beit3.encoder.embed_positions.A.weight: {patches + 3} rows, expected patches + 3")
    if problems:
        raise InputError.of_problems(f"{path} isn't a usable BEiT-3 checkpoint:", problems)
    return KeyLayout(width, layers, patches, rows)


def require_torch_zip(path: Path, every_byte: bool = False) -> None:
    """Make sure that a file is in torch's format: a zip archive whose entries are all stored, not compressed.

    Args:
        path: the file.
        every_byte: also compare the entries with their check sums.

    Raises:
        InputError: a web page, a damaged file, a zip bomb, or no file at all.
    """
    if not path.is_file():
        raise InputError(f"{path} isn't a file")
    archive = read_archive(path)
    if archive and archive.packed:
        raise InputError(f"{path} is a zip archive, but not one that torch.save wrote")
    damaged = damaged_entry(path) if archive and every_byte else ""
    if archive is None or damaged is None:
        with path.open("rb") as file:
            page = file.read(100).lstrip().startswith(b"<")
        what = "is a web page or XML" if page else "is damaged or not in torch's zip format"
        raise InputError(f"{path} {what}: it isn't a BEiT-3 checkpoint")
    if damaged:
        raise InputError(f"{path} is damaged: the check sum of {damaged} in it is wrong. Fetch it again")
