"""A CLIP's Hugging Face folder, which a stranger may have made: finding it, and reading plain values from it.

transformers lets such a folder choose code, other files and downloads: before 5.3 by an entry of config.json that needs
nobody's trust (CVE-2026-4372), before 5.5 by one that grants it (CVE-2026-5241). So no version of it sees the folder:
this file reads numbers of known names, within bounds, and a vocabulary, and hands on nothing else.
"""

import logging
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_vqa.errors import InputError, first_line, short
from beit3_vqa.runtime.files import is_folder, missing, read_bounded, read_json, real_path

logger = logging.getLogger(__name__)

HUB = "hf:"  # before the name of a model on the hub
CONFIG, WEIGHTS, IMAGES = "config.json", "model.safetensors", "preprocessor_config.json"
VOCABULARY, MERGES, TOKENIZER = "vocab.json", "merges.txt", "tokenizer.json"
OLD_WEIGHTS = "pytorch_model.bin"  # read as plain data
FILES = (CONFIG, WEIGHTS, IMAGES, VOCABULARY, MERGES, TOKENIZER)  # all that is read, but for old weights
MAX_CONFIG, MAX_TOKENIZER = 10**6, 2 * 10**7  # bytes
MAX_EDGE = 4096  # pixels
MAX_MERGES = 49152 - 256 - 2  # CLIP's tokenizer reads no more lines
BOS, EOS = "<|startoftext|>", "<|endoftext|>"

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# transformers 4 wrote `_attn_implementation_autoset`, which only says whether somebody chose.
_CODE = re.compile(
    r"implementation(?!_autoset)|auto_map|kernel|experts|quantization|remote_code|custom_pipelines|transformers_weights"
)


@dataclass(frozen=True)
class _Number:
    """A number from `low` to `high`, a whole one if `low` is an int."""

    low: float
    high: float

    def holds(self, value: object) -> bool:
        """Return whether a value read from JSON is such a number."""
        if isinstance(value, bool) or not isinstance(value, int if type(self.low) is int else (int, float)):
            return False  # a bool is an int for Python, but not in JSON
        return math.isfinite(value) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{'a whole number' if type(self.low) is int else 'a number'} from {self.low:g} to {self.high:,.10g}"


@dataclass(frozen=True)
class _Word:
    """One of several words."""

    words: tuple[str, ...]

    def holds(self, value: object) -> bool:
        """Return whether a value read from JSON is one of the words."""
        return isinstance(value, str) and value in self.words

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)}"


_Known = Mapping[str, _Number | _Word]
_BOTH: _Known = {
    "hidden_size": _Number(1, 10**5),
    "intermediate_size": _Number(1, 10**6),
    "projection_dim": _Number(1, 10**5),
    "num_hidden_layers": _Number(1, 1000),
    "num_attention_heads": _Number(1, 10**5),
    "hidden_act": _Word(("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")),
    "layer_norm_eps": _Number(0.0, 1.0),
    "attention_dropout": _Number(0.0, 1.0),
    "initializer_range": _Number(0.0, 1e3),
    "initializer_factor": _Number(0.0, 1e3),
}
_TEXT: _Known = {
    **_BOTH,
    "vocab_size": _Number(1, 10**7),
    "max_position_embeddings": _Number(1, 10**5),
    **{f"{token}_token_id": _Number(0, 10**7) for token in ("pad", "bos", "eos")},
}
_VISION: _Known = {
    **_BOTH,
    "num_channels": _Number(3, 3),
    "image_size": _Number(1, 10**4),
    "patch_size": _Number(1, 10**4),
}
_WHOLE: _Known = {
    "projection_dim": _Number(1, 10**5),
    "logit_scale_init_value": _Number(-100.0, 100.0),
    "initializer_factor": _Number(0.0, 1e3),
}
_MEAN, _STD, _EDGE = _Number(-1e3, 1e3), _Number(1e-6, 1e3), _Number(1, MAX_EDGE)


def find_clip_folder(source: str, *, typed: bool) -> Path:
    """Return the folder of `--pretrained`; download a model that is on the hub.

    Args:
        source: a folder, or `hf:OWNER/NAME`.
        typed: whether the user typed it. A name from a checkpoint or a config file is never downloaded: anybody may
            have made the file, and anybody may own the name.

    Raises:
        InputError: no such folder, no CLIP in it, a link in it that leads out of it, or a name on the hub that wasn't
            typed or can't be fetched.
    """
    if not source:
        raise InputError(
            "--pretrained: a CLIP starts from pretrained weights; give a Hugging Face folder (get_started/clip.md says "
            f"how to fetch one) or a model on the hub, such as {HUB}openai/clip-vit-large-patch14."
        )
    if source.startswith(HUB):
        return _from_hub(source, typed)
    if not is_folder(Path(source)):
        kept = "" if typed else " The checkpoint was trained on it; say where it is now with --pretrained."
        on_hub = f" A model on the hub is typed as --pretrained {HUB}{source}." if _HUB_NAME.fullmatch(source) else ""
        raise InputError(f"--pretrained: {missing('folder', Path(source))}{kept}{on_hub}")
    if not Path(source, CONFIG).exists():
        raise InputError(f"--pretrained {source}: has no {CONFIG}, so it is no Hugging Face folder.")
    _require_inside(Path(source))
    return Path(source)


def _require_inside(folder: Path) -> None:
    """Raise InputError for a file that is a link out of the folder, but for the hub's cache.

    A stranger's link would have us read, and quote in messages, any file of whoever runs this.
    """
    real = real_path(folder)
    allowed = [real]
    if real.parent.name == "snapshots":  # CACHE/models--OWNER--NAME/snapshots/REVISION links to two folders of blobs
        allowed += [place / "blobs" for place in real.parents[1:3]]
    for name in (*FILES, OLD_WEIGHTS):
        target = real_path(folder / name)
        if not any(target.is_relative_to(place) for place in allowed):
            raise InputError(f"--pretrained {folder}: {name} is a link out of the folder, to {target}: copy the file.")


def _from_hub(source: str, typed: bool) -> Path:
    """Download a model from the hub and return its folder; see `find_clip_folder`."""
    name = source.removeprefix(HUB)
    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"--pretrained {source}: write {HUB}OWNER/NAME, such as {HUB}openai/clip-vit-large-patch14.")
    if not typed:
        raise InputError(
            f"--pretrained {source}: this name comes from a checkpoint or a config file, and such names are not "
            f"downloaded. If you trust that model, type it: --pretrained {source}; or give a folder."
        )
    try:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name, allow_patterns=list(FILES)))
        if not (folder / WEIGHTS).exists():  # only then: the old format holds the same weights once more
            folder = Path(snapshot_download(name, allow_patterns=[*FILES, OLD_WEIGHTS]))
    except Exception as error:  # no network, no such model, no right to it, a full disk: each an error of its own
        raise InputError(
            f"--pretrained {source}: can't be fetched from the hub ({first_line(error)}). Where there is no network, "
            "copy the folder here and give that."
        ) from error
    _require_inside(folder)
    return folder


def read_config_values(folder: Path) -> dict[str, object]:
    """Return the arguments of `transformers.CLIPConfig` that config.json holds, with a dict for each tower.

    Raises:
        InputError: no such file, another kind of model, or a value that no CLIP has.
    """
    path = folder / CONFIG
    values = _read_object(path)
    if values.get("model_type") != "clip":
        raise InputError(f"--pretrained {folder}: is of type {short(values.get('model_type'))}, not a CLIP.")
    found = _taken(values, _WHOLE, str(path))
    _tell_of_code(values, path)
    for tower, known in (("text_config", _TEXT), ("vision_config", _VISION)):
        # Older folders say it twice, and then the second counts.
        name = tower if values.get(f"{tower}_dict") is None else f"{tower}_dict"
        own = values.get(name)
        if own is None:
            own = {}
        if not isinstance(own, dict):
            raise InputError(f"{path}: {name} is {short(own)}; expected an object.")
        taken = _taken(own, known, f"{path}: {name}")
        found[tower] = taken
        width, heads = taken.get("hidden_size"), taken.get("num_attention_heads")
        if isinstance(width, int) and isinstance(heads, int) and width and heads and width % heads:
            raise InputError(f"{path}: {name}: hidden_size {width} can't be divided by {heads} num_attention_heads.")
    return found


def read_image_values(folder: Path, image_size: int) -> dict[str, object]:
    """Return the arguments of `transformers.CLIPImageProcessor` from preprocessor_config.json.

    Args:
        folder: folder of the model.
        image_size: side of the square in pixels, to which the shorter side is resized if the file says nothing else.

    Raises:
        InputError: a value that no CLIP can have.
    """
    path = folder / IMAGES
    values = _read_object(path) if os.path.lexists(path) else {}
    _tell_of_code(values, path)
    found: dict[str, object] = {"size": {"shortest_edge": image_size}, "crop_size": image_size}
    if values.get("size") is not None:
        found["size"] = _size(values["size"], f"{path}: size")
    for name, kind in (("image_mean", _MEAN), ("image_std", _STD)):
        value = values.get(name)
        if value is None:
            continue
        if not isinstance(value, list) or len(value) != 3 or not all(map(kind.holds, value)):
            raise InputError(f"{path}: {name} is {short(value)}; expected a list of three numbers, each {kind}.")
        found[name] = value
    return found


def _size(value: Any, where: str) -> dict[str, int]:
    """Return the sides that an image is resized to: the shorter one, or height and width."""
    sides = {"shortest_edge": value} if not isinstance(value, dict) else value
    names = ("shortest_edge",) if "shortest_edge" in sides else ("height", "width")
    if not all(_EDGE.holds(sides.get(name)) for name in names):
        raise InputError(f"{where} is {short(value)}; expected the shorter side, {_EDGE}, or height and width.")
    return {name: sides[name] for name in names}


def read_byte_pairs(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges of CLIP's tokenizer, from vocab.json and merges.txt, else from tokenizer.json.

    Other entries of a tokenizer.json, such as regular expressions, aren't CLIP's and are ignored.

    Raises:
        InputError: no such files, or no vocabulary in them.
    """
    if os.path.lexists(folder / VOCABULARY) and os.path.lexists(folder / MERGES):
        path, vocabulary = folder / VOCABULARY, read_json(folder / VOCABULARY, MAX_TOKENIZER)
        lines = read_bounded(folder / MERGES, MAX_TOKENIZER).decode("utf-8", errors="replace").strip().split("\n")
        pairs: object = lines[1 : MAX_MERGES + 1]  # the first is the version
    elif os.path.lexists(folder / TOKENIZER):
        path = folder / TOKENIZER
        model = _read_object(path, MAX_TOKENIZER).get("model")
        model = model if isinstance(model, dict) else {}
        vocabulary, pairs = model.get("vocab"), model.get("merges")
    else:
        raise InputError(f"there is neither {VOCABULARY} with {MERGES} nor {TOKENIZER}")
    if not isinstance(vocabulary, dict) or not all(type(number) is int for number in vocabulary.values()):
        raise InputError(f"{path} holds no vocabulary, pieces of text with their ids")
    if set(vocabulary.values()) != set(range(len(vocabulary))):  # the tokenizer would print each id that isn't there
        raise InputError(f"{path}: the ids of {len(vocabulary)} pieces aren't 0 to {len(vocabulary) - 1}, each once")
    if BOS not in vocabulary or EOS not in vocabulary:
        raise InputError(f"{path} has no {BOS} or no {EOS}")
    return vocabulary, _merges(pairs, path)


def _merges(pairs: object, path: Path) -> list[tuple[str, str]]:
    """Return the merges as pairs of pieces; files hold them as "a b", or as ["a", "b"]."""
    if not isinstance(pairs, list):
        raise InputError(f"{path} holds no list of merges")
    split: Iterable[object] = (pair.split() if isinstance(pair, str) else pair for pair in pairs)
    found = []
    for number, parts in enumerate(split):
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise InputError(f"merge {number} beside {path} is {short(pairs[number])}, not two pieces of text")
        found.append((parts[0], parts[1]))
    return found


def _read_object(path: Path, most: int = MAX_CONFIG) -> dict[str, object]:
    values = read_json(path, most)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected an object, not {short(values)}.")
    return values


def _taken(values: Mapping[str, object], known: _Known, where: str) -> dict[str, object]:
    """Return the values whose names are known, once each is within its bounds; null stands for a default."""
    found = {name: values[name] for name in known if values.get(name) is not None}
    for name, value in found.items():
        if not known[name].holds(value):
            raise InputError(f"{where}: {name} is {short(value)}; expected {known[name]}.")
    return found


def _tell_of_code(values: object, path: Path) -> None:
    """Print a line with the names of entries, however deep, that would make transformers load code or other files."""
    found, left = set(), [values]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            # Numbers and false choose nothing: folders that nobody tampered with have those.
            found |= {short(name) for name, own in value.items() if _CODE.search(name) and _may_choose(own)}
            left += value.values()
        elif isinstance(value, list):
            left += value
    if found:
        logger.warning(f"{path}: asks for code of its own, which is ignored: {', '.join(sorted(found))[:200]}")


def _may_choose(value: object) -> bool:
    return value is True or isinstance(value, (str, dict, list))
