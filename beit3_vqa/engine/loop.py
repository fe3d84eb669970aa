"""Train one epoch: forward, loss, backward, clip, step, moving average. It knows neither files nor tasks.

Nothing here makes the host wait for a GPU in each step, which would leave the GPU idle. The loss and the flag that a
gradient wasn't finite stay on the device; they are read every few steps, by `NonFiniteGuard` and by whoever shows them.
`tests/integration/test_gpu.py` counts how often.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from beit3_vqa.data.types import Batch
from beit3_vqa.engine.optim import ModelEma
from beit3_vqa.engine.parallel import SingleProcess
from beit3_vqa.errors import RunEnded, one_line, plural
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.distributed import local_size
from beit3_vqa.runtime.precision import Precision, in_float32


class TrainingDiverged(RunEnded):
    """Too many steps in a row had a gradient that isn't finite."""

    exit_code = 3


class NonFiniteGuard:
    """Count the skipped steps in a row, whose gradients weren't finite, and end the training if they are too many.

    Args:
        most: skipped steps in a row at which the training ends.
        device: of the gradients.
    """

    def __init__(self, most: int, device: torch.device):
        self.most = most
        # Reading the flags makes the host wait for a GPU; on a CPU it costs nothing.
        self.interval = most if device.type == "cuda" else 1
        self._in_a_row = 0
        self._unseen: list[tuple[Tensor, int, float, Sequence[str]]] = []

    def add(self, bad: Tensor, step: int, lr: float, ids: Sequence[str]) -> None:
        """Add a step.

        Args:
            bad: scalar on the device, nonzero if the step was skipped.
            step: its number, from 0.
            lr: its learning rate.
            ids: of its examples.

        Raises:
            TrainingDiverged: `most` steps in a row were skipped.
        """
        self._unseen.append((bad, step, lr, ids))
        if len(self._unseen) >= self.interval:
            self.check()

    def check(self) -> None:
        """Read the flags of the steps added since the last check, which waits for the device.

        Raises:
            TrainingDiverged: `most` steps in a row were skipped.
        """
        if not self._unseen:
            return
        flags = torch.stack([bad for bad, *_ in self._unseen]).tolist()
        for bad, (_, step, lr, ids) in zip(flags, self._unseen, strict=True):
            self._in_a_row = self._in_a_row + 1 if bad else 0
            if self._in_a_row >= self.most:
                shown = ", ".join(map(one_line, ids[:8])) + (", ..." if len(ids) > 8 else "")
                raise TrainingDiverged(
                    f"the gradient was not finite in {plural(self.most, 'step')} in a row, last at step {step} "
                    f"(learning rate {lr:.3g}, rows {shown}). The checkpoints are as they were. "
                    "Lower --lr, warm up for longer, set "
                    "--clip_grad 1, or try --precision fp32."
                )
        self._unseen.clear()


@dataclass(frozen=True)
class StepReport:
    """What is known after an optimizer step; the tensors are scalars that are still on the device.

    Attributes:
        step: optimizer steps done since the start of the run.
        examples: examples in this step.
        loss: mean loss over them.
        lr: learning rate of the step.
        grad_norm: norm of the whole gradient before clipping.
        bad: 1 if the gradient wasn't finite, so that the step changed nothing; else 0.
    """

    step: int
    examples: int
    loss: Tensor
    lr: float
    grad_norm: Tensor
    bad: Tensor


@dataclass
class Learner:
    """A model and what trains it.

    Attributes:
        model: as the strategy wrapped it; called with `batch.inputs`.
        loss: (outputs as float32, batch) -> mean loss over this process's examples, a scalar. Every process calls it
            at the same time, so it may gather the outputs of the others.
        optimizer: each of its groups has an `lr_scale`, a factor of the learning rate.
        precision: autocast and gradient scaling.
        examples: in an epoch, over all processes.
        batch_size: examples in a forward pass of each process; the last batch of an epoch may have fewer.
        update_freq: forward passes per optimizer step.
        clip_grad: largest gradient norm; None: no clipping.
        max_bad_steps: the training ends after this many steps in a row whose gradient isn't finite; each is skipped.
        ema: moving average to update; None: there is none.
        strategy: how several processes share the work.
    """

    model: nn.Module
    loss: Callable[[Tensor, Batch], Tensor]
    optimizer: torch.optim.Optimizer
    precision: Precision
    examples: int
    batch_size: int
    update_freq: int = 1
    clip_grad: float | None = None
    max_bad_steps: int = 10
    ema: ModelEma | None = None
    strategy: SingleProcess = field(default_factory=SingleProcess)

    @cached_property
    def guard(self) -> NonFiniteGuard:
        """Return what counts the skipped steps in a row, from one epoch to the next."""
        return NonFiniteGuard(self.max_bad_steps, self.precision.device)

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps in an epoch."""
        return steps_per_epoch(self.examples, self.batch_size, self.update_freq)


def steps_per_epoch(examples: int, batch_size: int, update_freq: int) -> int:
    """Return the optimizer steps in a pass over the data; the last may have fewer examples."""
    return -(-examples // (batch_size * update_freq * distributed.world_size()))


def train_epoch(
    run: Learner,
    batches: Iterable[Batch],
    schedule: Callable[[int], float],
    after_step: Callable[[StepReport], object],
    *,
    first_example: int = 0,
    first_step: int = 0,
) -> None:
    """Train on every batch; `update_freq` batches in each process make an optimizer step.

    Args:
        run: what is trained.
        batches: this process's part of each batch, of one epoch or of what is left of it.
        schedule: step -> learning rate.
        after_step: called after each optimizer step, once nothing of the step is left to do: it may use the model.
        first_example: examples of the epoch that are done already, over all processes.
        first_step: optimizer steps done since the start of the run.

    Raises:
        TrainingDiverged: `max_bad_steps` steps in a row had a gradient that isn't finite.
    """
    model, optimizer, precision, scaler = run.model, run.optimizer, run.precision, run.precision.scaler
    model.train()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    global_batch = run.batch_size * distributed.world_size()  # examples in the forward passes of all processes
    # A group is the batches of one optimizer step; `in_group` of its examples have been through the model.
    step, done, in_group = first_step, first_example, 0
    loss_sum = torch.zeros((), device=precision.device)
    ids: list[str] = []
    for batch in batches:
        # The last batch of an epoch may be short, and so may the last group. No example is dropped: a step's loss is
        # the mean over all of its examples, so below each batch is weighted by how many of them it holds.
        group_examples = min(global_batch * run.update_freq, run.examples - done)
        in_batch = min(global_batch, group_examples - in_group)
        num_valid = local_size(in_batch)  # 0 if a short last batch has nothing for this process
        in_group += in_batch
        batch = replace(batch.to(precision.device), num_valid=num_valid, global_batch=in_batch, step=step)

        # Gradients are averaged over the processes once per step, in the backward pass of the group's last batch.
        with nullcontext() if in_group == group_examples else run.strategy.no_sync(model):
            with precision.autocast():
                outputs = model(**batch.inputs)
            # The loss is computed in float32, outside autocast, and weighted by this process's part of the group.
            loss = run.loss(in_float32(outputs), batch) * (num_valid / group_examples)
            # So weighted, the losses of the processes add up to the step's loss. The strategies average gradients
            # instead of adding them; the factor undoes the division.
            torch.autograd.backward(scaler.scale(loss * distributed.world_size()))
        # The sum stays on the device: reading it here would make the host wait in each step.
        loss_sum += loss.detach()
        ids += [example.id for example in batch.examples[:num_valid]]
        if in_group < group_examples:
            continue  # gradients accumulate until the group is complete

        lr = schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]

        # With fp16, gradients are scaled up: undo that before they are measured and clipped. The norm is needed
        # without clipping too: it tells whether all gradients are finite.
        scaler.unscale_(optimizer)
        grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if run.clip_grad:
            nn.utils.clip_grads_with_norm_(parameters, run.clip_grad, grad_norm)
        if isinstance(grad_norm, DTensor):  # fsdp: each process has the norm of its part of the gradient
            grad_norm = grad_norm.full_tensor()
        distributed.all_reduce_sum(loss_sum)  # for the report; until here it is this process's part of the mean

        # A gradient that isn't finite would ruin weights and moments for good, so that step is skipped. It still
        # counts as a step: the schedule and the epoch go on.
        bad = (~torch.isfinite(grad_norm)).to(torch.float32)
        with precision.skipping(optimizer, bad) as wanted:
            if wanted:
                scaler.step(optimizer)  # only with fp16 is the scaler on; otherwise this is optimizer.step()
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if run.ema is not None:
            run.ema.update()

        step, done = step + 1, done + in_group
        after_step(StepReport(step, in_group, loss_sum, lr, grad_norm, bad))
        # After the report, so that a step that ends the training is logged too.
        run.guard.add(bad, step - 1, lr, ids)
        # A new tensor and not zero_(), since the report holds the old one.
        loss_sum, in_group, ids = torch.zeros_like(loss_sum), 0, []
    run.guard.check()  # the steps since its last look
