"""CLIP for multiple choice: how well the text of each option fits the image.

Shapes: B examples with C options each, I distinct images, T distinct texts of L tokens, S the image's side in pixels,
P the width in which images and texts meet.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit3_vqa.models.base import TrainableModel
from beit3_vqa.models.lora import keep_only

LOGIT_SCALE = "clip.logit_scale"


class CLIPForMultipleChoice(TrainableModel):
    """Cosine similarity of the image with the text of each option, times CLIP's logit scale.

    Each distinct image and text of a batch is encoded once; `image_of` and `text_of` say which of them belong to an
    example.

    Args:
        clip: a `transformers.CLIPModel`, with adapters or without.
        mean: mean of the pixels' red, green and blue, in [0, 1].
        std: their standard deviation.
        base_sha256: checksum of the weights that are frozen; empty if none are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: Any, mean: Sequence[float], std: Sequence[float], base_sha256: str = ""):
        super().__init__()
        self.clip = clip
        self.base_sha256 = base_sha256
        # Not part of a checkpoint: they come from the pretrained model's folder. Times 255, for pixels in bytes.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        keep_only(self, frozenset(trained | {LOGIT_SCALE}))

    def forward(self, image: Tensor, image_of: Tensor, text: Tensor, text_of: Tensor) -> Tensor:
        """Return a logit for each option.

        Args:
            image: uint8 (I, 3, S, S).
            image_of: (B,), which of the images an example is about.
            text: token ids (T, L); what follows the end token has no influence.
            text_of: (B, C), which of the texts stands for each option.

        Returns:
            float32 (B, C).
        """
        pixels = (image.float() - self.mean) / self.std
        # By the towers: what get_image_features and get_text_features return changed in transformers 5.
        image_features = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output)
        text_features = self.clip.text_projection(self.clip.text_model(input_ids=text).pooler_output)
        # In float32 whatever the products were computed in: the logit scale multiplies rounding by 100.
        images = F.normalize(image_features.float(), dim=-1)  # (I, P)
        texts = F.normalize(text_features.float(), dim=-1)  # (T, P)
        own_texts = texts.index_select(0, text_of.flatten()).view(*text_of.shape, -1)  # (B, C, P)
        similarity = (images.index_select(0, image_of).unsqueeze(1) * own_texts).sum(dim=-1)
        logits: Tensor = self.clip.logit_scale.exp() * similarity
        return logits

    def get_num_layers(self) -> int:
        """Return the number of layers of the deeper tower, the unit of layer-wise learning-rate decay."""
        return max(self._layers("vision"), self._layers("text"))

    def _layers(self, tower: str) -> int:
        layers: int = getattr(self.clip.config, f"{tower}_config").num_hidden_layers
        return layers

    def layers(self) -> list[tuple[nn.Module, str]]:
        """Return the layers of both towers, each with the name of the method by which it is called."""
        lists = [module for name, module in self.named_modules() if name.endswith("encoder.layers")]
        return [(layer, "forward") for layers in lists for layer in layers.children()]

    def attention_modules(self, tower: str) -> list[Any]:
        """Return transformers' `CLIPAttention` of each layer of a tower, `vision` or `text`, the first layer first."""
        end = f"{tower}_model.encoder.layers"
        return [layer.self_attn for n, layers in self.named_modules() if n.endswith(end) for layer in layers.children()]

    def layer_id(self, name: str) -> int:
        """Return a parameter's depth for layer-wise decay: 0 embeddings, N + 1 what comes after the layers.

        The last layer of both towers has depth N, so the shallower tower begins above 1.
        """
        top = self.get_num_layers()
        tower = "vision" if ".vision_model." in name else "text"
        if ".layers." in name:
            return top - self._layers(tower) + int(name.split(".layers.")[1].split(".")[0]) + 1
        return 0 if "embed" in name or "pre_layrnorm" in name else top + 1

    def is_head(self, name: str) -> bool:
        """Return False: there is no head that `--task_head_lr_weight` could mean."""
        return False

    def no_weight_decay(self) -> set[str]:
        """Return no names: every parameter of two or more dimensions decays."""
        return set()

    def tokens(self, inputs: dict[str, Tensor]) -> int:
        """Return how many tokens an example of this batch has: patches, [CLS], and the longest text for each option."""
        vision = self.clip.config.vision_config
        patches: int = (vision.image_size // vision.patch_size) ** 2
        return patches + 1 + inputs["text_of"].size(1) * inputs["text"].size(1)

    def attention_kernel(self, device: torch.device, dtype: torch.dtype, examples: int, text_tokens: int) -> str:
        """Return the kernel's name in transformers, the same for every size."""
        kernel: str = self.clip.config._attn_implementation
        return kernel
