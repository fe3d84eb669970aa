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
        """(B, D) -> logits (B, classes)."""
        return self.dense2(self.act(self.norm2(self.dense1(self.norm1(features)))))


def vqa_head(dim: int, num_classes: int) -> nn.Sequential:
    """(B, D) -> (B, num_classes) logits through a hidden layer of width 2D."""
    return nn.Sequential(
        nn.Linear(dim, 2 * dim),
        nn.LayerNorm(2 * dim),
        nn.GELU(),
        nn.Linear(2 * dim, num_classes),
    )
