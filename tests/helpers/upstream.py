"""Upstream's numbers for a small configuration, and our models and inputs of that configuration."""

import json
from pathlib import Path

import torch

from beit3_vqa.models.names import build_model
from tests.golden import fill

UPSTREAM = json.loads((Path(fill.__file__).parent / "upstream.json").read_text())
CAPTIONING = UPSTREAM["cases"]["captioning"]
CONFIG = UPSTREAM["config"]
SIZES = {
    "embed_dim": CONFIG["dim"],
    "depth": CONFIG["layers"],
    "num_heads": CONFIG["heads"],
    "vocab_size": CONFIG["vocab_size"],
}


def small_model(**overrides):
    """Build the model for VQA."""
    return build_model("beit3_base_patch16_64_vqacustom", **{**SIZES, **overrides})


def golden_inputs():
    """Return upstream's image (3, 3, 64, 64), text and padding mask (3, 12)."""
    image = torch.from_numpy(fill.draw("image", (3, 3, 64, 64))).clamp(-3, 3)
    text = torch.from_numpy(fill.draw_ints("tokens", (3, 12), 4, CONFIG["vocab_size"] - 10))
    text[:, 0] = 0
    padding_mask = torch.zeros(3, 12, dtype=torch.long)
    for row, length in enumerate(UPSTREAM["cases"]["vqa"]["lengths"]):
        text[row, length - 1] = 2
        text[row, length:] = 1
        padding_mask[row, length:] = 1
    return image, text, padding_mask


def ragged_batch():
    """Return random images (4, 3, 64, 64) and texts of 9, 3, 5 and 1 tokens with their padding mask (4, 9)."""
    image = torch.randn(4, 3, 64, 64)
    text = torch.randint(4, CONFIG["vocab_size"], (4, 9))
    padding_mask = torch.zeros(4, 9, dtype=torch.bool)
    for row, length in enumerate((9, 3, 5, 1)):
        padding_mask[row, length:] = True
    return image, text, padding_mask


def captioner(**overrides):
    """Build the model for captioning."""
    return build_model("beit3_base_patch16_64_captioning", **{**SIZES, **overrides})


def masked_positions():
    """Return upstream's choice of masked tokens, (3, 12)."""
    masked = torch.zeros(3, 12, dtype=torch.long)
    for row, column in CAPTIONING["masked_pos"]:
        masked[row, column] = 1
    return masked
