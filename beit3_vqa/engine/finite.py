"""Steps whose gradient isn't finite: skipped on the device, counted, and a run of them ends the training.

Nothing here makes the host wait for a GPU in each step: whether a step was bad stays on the device, where the
optimizer's kernel reads it, and is looked at once every few steps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from beit3_vqa.errors import one_line


class TrainingDiverged(Exception):  # noqa: N818 - it reads as what happened
    """Too many steps in a row had a gradient that isn't finite."""


class BadSteps:
    """Counts steps in a row that were skipped since their gradient wasn't finite.

    Args:
        most: bad steps in a row at which the training ends.
        device: of the gradients.
    """

    def __init__(self, most: int, device: torch.device):
        self.most = most
        # On a CPU a look costs nothing.
        self.interval = most if device.type == "cuda" else 1
        self._in_a_row = 0
        self._unseen: list[tuple[Tensor, int, float, Sequence[str]]] = []

    def add(self, bad: Tensor, step: int, lr: float, ids: Sequence[str]) -> None:
        """Notes a step; `bad` is a scalar on the device, nonzero where the step was skipped.

        Raises:
            TrainingDiverged: `most` steps in a row were.
        """
        self._unseen.append((bad, step, lr, ids))
        if len(self._unseen) >= self.interval:
            self.check()

    def check(self) -> None:
        """Looks at the steps not yet looked at, which waits for the device."""
        if not self._unseen:
            return
        flags = torch.stack([bad for bad, *_ in self._unseen]).tolist()
        for bad, (_, step, lr, ids) in zip(flags, self._unseen, strict=True):
            self._in_a_row = self._in_a_row + 1 if bad else 0
            if self._in_a_row >= self.most:
                shown = ", ".join(map(one_line, ids[:8])) + (", ..." if len(ids) > 8 else "")
                raise TrainingDiverged(
                    f"the gradient was not finite {self.most} steps in a row, last at step {step} (learning rate "
                    f"{lr:.3g}, rows {shown}). The checkpoints are as they were. Lower --lr, warm up for longer, set "
                    "--clip_grad 1, or try --precision fp32."
                )
        self._unseen.clear()
