"""One epoch of training. Knows neither files nor tasks."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from beit3_vqa.engine.optim import CosineSchedule, ModelEma
from beit3_vqa.engine.precision import Precision
from beit3_vqa.schema import Batch


class TrainingDiverged(Exception):  # noqa: N818 - it reads as what happened
    """The loss stopped being a number."""


@dataclass(frozen=True)
class StepReport:
    """What a progress display may want to know after an optimizer step; tensors are still on the device.

    Attributes:
        step: optimizer steps done since the start of the run.
        examples: examples in this step.
        loss: mean loss over them.
        lr: learning rate of the step.
        grad_norm: norm of the whole gradient before clipping.
    """

    step: int
    examples: int
    loss: Tensor
    lr: float
    grad_norm: Tensor


def steps_per_epoch(examples: int, batch_size: int, update_freq: int) -> int:
    """Optimizer steps in a pass over the data; the last may have fewer examples."""
    return -(-examples // (batch_size * update_freq))


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_of: Callable[[Tensor, Batch], Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: CosineSchedule,
    precision: Precision,
    *,
    examples: int,
    batch_size: int,
    update_freq: int = 1,
    clip_grad: float | None = None,
    ema: ModelEma | None = None,
    first_step: int = 0,
) -> Iterator[StepReport]:
    """Trains on every batch and yields after each optimizer step.

    `update_freq` batches make a step; their mean is over examples, so a short last batch or group counts for what it
    holds and is not lost.

    Args:
        model: called with `batch.inputs`.
        batches: of one epoch.
        loss_of: (outputs, batch) -> mean loss.
        optimizer: its groups have `lr_scale`.
        schedule: step -> learning rate.
        precision: autocast and gradient scaling.
        examples: in the epoch.
        batch_size: of every batch but the last.
        update_freq: batches per optimizer step.
        clip_grad: largest gradient norm; None: no clipping.
        ema: moving average to update.
        first_step: optimizer steps done before this epoch.

    Raises:
        TrainingDiverged: the gradient (with fp16, whose scaler skips such steps: the loss) was not finite.
    """
    model.train()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    group_size = batch_size * update_freq
    step, done, in_group = first_step, 0, 0
    loss_sum = torch.zeros((), device=precision.device)
    for batch in batches:
        group_examples = min(group_size, examples - done)
        inputs = to_device(batch.inputs, precision.device)
        with precision.autocast():
            outputs = model(**inputs)
        loss = loss_of(outputs.float(), batch) * (len(batch) / group_examples)
        precision.scaler.scale(loss).backward()
        loss_sum += loss.detach()
        in_group += len(batch)
        if in_group < group_examples:
            continue
        lr = schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        precision.scaler.unscale_(optimizer)
        grad_norm = nn.utils.clip_grad_norm_(parameters, clip_grad or math.inf)
        # fp16's scaler skips a step whose gradient overflowed, but no scale mends a loss that isn't a number.
        suspect = loss_sum if precision.scaler.is_enabled() else grad_norm
        if not torch.isfinite(suspect):
            raise TrainingDiverged(
                f"the gradient is {grad_norm.item()} at step {step} (loss {loss_sum.item():.4g}, "
                f"learning rate {lr:.3g}). Lower --lr, warm up for longer, set --clip_grad 1, or try fp32."
            )
        precision.scaler.step(optimizer)
        precision.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if ema is not None:
            ema.update(model)
        done += in_group
        step += 1
        yield StepReport(step, in_group, loss_sum, lr, grad_norm)
        loss_sum, in_group = torch.zeros_like(loss_sum), 0


def to_device(inputs: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The inputs of a batch, copied without waiting where they are in page-locked memory."""
    return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
