"""BEiT-3 that writes captions: masked words predicted from the image and the words before them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from beit3_vqa.models.attention import attend
from beit3_vqa.models.beam_search import Caption, beam_search
from beit3_vqa.models.beit3 import BEiT3Model, init_like_upstream
from beit3_vqa.models.caption_decoder import CaptionDecoder, IncrementalState, keeping


class BEiT3ForCaptioning(BEiT3Model):
    """Image and a caption with masked words -> logits of the vocabulary (upstream's `..._captioning` model).

    Image tokens attend to the image, a word to the image and to the words up to itself (sequence to sequence as in
    Bao et al. 2021, "s2s-ft", arXiv:2110.13640). So what is computed of the image and of earlier words stays true when
    a word is added.
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
    ) -> Any:
        """Logits of the vocabulary at the text's tokens.

        Args:
            image: (B, 3, S, S), normalised float, or uint8; None where `incremental_state` has it.
            text_ids: token ids (B, T), masked ones as `<mask>`; without an image, the T tokens that are new.
            padding_mask: (B, T), 1 at padding; without effect beside `incremental_state`, as upstream.
            language_masked_pos: (B, T), 1 where logits are wanted; None: everywhere.
            text_len: tokens of the whole text so far; default: T.
            incremental_state: an empty dict at first; keys and values of each layer are put there, by layer under
                `prev_key` and `prev_value` (B, H, L, D / H), and attended to from then on. Whoever adds a word takes
                the `<mask>`'s off first.

        Returns:
            (B, T, vocabulary), or with `language_masked_pos` (masked tokens, vocabulary). With `incremental_state`, a
            pair of that and the state.
        """
        image_tokens = self.beit3.vision_embed.num_position_embeddings()
        text_len = text_ids.size(1) if text_len is None else text_len
        visible = caption_mask(image_tokens, text_len, text_ids.device)
        options: dict[str, Any] = {"padding_mask": padding_mask}
        if incremental_state is not None:
            kernels = keeping(incremental_state, self.get_num_layers(), attend)
            options = {"kernels": kernels}
        if image is None:
            visible = visible[-text_ids.size(1) :]
            options["first_position"] = text_len - text_ids.size(1)
        features = self.encode(image, text_ids, visible=visible, **options)[:, -text_ids.size(1) :]
        if language_masked_pos is not None:
            features = features[language_masked_pos.bool()]
        logits = self.mlm_head(features)
        return logits if incremental_state is None else (logits, incremental_state)

    def layers(self) -> list[tuple[nn.Module, str]]:
        """As for every model; here a layer is called by another method where keys and values are kept."""
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
        forbidden: Sequence[int] = (),
    ) -> list[Caption]:
        """The best caption of each image that a beam search finds.

        Args:
            image: (B, 3, S, S), normalised float, or uint8.
            start_id: of `<s>`.
            mask_id: of `<mask>`, which stands where the next word is predicted.
            end_id: of `</s>`.
            num_beams: captions that are followed at once, per image.
            max_len: tokens of the longest caption, with `<s>`, `</s>` and room for one `<mask>`.
            length_penalty: a caption's score is its log-probability over (words + 2) to this power.
            forbidden: ids that are never written.
        """
        decoder = CaptionDecoder(self, image, start_id, mask_id, forbidden)
        return beam_search(decoder, num_beams, end_id, max_len - 3, length_penalty)


def caption_mask(image_tokens: int, text_tokens: int, device: torch.device | None = None) -> Tensor:
    """Who may attend to whom, bool (L, L), L image tokens and then text tokens.

    An image token attends to every image token; a text token to those, to itself and to the text before it.
    """
    total = image_tokens + text_tokens
    visible = torch.ones(total, total, dtype=torch.bool, device=device).tril()
    visible[:, :image_tokens] = True
    return visible
