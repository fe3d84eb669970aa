"""The Multiway Transformer of BEiT-3: torchscale's modules and parameters, our forward pass.

Shapes: B batch, V image tokens ([CLS] and the patches), T text tokens, L = V + T, D width, H heads. Streams map a side
to its tokens: {"A": (B, V, D), "B": (B, T, D)}, or one of the two; the image always comes first.

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
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from beit3_vqa.models.beit3.attention import KERNELS, Attend, as_bias, attend
from beit3_vqa.runtime.libraries import EncoderConfig

if TYPE_CHECKING:

    class BEiT3(nn.Module):
        """The parts of torchscale's backbone that are used here; torchscale itself has no types."""

        args: EncoderConfig
        text_embed: nn.Embedding
        vision_embed: Any
        encoder: Any

        def __init__(self, args: EncoderConfig) -> None: ...

else:
    from beit3_vqa.runtime.libraries import BEiT3

FIRST_POSITION = 2  # rows 0 and 1 of fairseq's position tables never stand for a token
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
            # Bound to the layer as a method, so that FSDP can gather its parameters before a call and free them after.
            layer.forward_streams = MethodType(_layer_forward, layer)

    def encode(
        self,
        image: Tensor | None = None,
        text: Tensor | None = None,
        padding_mask: Tensor | None = None,
        first_token_only: bool = False,
        first_of_each: bool = False,
        *,
        image_of: Tensor | None = None,
        visible: Tensor | None = None,
        kernels: Sequence[Attend] | None = None,
        first_position: int = 0,
    ) -> Tensor:
        """Return features of image, text, or both together.

        Args:
            image: float (B, 3, S, S), normalised; with `image_of` (I, 3, S, S).
            text: token ids (B, T).
            padding_mask: (B, T), nonzero at padding; None: no text is padded.
            first_token_only: the caller reads the first token alone ([CLS] of the image, else `<s>` of the text), so
                the last layer computes nothing else.
            first_of_each: the same for the first token of the image and that of the text.
            image_of: (B,), which of I images each text is about; None: each about its own. What depends on the image
                alone, up to the first layer's queries, keys and values, is then computed once for each image.
            visible: bool (Q, K), which of K keys each of Q queries may attend to, padding aside; None: all of them.
            kernels: one for each layer, in place of `attention`; they may keep keys and values for later calls.
            first_position: number of earlier text tokens, whose keys the kernels kept.

        Returns:
            (B, L, D), image tokens before text tokens; with `first_token_only` (B, D), with `first_of_each` (B, 2, D).

        Raises:
            ValueError: neither image nor text.
        """
        if self.attention == "reference" and kernels is None:
            if image is not None and image_of is not None:
                image = image.index_select(0, image_of)
            hidden = None if visible is None else (~visible).long()  # torchscale's mask is 1 where ours is False
            features: Tensor = self(text, image, padding_mask, attn_mask=hidden)["encoder_out"]
            if first_of_each:
                # The first token of the text comes right after the V tokens of the image.
                return features[:, [0, self.vision_embed.num_position_embeddings()]]
            return features[:, 0] if first_token_only else features
        # From here to `_join` the tokens are in streams, {"A": (B, V, D), "B": (B, T, D)}. With `image_of` the first
        # layer still gets "A" as (I, V, D).
        streams = self._embed(image, text, padding_mask, first_position)
        attended = _attended_keys(streams, padding_mask, visible)
        # No image token is padding, so only `visible` may hide one.
        always = streams[VISION].size(1) if VISION in streams and visible is None else 0
        # Made once for all layers, in the type of their products.
        bias = None if attended is None else as_bias(attended, _product_type(next(iter(streams.values()))), always)
        last = len(self.encoder.layers) - 1
        kernels = kernels or [KERNELS.get(self.attention, attend)] * (last + 1)
        for depth, layer in enumerate(self.encoder.layers):
            # Only the last layer may drop tokens: all others feed the keys of the next.
            sides = (len(streams) if first_of_each else int(first_token_only)) if depth == last else 0
            forward = partial(layer.forward_streams, attend=kernels[depth], first_tokens=sides)
            # Out here, since the rate differs from layer to layer, and the compiler shares a layer's code. For the last
            # stream, since the first may hold fewer images than there are examples.
            kept = _draw_kept(layer, next(reversed(streams.values())))
            if self.checkpoint_every and depth % self.checkpoint_every == 0 and torch.is_grad_enabled():
                # Not reentrant: the other kind finds no gradients in a dict of tensors.
                streams = checkpoint(forward, streams, bias, kept, image_of, use_reentrant=False)
            else:
                streams = forward(streams, bias, kept, image_of)
            image_of = None  # after the first layer an image's tokens have seen their text
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
                # As torchscale: pads become zeros once their position is added. Attention ignores them anyway.
                x = x * (1 - padding_mask.unsqueeze(-1).to(x.dtype))
            streams[LANGUAGE] = x
        return streams

    def _add_positions(self, side: str, x: Tensor, first: int = 0) -> Tensor:
        table: Tensor = getattr(self.encoder.embed_positions, side).weight
        scale: float = self.encoder.embed_scale
        first += FIRST_POSITION
        return x * scale + table[first : first + x.size(1)]


def _attended_keys(
    streams: dict[str, Tensor], padding_mask: Tensor | None, visible: Tensor | None = None
) -> Tensor | None:
    """Return which keys may be attended to, bool (B or 1, 1, Q or 1, K); None if that is all of them."""
    if visible is not None:
        keys = _attended_keys(streams, padding_mask)
        return visible[None, None] if keys is None else visible & keys
    if padding_mask is None or LANGUAGE not in streams:
        return None
    attended = padding_mask == 0
    if VISION in streams:
        # (B, V + T)
        attended = F.pad(attended, (streams[VISION].size(1), 0), value=True)
    return attended[:, None, None, :]


def _layer_forward(
    layer: Any,
    streams: dict[str, Tensor],
    bias: Tensor | None,
    kept: tuple[Tensor, Tensor] | None,
    image_of: Tensor | None,
    attend: Attend,
    first_tokens: int,
) -> dict[str, Tensor]:
    """Compute one layer: pre-norm attention and feed-forward with sub-LN.

    It reads no number that differs from layer to layer, so that the compiler can use its code for all of them.

    Args:
        layer: torchscale's module.
        streams: the sides' tokens.
        bias: see `attention`.
        kept: what `_draw_kept` drew for the layer.
        image_of: (B,), which of the images each text is about; None: each about its own.
        attend: the kernel of attention.
        first_tokens: if not 0, only the first token of each of so many streams remains, and no other stream.
    """
    normed = {side: _norm(getattr(layer.self_attn_layer_norm, side), x) for side, x in streams.items()}
    if first_tokens:
        # Keys and values still come from every token; the query, and all after it, from the first alone.
        sides = list(streams)[:first_tokens]
        streams = {side: streams[side][:, :1] for side in sides}
        queries = {side: normed[side][:, :1] for side in sides}
    else:
        queries = normed

    context = _attention(layer.self_attn, queries, normed, bias, attend, image_of)
    streams = {side: x + _branch(context[side], kept, 0) for side, x in _repeat_images(streams, image_of).items()}
    return {side: x + _branch(_feed_forward(layer, side, x), kept, 1) for side, x in streams.items()}


def _branch(x: Tensor, kept: tuple[Tensor, Tensor] | None, number: int) -> Tensor:
    """Return what a residual branch adds: 0 for an example whose branch is dropped."""
    return x if kept is None else x * kept[number]


def _product_type(x: Tensor) -> torch.dtype:
    """Return the type in which a matrix product of these numbers is computed."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Normalise; return the type that the products after it read, so that it is cast once and not by each of them."""
    normed: Tensor
    if x.dtype == torch.float32 or x.device.type == "cpu":
        normed = norm(x)
        return normed.to(_product_type(x))
    # On a GPU autocast would go through a copy in float32 and give float32. The kernel sums in float32 anyway; unlike
    # the CPU's it wants its weights in the type of its input.
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


def _attention(
    module: Any,
    queries: dict[str, Tensor],
    keys: dict[str, Tensor],
    bias: Tensor | None,
    attend: Attend,
    image_of: Tensor | None,
) -> dict[str, Tensor]:
    """Attend over the joined streams; normalise (sub-LN) and project the context of each stream by itself."""
    # q (B, H, Q, D / H), k and v (B, H, K, D / H): heads of image and text tokens together.
    q = _heads(_project(module.q_proj, queries, image_of), module.num_heads)
    k = _heads(_project(module.k_proj, keys, image_of), module.num_heads)
    v = _heads(_project(module.v_proj, keys, image_of), module.num_heads)
    context = attend(q, k, v, bias)
    context = context.transpose(1, 2).flatten(2)  # (B, L, D)

    lengths = [x.size(1) for x in queries.values()]
    split = zip(queries, context.split_with_sizes(lengths, dim=1), strict=True)
    return {side: getattr(module.out_proj, side)(_norm(getattr(module.inner_attn_ln, side), x)) for side, x in split}


def _project(projection: Any, streams: dict[str, Tensor], image_of: Tensor | None) -> Tensor:
    """Project each stream with its own weights and join them: (B, L, D)."""
    projected = {side: getattr(projection, side)(x) for side, x in streams.items()}
    return _join(_repeat_images(projected, image_of))


def _repeat_images(streams: dict[str, Tensor], image_of: Tensor | None) -> dict[str, Tensor]:
    """Return the streams with the tokens of its image for each text, (B, V, D) of (I, V, D)."""
    return streams if image_of is None else {**streams, VISION: streams[VISION].index_select(0, image_of)}


def _feed_forward(layer: Any, side: str, x: Tensor) -> Tensor:
    ffn = getattr(layer.ffn, side)
    x = _norm(getattr(layer.final_layer_norm, side), x)
    # (B, tokens, 4 D) between the products, and normalised there too (sub-LN).
    hidden: Tensor = ffn.fc2(_norm(ffn.ffn_layernorm, F.gelu(ffn.fc1(x))))
    return hidden


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """Split the width into heads: (B, L, D) -> (B, H, L, D / H)."""
    return torch.unflatten(x, -1, (num_heads, -1)).transpose(1, 2)


def _join(streams: dict[str, Tensor]) -> Tensor:
    # One stream alone is joined already; `cat` would copy it.
    return torch.cat(list(streams.values()), dim=1) if len(streams) > 1 else next(iter(streams.values()))


def _draw_kept(layer: Any, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Draw which examples keep a layer's two branches (stochastic depth); None if every one keeps them.

    As in torchscale: first attention's, then the feed-forward's, each once for both streams.

    Returns:
        Two factors (B, 1, 1) for what a branch adds: 0, or 1 / rate of those that are kept, so that the expected value
        is that of evaluation.
    """
    if layer.drop_path is None or layer.drop_path.drop_prob == 0.0 or not layer.training:
        return None
    rate = 1 - layer.drop_path.drop_prob

    def draw() -> Tensor:
        # In the type of the branches, which a float32 factor would turn into float32.
        return x.new_empty((x.size(0), 1, 1), dtype=_product_type(x)).bernoulli_(rate).div_(rate)

    return draw(), draw()
