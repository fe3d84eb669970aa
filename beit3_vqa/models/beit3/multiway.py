"""The Multiway Transformer of BEiT-3: torchscale's modules and parameters, our forward pass.

Shapes: B batch, V image tokens ([CLS] and the patches), T text tokens, L = V + T, D width, H heads.

torchscale concatenates image and text, then splits and joins them again in every projection, norm and feed-forward
network, since each has one set of weights per modality (A vision, B language). Here the two stay apart as streams and
meet only where they must, in attention. Numbers, parameters and the order of random draws are torchscale's; its own
forward pass stays available as `BEiT3.forward` and is what the tests compare with.

Source: Wang et al. 2022, "Image as a Foreign Language" (arXiv:2208.10442); sub-LN: Wang et al. 2022, "Foundation
Transformers" (arXiv:2210.06423).
"""

from collections.abc import Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from beit3_vqa.models.beit3.attention import KERNELS, Attend, attend
from beit3_vqa.runtime.libraries import BEiT3, EncoderConfig

# Positions 0 and 1 are fairseq's, never used for a token.
FIRST_POSITION = 2
VISION, LANGUAGE = "A", "B"


class Multiway(BEiT3):
    """torchscale's BEiT-3 backbone with a forward pass that keeps image and text apart.

    Args:
        config: torchscale's encoder configuration.
        attention: `auto`, `sdpa`, `matmul` (see `models.attention`), or `reference`: torchscale's own forward pass.
        checkpoint_every: recompute every n-th layer in the backward pass instead of keeping its activations; 0: none.
    """

    def __init__(self, config: EncoderConfig, attention: str = "auto", checkpoint_every: int = 0):
        super().__init__(config)
        self.attention = attention
        self.checkpoint_every = checkpoint_every
        for layer in self.encoder.layers:
            # A method of the layer, so that FSDP can gather its parameters before and free them after.
            layer.forward_streams = MethodType(_layer_forward, layer)

    def encode(
        self,
        image: Tensor | None = None,
        text: Tensor | None = None,
        padding_mask: Tensor | None = None,
        first_token_only: bool = False,
        first_of_each: bool = False,
        *,
        visible: Tensor | None = None,
        kernels: Sequence[Attend] | None = None,
        first_position: int = 0,
    ) -> Tensor:
        """Features of image, text, or both together.

        Args:
            image: float (B, 3, S, S), normalised.
            text: token ids (B, T).
            padding_mask: (B, T), nonzero at padding; None where no text is padded.
            first_token_only: the caller reads nothing but the first token ([CLS] of the image, `<s>` of a text), so
                the last layer computes nothing else.
            first_of_each: the same for the first token of the image and that of the text.
            visible: bool (Q, K), which of K keys each of Q queries may attend to, padding aside; None: all of them.
            kernels: what attends in each layer, in place of `attention`: it may keep keys and values for later texts.
            first_position: tokens of the text that went before, whose keys the kernels kept.

        Returns:
            (B, L, D), image tokens before text tokens; with `first_token_only` (B, D), with `first_of_each` (B, 2, D).
        """
        if self.attention == "reference" and kernels is None:
            hidden = None if visible is None else (~visible).long()
            features = self(text, image, padding_mask, attn_mask=hidden)["encoder_out"]
            if first_of_each:
                return features[:, [0, self.vision_embed.num_position_embeddings()]]
            return features[:, 0] if first_token_only else features
        streams = self._embed(image, text, padding_mask, first_position)
        attended = _attended_keys(streams, padding_mask, visible)
        last = len(self.encoder.layers) - 1
        kernels = kernels or [KERNELS.get(self.attention, attend)] * (last + 1)
        for depth, layer in enumerate(self.encoder.layers):
            sides = (len(streams) if first_of_each else int(first_token_only)) if depth == last else 0
            forward = partial(layer.forward_streams, attend=kernels[depth], first_tokens=sides)
            if self.checkpoint_every and depth % self.checkpoint_every == 0 and torch.is_grad_enabled():
                streams = checkpoint(forward, streams, attended, use_reentrant=False)
            else:
                streams = forward(streams, attended)
        if self.encoder.layer_norm is not None:
            streams = {side: getattr(self.encoder.layer_norm, side)(x) for side, x in streams.items()}
        features = _join(streams)
        return features[:, 0] if first_token_only else features

    def _embed(
        self, image: Tensor | None, text: Tensor | None, padding_mask: Tensor | None, first_position: int
    ) -> dict[str, Tensor]:
        if image is None and text is None:
            raise ValueError("the Multiway Transformer needs an image, a text, or both")
        streams = {}
        if image is not None:
            streams[VISION] = self._add_positions(VISION, self.vision_embed(image))
        if text is not None:
            x = self._add_positions(LANGUAGE, self.text_embed(text), first_position)
            if padding_mask is not None:
                x = x * (1 - padding_mask.unsqueeze(-1).to(x.dtype))
            streams[LANGUAGE] = x
        return streams

    def _add_positions(self, side: str, x: Tensor, first: int = 0) -> Tensor:
        table = getattr(self.encoder.embed_positions, side).weight
        first += FIRST_POSITION
        return x * self.encoder.embed_scale + table[first : first + x.size(1)]


def _attended_keys(
    streams: dict[str, Tensor], padding_mask: Tensor | None, visible: Tensor | None = None
) -> Tensor | None:
    """Which keys may be attended to, bool (B or 1, 1, L or 1, L); None where that is all of them."""
    if visible is not None:
        keys = _attended_keys(streams, padding_mask)
        return visible[None, None] if keys is None else visible & keys
    if padding_mask is None or LANGUAGE not in streams:
        return None
    attended = padding_mask == 0
    if VISION in streams:
        image = streams[VISION]
        attended = torch.cat([attended.new_ones(image.shape[:2]), attended], dim=1)
    return attended[:, None, None, :]


def _layer_forward(
    layer: Any, streams: dict[str, Tensor], attended: Tensor | None, attend: Attend, first_tokens: int
) -> dict[str, Tensor]:
    """Pre-norm attention and feed-forward with sub-LN.

    Where `first_tokens` isn't 0, only the first token of each of so many streams remains, and no other stream.
    """
    normed = {side: getattr(layer.self_attn_layer_norm, side)(x) for side, x in streams.items()}
    if first_tokens:
        # Keys and values still come from every token; the query, and all after it, from the first alone.
        sides = list(streams)[:first_tokens]
        streams = {side: streams[side][:, :1] for side in sides}
        queries = {side: normed[side][:, :1] for side in sides}
    else:
        queries = normed

    context = _attention(layer.self_attn, queries, normed, attended, attend)
    dropped = _drop_path(layer, context)
    streams = {side: x + dropped[side] for side, x in streams.items()}

    hidden = {side: _feed_forward(layer, side, x) for side, x in streams.items()}
    dropped = _drop_path(layer, hidden)
    return {side: x + dropped[side] for side, x in streams.items()}


def _attention(
    module: Any, queries: dict[str, Tensor], keys: dict[str, Tensor], attended: Tensor | None, attend: Attend
) -> dict[str, Tensor]:
    """Multi-head self-attention over the joined streams, sub-LN and output projection per stream."""
    q = _heads(_project(module.q_proj, queries), module.num_heads)
    k = _heads(_project(module.k_proj, keys), module.num_heads)
    v = _heads(_project(module.v_proj, keys), module.num_heads)
    context = attend(q, k, v, attended)
    context = context.transpose(1, 2).flatten(2)  # (B, L, D)

    lengths = [x.size(1) for x in queries.values()]
    split = zip(queries, context.split(lengths, dim=1), strict=True)
    return {side: getattr(module.out_proj, side)(getattr(module.inner_attn_ln, side)(x)) for side, x in split}


def _project(projection: Any, streams: dict[str, Tensor]) -> Tensor:
    return _join({side: getattr(projection, side)(x) for side, x in streams.items()})


def _feed_forward(layer: Any, side: str, x: Tensor) -> Tensor:
    ffn = getattr(layer.ffn, side)
    x = getattr(layer.final_layer_norm, side)(x)
    return ffn.fc2(ffn.ffn_layernorm(F.gelu(ffn.fc1(x))))


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, L, D) -> (B, H, L, D / H)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _join(streams: dict[str, Tensor]) -> Tensor:
    return torch.cat(list(streams.values()), dim=1) if len(streams) > 1 else next(iter(streams.values()))


def _drop_path(layer: Any, streams: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stochastic depth per example: one draw, shared by both streams, as torchscale's joined tensor shares it."""
    if layer.drop_path is None or layer.drop_path.drop_prob == 0.0 or not layer.training:
        return streams
    keep_prob = 1 - layer.drop_path.drop_prob
    x = next(iter(streams.values()))
    keep = x.new_empty((x.size(0), 1, 1)).bernoulli_(keep_prob).div_(keep_prob)
    return {side: x * keep for side, x in streams.items()}
