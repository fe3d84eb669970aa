"""transformers and peft, imported when a model needs them; their CLIP, built from what `clip.folder` reads."""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from beit3_vqa.errors import InputError, first_line
from beit3_vqa.models.clip.folder import (
    BOS,
    EOS,
    OLD_WEIGHTS,
    WEIGHTS,
    read_byte_pairs,
    read_config_values,
    read_image_values,
)
from beit3_vqa.models.names import CLIP_SIZES, TEXT_TOKENS, CLIPName, CLIPSize
from beit3_vqa.runtime.archives import is_packed
from beit3_vqa.runtime.extras import import_extra
from beit3_vqa.runtime.files import require_bounded
from beit3_vqa.runtime.tensors import is_plain

SAMPLES = 64  # numbers of each weight that its checksum reads
WORD_END = "</w>"
MAX_WEIGHTS = 10**12  # bytes
# What weights may be kept in: safetensors' name and torch's.
_FLOATS = {"F64": "torch.float64", "F32": "torch.float32", "F16": "torch.float16", "BF16": "torch.bfloat16"}


def optional(package: str) -> Any:
    """Import and return a module of the `clip` extra, such as `transformers` or `peft`.

    Raises:
        InputError: it isn't installed.
    """
    # Worker processes are forked after tokenizers has been used, and if it may use threads, it warns of that.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return import_extra(package, "clip", "CLIP")


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers 5 from drawing a progress bar for each model that it loads or saves; downloads keep theirs."""
    logging = optional("transformers").utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def read_clip_config(folder: Path, name: CLIPName, model: str) -> Any:
    """Return the `CLIPConfig` of a folder, checked against the model's name.

    Args:
        folder: folder of `--pretrained`.
        name: the parsed `--model`.
        model: the name itself, for messages.

    Raises:
        InputError: nothing there, another kind of model, or other sizes than the name says.
    """
    config = optional("transformers").CLIPConfig(**read_config_values(folder))
    own = _sizes(config)
    wanted = CLIP_SIZES[name.size]
    fits = (wanted is None or wanted == own) and (
        (name.patch_size, name.img_size) == (config.vision_config.patch_size, config.vision_config.image_size)
    )
    if not fits:
        there = f"patches of {config.vision_config.patch_size} at {config.vision_config.image_size} pixels, {own}"
        raise InputError(f"--pretrained {folder} isn't a {model}: it has {there}.{_right_name(config, own)}")
    return config


def _sizes(config: Any) -> CLIPSize:
    vision, text = config.vision_config, config.text_config
    return CLIPSize(
        vision.hidden_size,
        vision.num_hidden_layers,
        vision.num_attention_heads,
        text.hidden_size,
        text.num_hidden_layers,
        text.num_attention_heads,
        config.projection_dim,
    )


def _right_name(config: Any, own: CLIPSize) -> str:
    size = next((name for name, known in CLIP_SIZES.items() if known == own), "tiny")
    right = f"clip_vit_{size}_patch{config.vision_config.patch_size}_{config.vision_config.image_size}"
    return f" Its name is {right}, or {right}_lora."


def read_clip(folder: Path, config: Any, attention: str) -> nn.Module:
    """Build the `CLIPModel` of a folder, float32, on the CPU.

    transformers gets the weights, not the folder: an adapter_config.json there would make it load another base model.

    Args:
        folder: folder of `--pretrained`.
        config: its `CLIPConfig`.
        attention: transformers' name of the attention kernel.

    Raises:
        InputError: no weights, damaged ones, or not all of them.
    """
    weights = _read_weights(folder, config)
    with without_bars():
        model, info = optional("transformers").CLIPModel.from_pretrained(
            None, config=config, state_dict=weights, attn_implementation=attention, output_loading_info=True
        )
    assert not info["missing_keys"]  # `_read_weights` has checked the names
    broken = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    if broken:
        raise InputError(f"--pretrained {folder}: holds NaN or infinity in {', '.join(broken[:3])}.")
    whole: nn.Module = model.float()
    return whole


def _read_weights(folder: Path, config: Any) -> dict[str, Tensor]:
    """Return the model's weights in float32; names, shapes and types are checked before any of them is read.

    Raises:
        InputError: no weights, damaged ones, or weights that don't fit the config.
    """
    where = f"--pretrained {folder}"
    path = next((folder / name for name in (WEIGHTS, OLD_WEIGHTS) if (folder / name).exists()), None)
    if path is None:
        raise InputError(
            f"{where}: its weights can't be read: there is neither {WEIGHTS} nor {OLD_WEIGHTS}. Parts aren't joined: "
            'save them as one file with transformers, by save_pretrained(FOLDER, max_shard_size="100GB").'
        )
    require_bounded(path, MAX_WEIGHTS)
    with torch.device("meta"):
        own = {name: tuple(v.shape) for name, v in optional("transformers").CLIPModel(config).state_dict().items()}
    if path.name == OLD_WEIGHTS:
        content = _read_old_weights(path, where)
        values = {name: value for name, value in content.items() if name in own and isinstance(value, Tensor)}
        _require_fit({name: (tuple(v.shape), str(v.dtype), is_plain(v)) for name, v in values.items()}, own, where)
        return {name: value.float() for name, value in values.items()}
    try:
        with optional("safetensors").safe_open(path, "pt") as file:
            there = {name: file.get_slice(name) for name in file.keys() if name in own}  # noqa: SIM118
            found = {name: (tuple(kept.get_shape()), kept.get_dtype(), True) for name, kept in there.items()}
            _require_fit(found, own, where)
            return {name: file.get_tensor(name).float() for name in own}
    except InputError:
        raise
    except Exception as error:  # a damaged file makes its reader raise anything
        raise InputError(f"{where}: its weights can't be read ({first_line(error)}).") from error


def _read_old_weights(path: Path, where: str) -> dict[str, object]:
    """Return the content of a file in torch's format, read as plain data; its tensors stay in the file.

    Raises:
        InputError: a damaged file, or one that holds more than plain data.
    """
    if is_packed(path):
        raise InputError(f"{where}: {path.name} is a packed zip archive, which torch.save never writes.")
    try:
        mmap = zipfile.is_zipfile(path)  # the format before torch 1.6 can't be mapped
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged file, or one with code in it, makes torch raise anything
        raise InputError(
            f"{where}: {path.name} is damaged, or holds more than weights and plain data ({first_line(error)}); "
            "fetch it from where its makers published it."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{where}: {path.name} holds a {type(content).__name__}, not weights.")
    return content


def _require_fit(
    found: dict[str, tuple[tuple[int, ...], str, bool]], own: dict[str, tuple[int, ...]], where: str
) -> None:
    """Raise InputError if a weight isn't there, or hasn't the shape or a type that the model takes.

    Args:
        found: name -> shape, type, and whether all of its numbers are in the file.
        own: name -> shape in the model.
        where: flag and folder, for messages.
    """
    lacking = sorted(set(own) - set(found))
    if lacking:
        raise InputError(f"{where}: lacks {len(lacking)} weights, such as {', '.join(lacking[:3])}.")
    problems = [
        f"{name}: {shape} {kind}, expected {own[name]} in one of {', '.join(_FLOATS)}"
        for name, (shape, kind, whole) in found.items()
        if shape != own[name] or _FLOATS.get(kind, kind) not in _FLOATS.values() or not whole
    ]
    if problems:
        raise InputError.of_problems(f"{where}: its weights aren't those that its config.json says:", problems)


def read_image_settings(folder: Path, image_size: int) -> Any:
    """Return the `CLIPImageProcessor` that belongs to a model; CLIP's own settings if the folder has none."""
    return optional("transformers").CLIPImageProcessor(**read_image_values(folder, image_size))


class CLIPTexts:
    """CLIP's byte-pair encoding, from the files beside the model.

    Args:
        folder: folder of `--pretrained`.
        max_tokens: longest text, noted in an exported tokenizer.

    Attributes:
        path: the folder, for messages.
        bos_id, eos_id: ids at the beginning and the end of a text.
        vocab_size: number of ids.
        sha256: checksum of the vocabulary, in hexadecimal digits.

    Raises:
        InputError: no such tokenizer there.
    """

    def __init__(self, folder: Path, max_tokens: int = TEXT_TOKENS):
        transformers = optional("transformers")
        self.path = folder
        try:
            vocabulary, merges = read_byte_pairs(folder)
            alphabet = optional("tokenizers").pre_tokenizers.ByteLevel.alphabet()
            lacking = {byte + end for byte in alphabet for end in ("", WORD_END)} - set(vocabulary)
            if lacking:  # an unknown byte would become the end token, in the middle of a text
                raise InputError(f"its vocabulary lacks {len(lacking)} of the 512 single bytes")
            ends = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS}
            ids = {"bos_token_id": vocabulary[BOS], "eos_token_id": vocabulary[EOS]}
            # The converter expects a tokenizer object of transformers; these are the attributes that it reads.
            pairs = SimpleNamespace(encoder=vocabulary, bpe_ranks=dict.fromkeys(merges), **ends, **ids)
            made = optional("transformers.convert_slow_tokenizer").CLIPConverter(pairs).converted()
            self._tokenizer = transformers.CLIPTokenizerFast(tokenizer_object=made, model_max_length=max_tokens, **ends)
        except Exception as error:  # what isn't a CLIP's makes it raise anything
            raise InputError(
                f"--pretrained {folder}: no CLIP tokenizer there (vocab.json and merges.txt, or tokenizer.json): "
                f"{first_line(error)}"
            ) from error
        self.bos_id: int = self._tokenizer.bos_token_id
        self.eos_id: int = self._tokenizer.eos_token_id
        self.vocab_size = len(self._tokenizer)
        listed = json.dumps(sorted(self._tokenizer.get_vocab().items()))
        self.sha256 = hashlib.sha256(listed.encode()).hexdigest()

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, without special ones; `<|endoftext|>` in a text is text like any other."""
        if not texts:  # which transformers' tokenizer can't take
            return []
        encoded = self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def words(self, ids: Sequence[int]) -> list[tuple[str, int]]:
        """Return the words of a text without special ids, a space after each, and how many ids each took.

        Words, not tokens, since a token may be part of a character.
        """
        found: list[tuple[str, int]] = []
        begun: list[int] = []
        pieces = self._tokenizer.convert_ids_to_tokens(list(ids))
        for place, (token_id, piece) in enumerate(zip(ids, pieces, strict=True)):
            begun.append(token_id)
            if piece.endswith(WORD_END) or place == len(ids) - 1:
                found.append((self._tokenizer.decode(begun).strip() + " ", len(begun)))
                begun = []
        return found

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self._tokenizer.save_pretrained(folder)
        # vocab.json and merges.txt: transformers 5 doesn't write them, and the slow tokenizer of 4 reads nothing else.
        self._tokenizer.backend_tokenizer.model.save(str(folder))


def weights_sha256(model: nn.Module) -> str:
    """Return a checksum over names, shapes and a sample of the numbers of a model's weights; quick for any size."""
    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        flat = value.detach().flatten()
        sample = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].float().cpu()
        digest.update(f"{name}{tuple(value.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()
