"""Checkpoints of BEiT-3's layout and next to no weight."""

import io
from collections.abc import Iterator
from typing import Any

import torch


def base_weights(resolution: int = 224, width: int = 768, layers: int = 12, rows: int = 64010) -> dict[str, Any]:
    """Every key `check_key_layout` looks for, at full size: a broadcast tensor is stored as its one number."""

    def tensor(*shape: int) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.float16).expand(shape)

    weights = {
        "beit3.text_embed.weight": tensor(rows, width),
        "beit3.vision_embed.proj.weight": tensor(width, 3, 16, 16),
        "beit3.encoder.embed_positions.A.weight": tensor((resolution // 16) ** 2 + 3, width),
        "beit3.encoder.embed_positions.B.weight": tensor(1024, width),
    }
    for layer in range(layers):
        for way in "AB":
            weights[f"beit3.encoder.layers.{layer}.self_attn.q_proj.{way}.weight"] = tensor(width, width)
            weights[f"beit3.encoder.layers.{layer}.ffn.{way}.fc1.weight"] = tensor(4 * width, width)
    return weights


def checkpoint_bytes(filler: int = 0, seed: int = 0, **sizes: int) -> bytes:
    content = {"model": base_weights(**sizes)}
    if filler:
        content["model"]["mlm_head.weight"] = torch.randint(
            256, (filler,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
        )
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def tensors(content: object, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor of a checkpoint with its place in it, such as `/model/head.3.weight`."""
    if isinstance(content, torch.Tensor):
        yield prefix, content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from tensors(value, f"{prefix}/{name}")
    elif isinstance(content, (list, tuple)):
        for index, value in enumerate(content):
            yield from tensors(value, f"{prefix}/{index}")
