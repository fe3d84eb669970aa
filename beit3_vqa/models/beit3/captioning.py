"""BEiT-3 that writes captions: masked words predicted from the image and the words before them.

To write, it keeps each layer's keys and values of the image and the words so far, so that a new word costs one word.

Shapes: N images, K beams of each, H heads, D width of a head, V image tokens, T text tokens so far.
"""

from typing import Any

import torch
from torch import Tensor, nn

from beit3_vqa.models.beit3.attention import Attend, attend
from beit3_vqa.models.beit3.beam_search import Caption, beam_search
from beit3_vqa.models.beit3.model import BEiT3Model, init_like_upstream

IncrementalState = dict[int, dict[str, Tensor]]
PER_STEP = 2  # tokens: the new word, and the <mask> that asks for the next


def keeping(state: IncrementalState, layers: int, attend: Attend) -> list[Attend]:
    """Return a kernel for each layer that adds its keys and values to upstream's `incremental_state`.

    The kernels attend to everything that the state then holds.
    """
    return [_Keeping(state.setdefault(layer, {}), attend) for layer in range(layers)]


class _Keeping:
    """A kernel that keeps keys and values in one layer's entry of `incremental_state`."""

    def __init__(self, state: dict[str, Tensor], attend: Attend):
        self.state = state
        self.attend = attend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        if "prev_key" in self.state:
            k = torch.cat([self.state["prev_key"], k], dim=2)
            v = torch.cat([self.state["prev_value"], v], dim=2)
        self.state["prev_key"], self.state["prev_value"] = k, v
        return self.attend(q, k, v, bias)


class _LayerMemory:
    """Keys and values of one layer: those of an image are shared by its beams, those of words belong to a beam."""

    def __init__(self, attend: Attend):
        self.attend = attend
        self.image_key = self.image_value = torch.empty(0)  # (N, H, V, D)
        self.text_key = self.text_value = torch.empty(0)  # (N, K, H, T, D), no <mask> among them

    def see(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Attend within the image, (N, H, V, D), and remember its keys and values."""
        self.image_key, self.image_value = k, v
        self.text_key = self.text_value = k[:, None, :, :0]  # (N, 1, H, 0, D): one beam that has no words yet
        return self.attend(q, k, v, bias)

    def write(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Attend from two tokens of each beam, a word and the <mask> behind it, and remember the word.

        Weights over the image and over the words are two products with one softmax, so that the image's keys needn't
        be copied for each beam. Queries, keys, values and the context returned are (N * K, H, 2, D).
        """
        images, beams = self.text_key.shape[:2]
        q, k, v = (torch.unflatten(x, 0, (images, beams)) for x in (q * q.size(-1) ** -0.5, k, v))  # (N, K, H, 2, D)
        keys, values = torch.cat([self.text_key, k], dim=3), torch.cat([self.text_value, v], dim=3)
        # The <mask> isn't remembered: at the next step the word chosen in its place comes here.
        self.text_key, self.text_value = keys[..., :-1, :], values[..., :-1, :]
        to_image = _per_image(q) @ self.image_key.transpose(-1, -2)  # (N, H, K * 2, V)
        to_text = q @ keys.transpose(-1, -2)  # (N, K, H, 2, T + 2)
        to_text[..., 0, -1] = float("-inf")  # a word doesn't see the <mask> behind it
        # One softmax over both, in float32 whatever the products were computed in.
        weights = torch.cat([_per_beam(to_image, beams), to_text], dim=-1).float().softmax(dim=-1).to(v.dtype)
        over_image, over_text = weights.split_with_sizes([to_image.size(-1), to_text.size(-1)], dim=-1)
        context = _per_beam(_per_image(over_image) @ self.image_value, beams) + over_text @ values
        return context.flatten(0, 1)

    def follow(self, parents: Tensor) -> None:
        """Give each new beam the words of the old one it goes on from, `parents`, int (N, K)."""
        rows = torch.arange(len(parents), device=parents.device)[:, None]
        self.text_key, self.text_value = self.text_key[rows, parents], self.text_value[rows, parents]

    def keep(self, images: Tensor) -> None:
        """Forget all images but these, int (N,)."""
        self.image_key, self.image_value = self.image_key[images], self.image_value[images]
        self.text_key, self.text_value = self.text_key[images], self.text_value[images]


def _per_image(x: Tensor) -> Tensor:
    """Put the queries of an image's beams beside each other: (N, K, H, 2, ...) -> (N, H, K * 2, ...)."""
    return x.transpose(1, 2).flatten(2, 3)


def _per_beam(x: Tensor, beams: int) -> Tensor:
    """Take them apart again: (N, H, K * 2, ...) -> (N, K, H, 2, ...)."""
    return torch.unflatten(x, 2, (beams, PER_STEP)).transpose(1, 2)


class CaptionDecoder:
    """The model as a `Decoder` of `beam_search`: log-probabilities of the next word of each beam.

    Args:
        model: in evaluation mode.
        image: (N, 3, S, S), S its side in pixels.
        start_id: token before the first word.
        mask_id: token that stands where a word is asked for.
    """

    def __init__(self, model: "BEiT3ForCaptioning", image: Tensor, start_id: int, mask_id: int):
        self.model = model
        self.image = image
        self.start_id, self.mask_id = start_id, mask_id
        self.words = 0  # T, number of words so far, the same in every beam
        self.memory = [_LayerMemory(attend) for _ in range(model.get_num_layers())]

    def start(self) -> Tensor:
        """Encode the image and return log-probabilities of the first word, (N, 1, vocabulary)."""
        # Image tokens never see a word, so one pass serves all words. Only its keys and values are wanted.
        self.model.encode(self.image, kernels=[layer.see for layer in self.memory], first_token_only=True)
        return self._next(torch.full((len(self.image), 1), self.start_id, device=self.image.device))

    def extend(self, parents: Tensor, words: Tensor) -> Tensor:
        """Return log-probabilities of the word after these, (N, K, vocabulary).

        Args:
            parents: int (N, K), the old beam that each new one goes on from.
            words: int (N, K), the word that it goes on with.
        """
        for layer in self.memory:
            layer.follow(parents)
        self.words += 1
        return self._next(words)

    def keep(self, images: Tensor) -> None:
        """Forget all images but these, int (N,)."""
        for layer in self.memory:
            layer.keep(images)

    def _next(self, words: Tensor) -> Tensor:
        tokens = torch.stack([words, torch.full_like(words, self.mask_id)], dim=-1).flatten(0, 1)  # (N * K, 2)
        kernels = [layer.write for layer in self.memory]
        features = self.model.encode(text=tokens, kernels=kernels, first_position=self.words)
        logits: Tensor = self.model.mlm_head(features[:, 1]).float()  # at the <mask>
        return torch.unflatten(logits.log_softmax(dim=-1), 0, words.shape)


class BEiT3ForCaptioning(BEiT3Model):
    """Image and a caption with masked words -> logits of the vocabulary (upstream's `..._captioning` model).

    Image tokens attend to the image, a word to the image and to the words up to itself (sequence to sequence as in
    Bao et al. 2021, "s2s-ft", arXiv:2110.13640). So keys and values of the image and of earlier words stay the same
    when a word is added.
    """

    unshardable = "processes write captions of different lengths, and would wait for each other's weights"

    def __init__(self, **sizes: Any):
        super().__init__(normalize_output=True, **sizes)
        self.mlm_head = nn.Linear(self.embed_dim, self.vocab_size)
        self.apply(init_like_upstream)

    def forward(
        self,
        image: Tensor | None,
        text_ids: Tensor,
        padding_mask: Tensor | None = None,
        language_masked_pos: Tensor | None = None,
        text_len: int | None = None,
        incremental_state: IncrementalState | None = None,
        masked_places: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, IncrementalState]:
        """Return logits of the vocabulary at the text's tokens.

        Args:
            image: (B, 3, S, S), normalised float, or uint8; None if `incremental_state` has it.
            text_ids: token ids (B, T), masked ones as `<mask>`; without an image, the T tokens that are new.
            padding_mask: (B, T), 1 at padding; without effect beside `incremental_state`, as upstream.
            language_masked_pos: (B, T), 1 where logits are wanted; None: everywhere.
            text_len: tokens of the whole text so far; default: T.
            incremental_state: an empty dict at first. Each layer puts its keys and values there, as `prev_key` and
                `prev_value` (B, H, L, D), and attends to them from then on. Before adding a word, the caller removes
                the `<mask>`'s.
            masked_places: int64 (M,), the places where logits are wanted among the B * T tokens, row by row. It says
                what `language_masked_pos` says, and a GPU needn't be waited for to count them.

        Returns:
            (B, T, vocabulary), or with `language_masked_pos` or `masked_places` (masked tokens, vocabulary). With
            `incremental_state`, a pair of that and the state.
        """
        image_tokens = self.beit3.vision_embed.num_position_embeddings()
        text_len = text_ids.size(1) if text_len is None else text_len
        visible = caption_mask(image_tokens, text_len, text_ids.device)
        kernels = None
        if incremental_state is not None:
            kernels, padding_mask = keeping(incremental_state, self.get_num_layers(), attend), None
        first_position = 0
        if image is None:
            first_position = text_len - text_ids.size(1)
            visible = visible[-text_ids.size(1) :]  # rows of the new tokens; the columns are all keys there then are
        features = self.encode(
            image, text_ids, padding_mask=padding_mask, visible=visible, kernels=kernels, first_position=first_position
        )
        # The image's tokens come first: (B, V + T, D) -> (B, T, D).
        features = features[:, -text_ids.size(1) :]
        if language_masked_pos is not None:
            features = features[language_masked_pos.bool()]
        elif masked_places is not None:
            features = features.flatten(0, 1).index_select(0, masked_places)
        logits: Tensor = self.mlm_head(features)  # the widest layer: at the wanted tokens alone
        return logits if incremental_state is None else (logits, incremental_state)

    def layers(self) -> list[tuple[nn.Module, str]]:
        """Return the layers; whatever `attention` is, kept keys and values need `forward_streams`."""
        return [(layer, "forward_streams") for layer in self.beit3.encoder.layers]

    @torch.no_grad()
    def generate(
        self,
        image: Tensor,
        *,
        start_id: int,
        mask_id: int,
        end_id: int,
        num_beams: int = 3,
        max_len: int = 64,
        length_penalty: float = 0.6,
    ) -> list[Caption]:
        """Return the best caption of each image that a beam search finds.

        Args:
            image: (B, 3, S, S), normalised float, or uint8.
            start_id: id of `<s>`.
            mask_id: id of `<mask>`, which stands where the next word is predicted.
            end_id: id of `</s>`.
            num_beams: captions that are followed at once, per image.
            max_len: tokens of the longest caption, with `<s>`, `</s>` and room for one `<mask>`.
            length_penalty: a caption's score is its log-probability over (words + 2) to this power.
        """
        decoder = CaptionDecoder(self, image, start_id, mask_id)
        return beam_search(decoder, num_beams, end_id, max_len - 3, length_penalty)


def caption_mask(image_tokens: int, text_tokens: int, device: torch.device | None = None) -> Tensor:
    """Return which token (row) may attend to which (column): bool (L, L), image tokens before text tokens.

    An image token attends to every image token; a text token to those, to itself and to the text before it.
    """
    total = image_tokens + text_tokens
    visible = torch.ones(total, total, dtype=torch.bool, device=device).tril()
    visible[:, :image_tokens] = True
    return visible
