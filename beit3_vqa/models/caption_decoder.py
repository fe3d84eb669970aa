"""What a captioning model computed of an image and the words so far, kept so that a new word costs one word.

Shapes: N images, K beams of each, H heads, D width of a head, V image tokens, T text tokens so far.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from beit3_vqa.models.attention import Attend

if TYPE_CHECKING:
    from beit3_vqa.models.beit3_captioning import BEiT3ForCaptioning

IncrementalState = dict[int, dict[str, Tensor]]
PER_STEP = 2  # tokens: the new word, and the <mask> that asks for the next


def keeping(state: IncrementalState, layers: int, attend: Attend) -> list[Attend]:
    """Kernels that put their keys and values into upstream's `incremental_state` and attend to all that are there."""
    return [_Keeping(state.setdefault(layer, {}), attend) for layer in range(layers)]


class _Keeping:
    def __init__(self, state: dict[str, Tensor], attend: Attend):
        self.state = state
        self.attend = attend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None) -> Tensor:
        if "prev_key" in self.state:
            k = torch.cat([self.state["prev_key"], k], dim=2)
            v = torch.cat([self.state["prev_value"], v], dim=2)
        self.state["prev_key"], self.state["prev_value"] = k, v
        return self.attend(q, k, v, attended)


class _LayerMemory:
    """Keys and values of a layer: an image's once for all its beams, a beam's own for its words."""

    def __init__(self, attend: Attend):
        self.attend = attend
        self.image_key = self.image_value = torch.empty(0)  # (N, H, V, D)
        self.text_key = self.text_value = torch.empty(0)  # (N, K, H, T, D), no <mask> among them

    def see(self, q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None) -> Tensor:
        """The kernel for the image, which attends to itself."""
        self.image_key, self.image_value = k, v
        self.text_key = self.text_value = k[:, None, :, :0]
        return self.attend(q, k, v, attended)

    def write(self, q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None) -> Tensor:
        """The kernel for two tokens of each beam, (N * K, H, 2, D): a word, and the <mask> behind it.

        Attention weights over the image and over the words are two products with one softmax, so that the image's keys
        needn't be copied for each beam.
        """
        images, beams = self.text_key.shape[:2]
        q, k, v = (x.unflatten(0, (images, beams)) for x in (q * q.size(-1) ** -0.5, k, v))
        keys, values = torch.cat([self.text_key, k], dim=3), torch.cat([self.text_value, v], dim=3)
        self.text_key, self.text_value = keys[..., :-1, :], values[..., :-1, :]
        to_image = _per_image(q) @ self.image_key.transpose(-1, -2)  # (N, H, K * 2, V)
        to_text = q @ keys.transpose(-1, -2)  # (N, K, H, 2, T + 2)
        to_text[..., 0, -1] = float("-inf")  # a word doesn't see the <mask> behind it
        weights = torch.cat([_per_beam(to_image, beams), to_text], dim=-1).float().softmax(dim=-1).to(v.dtype)
        over_image, over_text = weights.split([to_image.size(-1), to_text.size(-1)], dim=-1)
        context = _per_beam(_per_image(over_image) @ self.image_value, beams) + over_text @ values
        return context.flatten(0, 1)

    def follow(self, parents: Tensor) -> None:
        """Gives each new beam (N, K) the words of the beam it goes on from."""
        rows = torch.arange(len(parents), device=parents.device)[:, None]
        self.text_key, self.text_value = self.text_key[rows, parents], self.text_value[rows, parents]

    def keep(self, images: Tensor) -> None:
        """Forgets all images but these."""
        self.image_key, self.image_value = self.image_key[images], self.image_value[images]
        self.text_key, self.text_value = self.text_key[images], self.text_value[images]


def _per_image(x: Tensor) -> Tensor:
    """(N, K, H, 2, ...) -> (N, H, K * 2, ...): the queries of all beams beside each other."""
    return x.transpose(1, 2).flatten(2, 3)


def _per_beam(x: Tensor, beams: int) -> Tensor:
    """The way back."""
    return x.unflatten(2, (beams, PER_STEP)).transpose(1, 2)


class CaptionDecoder:
    """Log-probabilities of the next word of each beam, for `beam_search`.

    Args:
        model: in evaluation mode.
        image: (N, 3, S, S).
        start_id: token before the first word.
        mask_id: token that stands where a word is asked for.
        forbidden: ids whose probability is 0.
    """

    def __init__(
        self, model: "BEiT3ForCaptioning", image: Tensor, start_id: int, mask_id: int, forbidden: Sequence[int] = ()
    ):
        from beit3_vqa.models.attention import attend

        self.model = model
        self.image = image
        self.start_id, self.mask_id = start_id, mask_id
        self.forbidden = list(forbidden)
        self.words = 0
        self.memory = [_LayerMemory(attend) for _ in range(model.get_num_layers())]

    def start(self) -> Tensor:
        """Of the first word: (N, 1, vocabulary)."""
        self.model.encode(self.image, kernels=[layer.see for layer in self.memory], first_token_only=True)
        return self._next(torch.full((len(self.image), 1), self.start_id, device=self.image.device))

    def extend(self, parents: Tensor, words: Tensor) -> Tensor:
        """Of the word after these.

        Args:
            parents: (N, K), the beams of the step before that go on.
            words: (N, K), the word that each goes on with.

        Returns:
            (N, K, vocabulary).
        """
        for layer in self.memory:
            layer.follow(parents)
        self.words += 1
        return self._next(words)

    def keep(self, images: Tensor) -> None:
        """The images that go on, int (N,); what is known of the others is forgotten."""
        for layer in self.memory:
            layer.keep(images)

    def _next(self, words: Tensor) -> Tensor:
        tokens = torch.stack([words, torch.full_like(words, self.mask_id)], dim=-1).flatten(0, 1)
        kernels = [layer.write for layer in self.memory]
        features = self.model.encode(text=tokens, kernels=kernels, first_position=self.words)
        logits = self.model.mlm_head(features[:, 1]).float()
        logits[:, self.forbidden] = float("-inf")
        return logits.log_softmax(dim=-1).unflatten(0, words.shape)
