"""BEiT-3 that finds images by text and texts by image: each goes through the model alone, into one shared space.

Shapes: B batch, T text tokens, D width, S side of the image in pixels.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit3_vqa.models.beit3.model import BEiT3Model, init_like_upstream

TEMPERATURE = 0.07  # of fresh weights


class BEiT3ForRetrieval(BEiT3Model):
    """[CLS] of the image alone and `<s>` of the text alone -> unit vectors, close if the two belong together.

    Upstream's `..._retrieval` model. Here its loss belongs to the task, since it needs the features of all processes.
    """

    def __init__(self, **sizes: Any):
        super().__init__(normalize_output=True, **sizes)
        self.language_head = nn.Linear(self.embed_dim, self.embed_dim, bias=False)
        self.vision_head = nn.Linear(self.embed_dim, self.embed_dim, bias=False)
        # Its logarithm, so that the scale stays positive whatever the optimizer does.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))
        self.apply(init_like_upstream)

    def forward(
        self,
        image: Tensor | None = None,
        text_description: Tensor | None = None,
        padding_mask: Tensor | None = None,
        only_infer: bool = False,
    ) -> Tensor | tuple[Tensor | None, Tensor | None]:
        """Return features of images and texts.

        Args:
            image: (B, 3, S, S), normalised float, or uint8.
            text_description: token ids (B, T).
            padding_mask: (B, T), 1 at padding.
            only_infer: either of the two may be missing, and nothing is scaled.

        Returns:
            (B, 2, D): image features times the learned scale, and text features, so that the product of the one with
            the other is a logit. With `only_infer` both as unit vectors, (B, D) each, None for what wasn't given.

        Raises:
            ValueError: one of the two is missing without `only_infer`.
        """
        vision = language = None
        if image is not None:
            vision = F.normalize(self.vision_head(self.encode(image, first_token_only=True)), dim=-1)
        if text_description is not None:
            first = self.encode(text=text_description, padding_mask=padding_mask, first_token_only=True)
            language = F.normalize(self.language_head(first), dim=-1)
        if only_infer:
            return vision, language
        if vision is None or language is None:
            raise ValueError("training needs images and their texts; one of the two alone needs only_infer")
        return torch.stack([vision * self.logit_scale.exp(), language], dim=1)
