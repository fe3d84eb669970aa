"""transformers and peft, imported when a model needs them; reading a CLIP from a Hugging Face folder or the hub."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from beit3_vqa.errors import InputError, first_line
from beit3_vqa.files import missing
from beit3_vqa.models.clip_names import CLIP_SIZES, CLIPName, CLIPSize

SAMPLES = 64  # numbers of each weight that its checksum reads
WORD_END = "</w>"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def optional(package: str) -> Any:
    """An installed `transformers` or `peft`.

    Raises:
        InputError: it isn't installed.
    """
    # Worker processes are forked after tokenizers has been used; its own threads would make it warn of that.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return import_module(package)
    except ImportError as error:
        raise InputError(
            f'CLIP and adapters need {package}, which can\'t be imported ({error}): pip install "beit3_vqa[clip]".'
        ) from error


def read_clip_config(source: str, name: CLIPName, model: str) -> Any:
    """The `CLIPConfig` of a folder or of a model on the hub, checked against the model's name.

    Args:
        source: `--pretrained`.
        name: the parsed `--model`.
        model: the name itself, for messages.

    Raises:
        InputError: nothing there, another kind of model, or other sizes than the name says.
    """
    transformers = optional("transformers")
    _require_source(source)
    try:
        values, _ = transformers.PretrainedConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        raise InputError(f"--pretrained {source}: no config.json can be read there ({first_line(error)}).") from error
    if values.get("model_type") != "clip":
        raise InputError(f"--pretrained {source}: is of type {values.get('model_type')!r}, not a CLIP.")
    config = transformers.CLIPConfig.from_dict(values)
    own = _sizes(config)
    wanted = CLIP_SIZES[name.size]
    fits = (wanted is None or wanted == own) and (
        (name.patch_size, name.img_size) == (config.vision_config.patch_size, config.vision_config.image_size)
    )
    if not fits:
        there = f"patches of {config.vision_config.patch_size} at {config.vision_config.image_size} pixels, {own}"
        raise InputError(f"--pretrained {source} isn't a {model}: it has {there}.{_right_name(config, own)}")
    return config


def _require_source(source: str) -> None:
    if not source:
        raise InputError(
            "--pretrained: a CLIP starts from pretrained weights; give a Hugging Face folder (get_started/clip.md says "
            "how to fetch one) or a name on the hub, such as openai/clip-vit-large-patch14."
        )
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"--pretrained {source}: has no config.json, so it is no Hugging Face folder.")
    if not path.is_dir() and (path.exists() or path.is_absolute() or not _HUB_NAME.fullmatch(source)):
        raise InputError(f"--pretrained: {missing('folder', path)}")


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


def read_clip(source: str, config: Any, attention: str) -> nn.Module:
    """The `CLIPModel` of a folder or of the hub, float32, on the CPU.

    Args:
        source: `--pretrained`.
        config: its `CLIPConfig`.
        attention: transformers' name of the attention kernel.

    Raises:
        InputError: no weights, damaged ones, or not all of them.
    """
    transformers = optional("transformers")
    try:
        model, info = transformers.CLIPModel.from_pretrained(
            source, config=config, attn_implementation=attention, output_loading_info=True
        )
    except Exception as error:  # a damaged file makes the readers raise anything
        raise InputError(f"--pretrained {source}: its weights can't be read ({first_line(error)}).") from error
    if info["missing_keys"]:
        lacking = sorted(info["missing_keys"])
        raise InputError(f"--pretrained {source}: lacks {len(lacking)} weights, such as {', '.join(lacking[:3])}.")
    broken = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    if broken:
        raise InputError(f"--pretrained {source}: holds NaN or infinity in {', '.join(broken[:3])}.")
    return model.float()


def read_image_settings(source: str, image_size: int) -> Any:
    """The `CLIPImageProcessor` that belongs to a model; CLIP's own settings where the folder has none."""
    transformers = optional("transformers")
    try:
        return transformers.CLIPImageProcessor.from_pretrained(source)
    except (OSError, ValueError):
        return transformers.CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=image_size)


class CLIPTexts:
    """CLIP's byte-pair encoding, from the files beside the model.

    Args:
        source: `--pretrained`.

    Attributes:
        path: the same, for messages.
        bos_id, eos_id: ids at the beginning and the end of a text.
        vocab_size: number of ids.
        sha256: of the vocabulary, in hexadecimal digits.

    Raises:
        InputError: no such tokenizer there.
    """

    def __init__(self, source: str):
        transformers = optional("transformers")
        self.path = source
        try:
            self._tokenizer = transformers.CLIPTokenizerFast.from_pretrained(source)
        except Exception as error:  # missing and damaged files make it raise anything
            raise InputError(
                f"--pretrained {source}: no CLIP tokenizer there (vocab.json and merges.txt, or tokenizer.json): "
                f"{first_line(error)}"
            ) from error
        self.bos_id: int = self._tokenizer.bos_token_id
        self.eos_id: int = self._tokenizer.eos_token_id
        self.vocab_size = len(self._tokenizer)
        vocabulary = json.dumps(sorted(self._tokenizer.get_vocab().items()))
        self.sha256 = hashlib.sha256(vocabulary.encode()).hexdigest()

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without the special ones; `<|endoftext|>` in a text is text like any other."""
        if not texts:  # which transformers' tokenizer can't take
            return []
        return self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    def words(self, ids: Sequence[int]) -> list[tuple[str, int]]:
        """The words of a text without special ids, a space after each, and how many ids each took.

        Words, not tokens: a token may be a part of a character.
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
        """Writes the tokenizer's files."""
        self._tokenizer.save_pretrained(folder)


def weights_sha256(model: nn.Module) -> str:
    """A checksum over the names, shapes and a sample of the numbers of a model's weights; quick for any size."""
    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        flat = value.detach().flatten()
        sample = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].float().cpu()
        digest.update(f"{name}{tuple(value.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()
