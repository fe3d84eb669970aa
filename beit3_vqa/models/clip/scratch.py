"""A small CLIP with random weights and a tokenizer of its own, as a Hugging Face folder: for the demo and for tests."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_vqa.errors import InputError
from beit3_vqa.models.clip.folder import BOS, EOS
from beit3_vqa.models.clip.hub import WORD_END, optional, without_bars
from beit3_vqa.runtime.files import make_folder, write_text

MEAN_STD = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


@dataclass(frozen=True)
class TinyCLIP:
    """Sizes of a CLIP whose towers are alike.

    Attributes:
        width: width of both towers, and of the space that they share.
        layers: layers of each tower.
        heads: heads of each layer.
        img_size: side of the image in pixels.
        patch_size: side of a patch in pixels.
        max_tokens: tokens of the longest text.
        merges: the most merges that the tokenizer learns.
    """

    width: int = 128
    layers: int = 3
    heads: int = 4
    img_size: int = 32
    patch_size: int = 8
    max_tokens: int = 64
    merges: int = 200

    @property
    def name(self) -> str:
        """Return the model's name, for `--model`."""
        return f"clip_vit_tiny_patch{self.patch_size}_{self.img_size}"


def write_tiny_clip(folder: Path, texts: Iterable[str], sizes: TinyCLIP, seed: int = 0) -> Path:
    """Write config, random weights, tokenizer and image settings, as `save_pretrained` does.

    Args:
        folder: made if missing.
        texts: the tokenizer is trained on them.
        sizes: the model's.
        seed: the weights'.

    Returns:
        The folder, for `--pretrained`.

    Raises:
        InputError: the texts are empty.
    """
    import torch

    transformers = optional("transformers")
    make_folder(folder)
    vocabulary = _write_tokenizer(folder, texts, sizes)
    tower = {
        "hidden_size": sizes.width,
        "intermediate_size": 4 * sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "projection_dim": sizes.width,
    }
    text = {"vocab_size": len(vocabulary), "max_position_embeddings": sizes.max_tokens}
    text |= {"bos_token_id": vocabulary[BOS], "eos_token_id": vocabulary[EOS], "pad_token_id": vocabulary[EOS]}
    config = transformers.CLIPConfig(
        text_config={**tower, **text},
        vision_config={**tower, "image_size": sizes.img_size, "patch_size": sizes.patch_size},
        projection_dim=sizes.width,
    )
    # Whoever calls this goes on with the random numbers that they would have had without it.
    with torch.random.fork_rng(devices=[]), without_bars():
        torch.manual_seed(seed)
        transformers.CLIPModel(config).save_pretrained(folder)
    settings = {"size": {"shortest_edge": sizes.img_size}, "crop_size": sizes.img_size, **MEAN_STD}
    transformers.CLIPImageProcessor(**settings).save_pretrained(folder)
    return folder


def _write_tokenizer(folder: Path, texts: Iterable[str], sizes: TinyCLIP) -> dict[str, int]:
    """Train CLIP's kind of byte-pair encoding, write its files and return its vocabulary: piece -> id.

    Every byte has ids of its own, so that any text can be encoded.
    """
    tokenizers = optional("tokenizers")
    bpe: Any = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix=WORD_END))
    bpe.normalizer = tokenizers.normalizers.Lowercase()
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Whitespace(), tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        # Each byte twice: inside a word, and at its end.
        vocab_size=2 * len(alphabet) + sizes.merges,
        initial_alphabet=alphabet,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    if not merges:
        raise InputError("there is no text to train CLIP's tokenizer on.")
    # The order of CLIP's own vocabulary; the place of a piece is its id.
    pieces = [*alphabet, *(letter + WORD_END for letter in alphabet), *(a + b for a, b in merges), BOS, EOS]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    write_text(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    write_text(folder / "tokenizer_config.json", json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return vocabulary
