"""Linear layers whose products are of int8, for a trained model that answers on a CPU.

Each row of a matrix is rounded to whole numbers from -127 to 127 with a scale of its own: weights once, a row for each
output; inputs at every call, a row for each token. Sums are exact, in int32.

Source: Dettmers et al. 2022, "LLM.int8()" (arXiv:2208.07339), section 2: vector-wise quantization.
"""

import torch
from torch import Tensor, nn

from beit3_vqa.models.base import TrainableModel

LARGEST = 127
TINY = 1e-12  # instead of a scale of 0, by which nothing can be divided


class Int8Linear(nn.Module):
    """A linear layer of rounded weights, which rounds its inputs too.

    Args:
        linear: whose weights are rounded; its bias stays as it is.
    """

    weight_scale: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight, scale = _rounded(linear.weight.detach())
        # Transposed, (in, out), as the product reads it. A parameter, so that a model's numbers are still counted.
        self.weight = nn.Parameter(weight.t(), requires_grad=False)
        self.register_buffer("weight_scale", scale.squeeze(1))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) -> (..., out), in the type of a product under autocast."""
        rows, scale = _rounded(x.reshape(-1, x.size(-1)))
        sums: Tensor = torch._int_mm(rows, self.weight)  # int32 (N, out)
        # Two passes over memory: the token's scale, then the output's and the bias.
        scaled = sums * scale
        y = scaled.mul_(self.weight_scale) if self.bias is None else torch.addcmul(self.bias, scaled, self.weight_scale)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        return y.to(dtype).view(*x.shape[:-1], -1)


def _rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows (N, D) as int8, and the float32 (N, 1) by which they must be multiplied to be as they were."""
    x = x.float()
    scale = x.abs().amax(dim=1, keepdim=True).clamp_(min=TINY) / LARGEST
    return (x / scale).round_().to(torch.int8), scale


def round_linear_layers(model: TrainableModel) -> None:
    """Replace the linear layers inside a model's layers; embeddings and heads, before and after them, stay exact."""
    for layer, _method in model.layers():
        for path, module in list(layer.named_modules()):
            for name, child in module.named_children():
                # Adapters are so narrow that rounding their inputs would take longer than it saves.
                if type(child) is nn.Linear and "lora_" not in path:
                    setattr(module, name, Int8Linear(child))
