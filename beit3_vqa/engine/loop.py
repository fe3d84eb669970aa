"""One epoch of training. Knows neither files nor tasks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from beit3_vqa.data.types import Batch
from beit3_vqa.engine.optim import ModelEma, Schedule
from beit3_vqa.engine.parallel import OneProcess
from beit3_vqa.errors import one_line
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.distributed import own_part
from beit3_vqa.runtime.precision import Precision, in_float32

# Steps whose gradient isn't finite: skipped on the device, counted, and a run of them ends the training.
#
# Nothing here makes the host wait for a GPU in each step: whether a step was bad stays on the device, where the
# optimizer's kernel reads it, and is looked at once every few steps.


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


@dataclass(frozen=True)
class StepReport:
    """What a progress display may want to know after an optimizer step; tensors are still on the device.

    Attributes:
        step: optimizer steps done since the start of the run.
        examples: examples in this step.
        loss: mean loss over them.
        lr: learning rate of the step.
        grad_norm: norm of the whole gradient before clipping.
        bad: 1 where the gradient wasn't finite, so that the step changed nothing; else 0.
    """

    step: int
    examples: int
    loss: Tensor
    lr: float
    grad_norm: Tensor
    bad: Tensor


def steps_per_epoch(examples: int, batch_size: int, update_freq: int) -> int:
    """Optimizer steps in a pass over the data, with this many processes; the last may have fewer examples."""
    return -(-examples // (batch_size * update_freq * distributed.size()))


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_of: Callable[[Any, Batch], Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    precision: Precision,
    *,
    examples: int,
    batch_size: int,
    update_freq: int = 1,
    clip_grad: float | None = None,
    ema: ModelEma | None = None,
    first_example: int = 0,
    first_step: int = 0,
    max_bad_steps: int = 10,
    strategy: OneProcess | None = None,
) -> Iterator[StepReport]:
    """Trains on every batch and yields after each optimizer step.

    `update_freq` batches of every process make a step; their mean is over examples, so a short last batch or group
    counts for what it holds and is not lost.

    Args:
        model: called with `batch.inputs`, as the strategy wrapped it.
        batches: of one epoch, or of what is left of it; this process's part of each.
        loss_of: (outputs as float32, batch) -> mean loss over this process's examples; called in every process at
            once, so that it may look at the outputs of all.
        optimizer: its groups have `lr_scale`.
        schedule: step -> learning rate.
        precision: autocast and gradient scaling.
        examples: in the epoch.
        batch_size: of every batch but the last, in each process.
        update_freq: batches per optimizer step.
        clip_grad: largest gradient norm; None: no clipping.
        ema: moving average to update.
        first_example: examples of the epoch that are done.
        first_step: optimizer steps done before.
        max_bad_steps: steps in a row with a gradient that isn't finite, each of them skipped, that end the training.
        strategy: how processes share the work.

    Raises:
        TrainingDiverged: there were so many.
    """
    model.train()
    strategy = strategy or OneProcess()
    bad_steps = BadSteps(max_bad_steps, precision.device)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    together = batch_size * distributed.size()
    step, done, in_group = first_step, first_example, 0
    loss_sum = torch.zeros((), device=precision.device)
    ids: list[str] = []
    for batch in batches:
        group_examples = min(together * update_freq, examples - done)
        in_batch = min(together, group_examples - in_group)
        counted = own_part(in_batch)  # none where a short last batch has nothing for this process
        in_group += in_batch
        batch = replace(batch.to(precision.device), counted=counted, together=in_batch, step=step)
        with nullcontext() if in_group == group_examples else strategy.accumulating(model):
            with precision.autocast():
                outputs = model(**batch.inputs)
            loss = loss_of(in_float32(outputs), batch) * (counted / group_examples)
            # Every strategy takes the mean over the processes; the loss is a sum over them already.
            precision.scaler.scale(loss * distributed.size()).backward()
        loss_sum += loss.detach()
        ids += [example.id for example in batch.examples[:counted]]
        if in_group < group_examples:
            continue
        lr = schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        precision.scaler.unscale_(optimizer)
        grad_norm = _clip(parameters, clip_grad)
        distributed.sum_of(loss_sum)
        bad = precision.step(optimizer, grad_norm)
        optimizer.zero_grad(set_to_none=True)
        if ema is not None:
            ema.update()
        done += in_group
        step += 1
        yield StepReport(step, in_group, loss_sum, lr, grad_norm, bad)
        bad_steps.add(bad, step - 1, lr, ids)
        loss_sum, in_group, ids = torch.zeros_like(loss_sum), 0, []
    bad_steps.check()


def _clip(parameters: list[nn.Parameter], clip_grad: float | None) -> Tensor:
    """Norm of the whole gradient, which is cut to `clip_grad` where that is given."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip_grad:
        nn.utils.clip_grads_with_norm_(parameters, clip_grad, norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
