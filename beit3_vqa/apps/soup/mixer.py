"""Fill a model with an average of checkpoints' weights, with memory for little more than that model.

The weights stay in their files. They are averaged in pieces of a few million numbers, in float64, and rounded once.
For each piece every file is opened anew: the pages of a file that stays open would stay in memory too.

With adapters, what is averaged is each layer's weight with its adapter added. A layer computes W x + s B A x, so the
mean of members is W + s mean(B A). Averaging A and B by themselves gives mean(B) mean(A) instead. That holds products
of one member's B with another's A, which nobody trained; of runs with different seeds, it loses most of what was
learned. The mean of the products has up to (members x rank) dimensions and fits no adapter of the same rank, so the
model that is filled has none.

BEiT-3 and CLIP hold no statistics of batches (BatchNorm) that an average would make wrong, and no integers that can't
be averaged; a checkpoint that does is refused when it is read.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from beit3_vqa.apps.soup.members import Member
from beit3_vqa.config.options import ModelConfig
from beit3_vqa.models.lora import adapter_scale, has_adapter, merged

PIECE = 2**22  # numbers
Part = tuple[str, int, int]  # of a tensor: its name, the first number and the one after the last


class Mixer:
    """A model and the members whose weights it can be filled with.

    Args:
        model: without adapters. Weights that no member holds, such as those that CLIP's adapters leave alone, stay as
            they are; those that adapters are added to are the members' common base.
        members: checkpoints of that model, or of adapters of it.
        options: of the members' model.
    """

    def __init__(self, model: nn.Module, members: Sequence[Member], options: ModelConfig):
        self.members = members
        self._scale = adapter_scale(options)
        held = members[0].weights()
        own = {name: value for name, value in model.state_dict().items() if name in held or has_adapter(held, name)}
        self._own = own
        self._base = {name: value.cpu().clone() for name, value in own.items() if name not in held}
        self._pieces = list(_pieces(own))
        parameters = dict(model.named_parameters())
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in own)
        self._parameters = {name: parameters[name] for name in own if name in parameters}

    @torch.no_grad()
    def fill(self, weights: Sequence[float]) -> None:
        """Fill the model with sum(w_k theta_k) / sum(w_k).

        Args:
            weights: (K,), for each of the K members, none negative and not all 0.

        Raises:
            InputError: a member's file was replaced.
        """
        used = [(member, weight) for member, weight in zip(self.members, weights, strict=True) if weight]
        total = sum(weight for _, weight in used)
        for piece in self._pieces:
            # Not from zeros: 0 + -0 is 0, and a soup of one checkpoint is that checkpoint bit for bit.
            sums: list[Tensor] = []
            for member, weight in used:
                held = member.weights()
                values = (self._numbers(held, part) for part in piece)
                if sums:
                    for so_far, value in zip(sums, values, strict=True):
                        so_far.add_(value, alpha=weight)
                else:
                    sums = [value * weight for value in values]
            for (name, begin, end), value in zip(piece, sums, strict=True):
                own = self._own[name]
                own.view(-1)[begin:end].copy_(value.div_(total).to(own.dtype))

    @torch.no_grad()
    def slopes(self) -> list[float]:
        """Return the inner product of the parameters' gradient with each member's weights, (K,)."""
        slopes = [0.0] * len(self.members)
        for piece in self._pieces:
            grads = [self._gradient(*part) for part in piece]
            for number, member in enumerate(self.members):
                held = member.weights()
                for part, grad in zip(piece, grads, strict=True):
                    if grad is not None:
                        slopes[number] += float(grad @ self._numbers(held, part))
        return slopes

    def _gradient(self, name: str, begin: int, end: int) -> Tensor | None:
        parameter = self._parameters.get(name)
        if parameter is None or parameter.grad is None:
            return None
        return parameter.grad.reshape(-1)[begin:end].cpu().double()

    def _numbers(self, held: dict[str, Tensor], part: Part) -> Tensor:
        """Return a part of a member's weights as float64."""
        name, begin, end = part
        if not has_adapter(held, name):
            return held[name].reshape(-1)[begin:end].double()
        base = held[name] if name in held else self._base[name]
        return merged(held, name, base, self._scale).view(-1)[begin:end]


def _pieces(weights: dict[str, Tensor]) -> Iterator[list[Part]]:
    """Yield all parts of the weights in pieces of `PIECE` numbers; the last may have fewer."""
    piece: list[Part] = []
    room = PIECE
    for name, value in weights.items():
        begin = 0
        while begin < value.numel():
            end = min(begin + room, value.numel())
            piece.append((name, begin, end))
            room, begin = room - (end - begin), end
            if not room:
                yield piece
                piece, room = [], PIECE
    if piece:
        yield piece
