"""One epoch of training. Knows neither files nor tasks."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from beit3_vqa.data.types import Batch
from beit3_vqa.engine.optim import ModelEma, Schedule
from beit3_vqa.engine.parallel import SingleProcess
from beit3_vqa.errors import RunEnded, one_line
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.distributed import local_size
from beit3_vqa.runtime.precision import Precision, in_float32

# Steps whose gradient isn't finite: skipped on the device, counted, and a run of them ends the training.
#
# Nothing here makes the host wait for a GPU in each step: whether a step was bad stays on the device, where the
# optimizer's kernel reads it, and is looked at once every few steps.


class TrainingDiverged(RunEnded):
    """Too many steps in a row had a gradient that isn't finite."""

    exit_code = 3


class NonFiniteGuard:
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


@dataclass
class Learner:
    """A model and what makes it learn.

    Attributes:
        model: called with `batch.inputs`, as the strategy wrapped it.
        loss: (outputs as float32, batch) -> mean loss over this process's examples; called in every process at once, so
            that it may look at the outputs of all.
        optimizer: its groups have `lr_scale`.
        precision: autocast and gradient scaling.
        examples: in an epoch, over all processes.
        batch_size: of every batch but the last, in each process.
        update_freq: batches per optimizer step.
        clip_grad: largest gradient norm; None: no clipping.
        max_bad_steps: steps in a row with a gradient that isn't finite, each of them skipped, that end the training.
        ema: moving average to update.
        strategy: how processes share the work.
    """

    model: Any
    loss: Callable[[Any, Batch], Tensor]
    optimizer: torch.optim.Optimizer
    precision: Precision
    examples: int
    batch_size: int
    update_freq: int = 1
    clip_grad: float | None = None
    max_bad_steps: int = 10
    ema: ModelEma | None = None
    strategy: SingleProcess = field(default_factory=SingleProcess)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return steps_per_epoch(self.examples, self.batch_size, self.update_freq)


def steps_per_epoch(examples: int, batch_size: int, update_freq: int) -> int:
    """Return the optimizer steps in a pass over the data; the last may have fewer examples."""
    return -(-examples // (batch_size * update_freq * distributed.world_size()))


def train_epoch(
    run: Learner,
    batches: Iterable[Batch],
    schedule: Schedule,
    after_step: Callable[[StepReport], object],
    *,
    first_example: int = 0,
    first_step: int = 0,
) -> None:
    """Train on every batch, with an optimizer step for each `update_freq` batches of every process.

    Args:
        run: what is trained.
        batches: of one epoch, or of what is left of it; this process's part of each.
        schedule: step -> learning rate.
        after_step: called after each optimizer step.
        first_example: examples of the epoch that are done.
        first_step: optimizer steps done before.

    Raises:
        TrainingDiverged: `max_bad_steps` steps in a row had a gradient that isn't finite.
    """
    model, optimizer, precision, scaler = run.model, run.optimizer, run.precision, run.precision.scaler
    model.train()
    guard = NonFiniteGuard(run.max_bad_steps, precision.device)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    global_batch = run.batch_size * distributed.world_size()  # examples of a batch in all processes
    step, done, in_group = first_step, first_example, 0
    loss_sum = torch.zeros((), device=precision.device)
    ids: list[str] = []
    for batch in batches:
        # The last batch of an epoch may be short, and the last group of batches too. The step's loss is a mean over its
        # examples, so each batch weighs what it holds, and none is lost.
        group_examples = min(global_batch * run.update_freq, run.examples - done)
        in_batch = min(global_batch, group_examples - in_group)
        num_valid = local_size(in_batch)  # none if a short last batch has nothing for this process
        in_group += in_batch
        batch = replace(batch.to(precision.device), num_valid=num_valid, global_batch=in_batch, step=step)

        # Processes put their gradients together once a step, in the backward pass of its last batch.
        with nullcontext() if in_group == group_examples else run.strategy.no_sync(model):
            with precision.autocast():
                outputs = model(**batch.inputs)
            loss = run.loss(in_float32(outputs), batch) * (num_valid / group_examples)
            # Every strategy takes the mean over the processes; this loss is a sum over them already.
            scaler.scale(loss * distributed.world_size()).backward()
        # What is shown and logged stays on the device: reading it here would make the host wait in each step.
        loss_sum += loss.detach()
        ids += [example.id for example in batch.examples[:num_valid]]
        if in_group < group_examples:
            continue  # gradients accumulate

        lr = schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]

        # The norm is that of unscaled gradients. Without clipping too it is needed: it tells whether all are finite.
        scaler.unscale_(optimizer)
        grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if run.clip_grad:
            nn.utils.clip_grads_with_norm_(parameters, run.clip_grad, grad_norm)
        if isinstance(grad_norm, DTensor):  # fsdp: of this process's part
            grad_norm = grad_norm.full_tensor()
        distributed.all_reduce_sum(loss_sum)  # for the report: so far it is of this process's examples

        # A gradient that isn't finite would ruin weights and moments for good: that step changes nothing, and counts.
        bad = (~torch.isfinite(grad_norm)).to(torch.float32)
        with precision.skipping(optimizer, bad) as wanted:
            if wanted:
                scaler.step(optimizer)  # without fp16, where nothing is scaled, just optimizer.step()
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if run.ema is not None:
            run.ema.update()

        step, done = step + 1, done + in_group
        after_step(StepReport(step, in_group, loss_sum, lr, grad_norm, bad))
        # After the report: what the last step did is known and logged even if it ends the training.
        guard.add(bad, step - 1, lr, ids)
        loss_sum, in_group, ids = torch.zeros_like(loss_sum), 0, []
    guard.check()
