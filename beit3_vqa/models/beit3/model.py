"""BEiT-3 with a task's head: what is trained, and what the optimiser must know about its parameters.

Shapes: B batch, S side of the image in pixels, T text tokens, D width. Parameter names are upstream's.
"""

from typing import Any

import torch
from torch import Tensor, nn

from beit3_vqa.models.base import TrainableModel
from beit3_vqa.models.beit3.attention import pick
from beit3_vqa.models.beit3.multiway import Multiway
from beit3_vqa.runtime.libraries import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, EncoderConfig, trunc_normal_


class Pooler(nn.Module):
    """LayerNorm, Linear and Tanh on the first token's features: (B, D) -> (B, D)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.dense = nn.Linear(dim, dim)
        self.activation = nn.Tanh()

    def forward(self, first_token: Tensor) -> Tensor:
        """Pool (B, D) -> (B, D), entries in (-1, 1)."""
        pooled: Tensor = self.activation(self.dense(self.norm(first_token)))
        return pooled


class TwoLayerMLP(nn.Module):
    """LayerNorm, Linear, LayerNorm, GELU, Linear: (B, D) -> (B, classes)."""

    def __init__(self, dim: int, hidden_dim: int, num_classes: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.dense1 = nn.Linear(dim, hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.act = nn.GELU()
        self.dense2 = nn.Linear(hidden_dim, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D) -> logits (B, classes)."""
        logits: Tensor = self.dense2(self.act(self.norm2(self.dense1(self.norm1(features)))))
        return logits


def vqa_head(dim: int, num_classes: int) -> nn.Sequential:
    """Build the head (B, D) -> logits (B, num_classes) with a hidden layer of width 2D."""
    return nn.Sequential(
        nn.Linear(dim, 2 * dim),
        nn.LayerNorm(2 * dim),
        nn.GELU(),
        nn.Linear(2 * dim, num_classes),
    )


INIT_STD = 0.02
HEAD_SCALE = 0.001
PATCH_GAIN = 2.8  # neighbouring pixels are alike, so their weighted sums are larger than independent ones' would be
MAX_TEXT_TOKENS = 1024 - 2  # rows of the text position table less fairseq's two


class BEiT3Model(TrainableModel):
    """The backbone under the name `beit3`, with what the optimizer asks; a subclass adds the head of a task.

    Args:
        embed_dim: width D.
        depth: number of layers.
        num_heads: attention heads; D must be divisible by it.
        img_size: side S of the square image in pixels, divisible by `patch_size`.
        patch_size: side of a patch in pixels.
        vocab_size: rows of the token embedding (64,010 in the official checkpoints).
        drop_path_rate: stochastic depth, growing linearly to this rate in the last layer.
        normalize_output: whether a LayerNorm follows the last layer.
        attention: see `Multiway`.
        checkpoint_every: see `Multiway`.
    """

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        img_size: int,
        patch_size: int = 16,
        vocab_size: int = 64010,
        drop_path_rate: float = 0.0,
        normalize_output: bool = True,
        attention: str = "auto",
        checkpoint_every: int = 0,
    ):
        super().__init__()
        config = EncoderConfig(
            encoder_embed_dim=embed_dim,
            encoder_attention_heads=num_heads,
            encoder_ffn_embed_dim=4 * embed_dim,
            encoder_layers=depth,
            img_size=img_size,
            patch_size=patch_size,
            vocab_size=vocab_size,
            drop_path_rate=drop_path_rate,
            normalize_output=normalize_output,
            multiway=True,
            # Each head is ours; torchscale's would be a parameter that nothing reads.
            no_output_layer=True,
        )
        self.beit3 = Multiway(config, attention, checkpoint_every)
        self.embed_dim = embed_dim
        self.img_size = img_size
        self.vocab_size = vocab_size

    def get_num_layers(self) -> int:
        """Return the number of layers of the backbone, the unit of layer-wise learning-rate decay."""
        return len(self.beit3.encoder.layers)

    def layers(self) -> list[tuple[nn.Module, str]]:
        """Return the layers of the backbone, each with the name of the method by which it is called."""
        method = "forward" if self.beit3.attention == "reference" else "forward_streams"
        return [(layer, method) for layer in self.beit3.encoder.layers]

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters of two or more dimensions that upstream exempts from weight decay.

        As upstream has it, the image's position table is exempt and the text's is not.
        """
        return {"beit3.encoder.embed_positions.A.weight", "beit3.vision_embed.cls_token"}

    def layer_id(self, name: str) -> int:
        """Return a parameter's depth for layer-wise decay: 0 embeddings, 1..N layers, N + 1 what comes after them.

        Raises:
            ValueError: a part of the backbone whose depth isn't known here.
        """
        if not name.startswith("beit3.") or name.startswith("beit3.encoder.layer_norm."):
            return self.get_num_layers() + 1
        if name.startswith("beit3.encoder.layers."):
            return int(name.split(".")[3]) + 1
        if "embed" not in name:
            raise ValueError(f"{name} has no depth: say in layer_id where it stands")
        return 0

    def is_head(self, name: str) -> bool:
        """Return whether `--task_head_lr_weight` applies: to the head, not the pooler, as upstream has it."""
        return name.startswith("head")

    def is_unread(self, name: str) -> bool:
        """Return whether no output depends on a parameter, so that a checkpoint may lack it."""
        return False

    def tokens(self, inputs: dict[str, Tensor]) -> int:
        """Return how many tokens an example of this batch has: patches, [CLS], and the longest text, if any."""
        text = inputs["padding_mask"].size(1) if "padding_mask" in inputs else 0
        image: int = self.beit3.vision_embed.num_position_embeddings()
        return image + text

    def attention_kernel(self, device: torch.device, dtype: torch.dtype, examples: int, text_tokens: int) -> str:
        """Return the name of the attention kernel for so many examples with texts of so many tokens."""
        tokens: int = self.beit3.vision_embed.num_position_embeddings() + text_tokens
        weights = examples * self.beit3.args.encoder_attention_heads * tokens**2  # B * H * L * L
        return pick(device, dtype, weights) if self.beit3.attention == "auto" else self.beit3.attention

    def encode(self, image: Tensor | None = None, text: Tensor | None = None, **options: Any) -> Tensor:
        """Call `Multiway.encode`; images may also come as uint8 (0..255) and are then normalised on their device."""
        if image is not None and image.dtype == torch.uint8:
            image = self.normalised(image)
        return self.beit3.encode(image, text, **options)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 (B, 3, S, S) -> float32 in [-1, 1], with mean and standard deviation 0.5 as upstream."""
        # (x / 255 - 0.5) / 0.5, in place.
        return pixels.to(torch.float32).div_(127.5).sub_(1.0)


class BEiT3ForVisualQuestionAnswering(BEiT3Model):
    """Pooled [CLS] of image and question -> one logit per answer (upstream's `..._vqav2` model)."""

    def __init__(self, num_classes: int, **sizes: Any):
        # The pooler has a LayerNorm of its own.
        super().__init__(normalize_output=False, **sizes)
        self.num_classes = num_classes
        self.pooler = Pooler(self.embed_dim)
        self.head = vqa_head(self.embed_dim, num_classes)
        self.apply(init_like_upstream)

    def forward(
        self, image: Tensor, question: Tensor, padding_mask: Tensor | None = None, image_of: Tensor | None = None
    ) -> Tensor:
        """Return a logit for each answer.

        Args:
            image: (B, 3, S, S), normalised float, or uint8; with `image_of` (I, 3, S, S).
            question: token ids (B, T).
            padding_mask: (B, T), 1 at padding.
            image_of: (B,), which of I images each question is about; None: each about its own.

        Returns:
            (B, num_classes).
        """
        cls = self.encode(image, question, padding_mask=padding_mask, first_token_only=True, image_of=image_of)
        logits: Tensor = self.head(self.pooler(cls))
        return logits


class BEiT3ForVisualReasoning(BEiT3Model):
    """First tokens of the text with each of two images -> one logit per class (upstream's `..._nlvr2` model)."""

    def __init__(self, num_classes: int, **sizes: Any):
        super().__init__(**sizes)
        self.num_classes = num_classes
        # 4 D: two passes, and of each the features of [CLS] and of `<s>`.
        self.head = TwoLayerMLP(4 * self.embed_dim, 2 * self.embed_dim, num_classes)
        self.apply(init_like_upstream)
        # After `apply`, which draws the weights of every Linear anew.
        shrink(self.head.dense1, self.head.dense2)

    def forward(
        self, image_a: Tensor, image_b: Tensor, text_description: Tensor, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Return a logit for each class.

        Args:
            image_a: (B, 3, S, S), normalised float, or uint8.
            image_b: the second image, the same.
            text_description: token ids (B, T) of what is said about the two.
            padding_mask: (B, T), 1 at padding.

        Returns:
            (B, num_classes).
        """
        # One pass over 2B pairs, as upstream: the text with the first image, then the text with the second.
        images, texts = torch.cat([image_a, image_b]), torch.cat([text_description, text_description])
        padding = None if padding_mask is None else torch.cat([padding_mask, padding_mask])
        first = self.encode(images, texts, padding_mask=padding, first_of_each=True).flatten(1)  # (2B, 2D)
        logits: Tensor = self.head(torch.cat(first.chunk(2), dim=1))
        return logits


class BEiT3ForImageClassification(BEiT3Model):
    """Mean of the patches' features -> one logit per class (upstream's `..._imageclassification` model)."""

    mean: Tensor
    std: Tensor

    def __init__(self, num_classes: int, **sizes: Any):
        super().__init__(normalize_output=False, **sizes)
        self.num_classes = num_classes
        self.fc_norm = nn.LayerNorm(self.embed_dim)
        self.head = nn.Linear(self.embed_dim, num_classes)
        # Not part of a checkpoint. Times 255, for pixels in bytes.
        for name, values in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1) * 255, persistent=False)
        self.apply(init_like_upstream)
        shrink(self.head)

    def is_unread(self, name: str) -> bool:
        """Return whether a parameter is the language side's, which an image alone never reaches."""
        return name.startswith("beit3.text_embed.") or ".B." in name

    def normalised(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 (B, 3, S, S) -> float32 with ImageNet's mean and standard deviation of each channel."""
        return (pixels.to(torch.float32) - self.mean) / self.std

    def forward(self, image: Tensor) -> Tensor:
        """Return a logit for each class: (B, 3, S, S), normalised float or uint8 -> (B, num_classes)."""
        patches = self.encode(image)[:, 1:]  # all but [CLS]
        logits: Tensor = self.head(self.fc_norm(patches.mean(dim=1)))
        return logits


def shrink(*layers: nn.Linear) -> None:
    """Multiply the weights of heads by 0.001, as upstream does: fresh heads then favour no class."""
    for layer in layers:
        layer.weight.data.mul_(HEAD_SCALE)
        layer.bias.data.mul_(HEAD_SCALE)


def init_like_upstream(module: nn.Module) -> None:
    """Draw Linear weights from a normal of std 0.02 cut at one std; set biases to 0, LayerNorm to 1 and 0.

    Embeddings and positions keep torchscale's own draw (see `init_unit_scale` for training from scratch).
    """
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=INIT_STD, a=-INIT_STD, b=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def init_unit_scale(model: BEiT3Model) -> None:
    """Draw weights anew so that activations start at the scale of one, for training from scratch.

    Upstream's Linear weights (std 0.02, cut at one) and torchscale's embeddings (positions std 1, tokens D^-0.5) are
    meant to be overwritten by pretrained ones. With them, a small model that trains from scratch sees where a token
    stands but hardly what it is, and keeps to answers that need no image. Here Linear weights have std fan_in^-0.5
    (LeCun et al. 1998, "Efficient BackProp"), tokens and positions std 1, and patches enough to stand out beside their
    positions.
    """
    backbone = model.beit3
    for table in (backbone.text_embed, backbone.encoder.embed_positions.A, backbone.encoder.embed_positions.B):
        nn.init.normal_(table.weight, std=1.0)
    patch = backbone.vision_embed.proj.weight
    nn.init.normal_(patch, std=PATCH_GAIN * patch[0].numel() ** -0.5)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".lora_" not in name:  # an adapter has to begin at zero
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
