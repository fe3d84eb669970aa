"""Task heads on top of the Multiway Transformer, under upstream's parameter names."""

from torch import Tensor, nn


class Pooler(nn.Module):
    """LayerNorm, Linear and Tanh on the first token's features: (B, D) -> (B, D)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.dense = nn.Linear(dim, dim)
        self.activation = nn.Tanh()

    def forward(self, first_token: Tensor) -> Tensor:
        """(B, D) -> (B, D), entries in (-1, 1)."""
        return self.activation(self.dense(self.norm(first_token)))


def vqa_head(dim: int, num_classes: int) -> nn.Sequential:
    """(B, D) -> (B, num_classes) logits through a hidden layer of width 2D."""
    return nn.Sequential(
        nn.Linear(dim, 2 * dim),
        nn.LayerNorm(2 * dim),
        nn.GELU(),
        nn.Linear(2 * dim, num_classes),
    )
