"""Parameter groups, the learning rate of a step, and the moving average of the weights."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor

from beit3_vqa.config.options import OptimConfig
from beit3_vqa.engine.muon import BUFFER
from beit3_vqa.engine.parallel import SingleProcess, distribute_like
from beit3_vqa.models.base import TrainableModel

PLATEAU_THRESHOLD = 1e-4  # the loss must fall by this share of itself to count as lower


@dataclass(frozen=True)
class CosineSchedule:
    """Learning rate of an optimizer step: linear warm-up from 0, then a cosine from `lr` to `min_lr`.

    A pure function of the step, so that resuming needs no state. Source: upstream's `cosine_scheduler`.
    """

    lr: float
    min_lr: float
    warmup_steps: int
    total_steps: int

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step, from 0 to total_steps - 1."""
        if step < self.warmup_steps:
            # As upstream's linspace from 0 to `lr`: the last step of the warm-up has the whole rate.
            return self.lr * step / max(1, self.warmup_steps - 1)
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.min_lr + 0.5 * (self.lr - self.min_lr) * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class PlateauSchedule:
    """Learning rate of an optimizer step: linear warm-up from 0, then `lr`, lowered whenever the loss stops falling.

    After more than `patience` validations in a row whose loss isn't a ten-thousandth lower than the lowest before, the
    rate is multiplied by `factor`, down to `min_lr`. A pure function of the step and the `losses` of the validations so
    far, so that resuming needs nothing else. Source: torch's `ReduceLROnPlateau` in its mode `min`, which gives equal
    numbers.
    """

    lr: float
    min_lr: float
    warmup_steps: int
    factor: float
    patience: int
    losses: tuple[float, ...]

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step (counted from the start of the run) that comes after the losses."""
        if step < self.warmup_steps:
            return self.lr * step / max(1, self.warmup_steps - 1)
        lr, best, waited = self.lr, math.inf, 0
        for loss in self.losses:
            waited = 0 if loss < best * (1 - PLATEAU_THRESHOLD) else waited + 1
            best = loss if waited == 0 else best
            if waited > self.patience:
                lr, waited = max(lr * self.factor, self.min_lr), 0
        return lr


Schedule = CosineSchedule | PlateauSchedule


def make_schedule(options: OptimConfig, steps_per_epoch: int, losses: Sequence[float] = ()) -> Schedule:
    """Return the schedule of a run: optimizer step -> learning rate.

    Args:
        options: peak, warm-up, and what follows it.
        steps_per_epoch: optimizer steps.
        losses: of the validations so far, for `--sched plateau`.
    """
    warmup_steps = options.warmup_steps if options.warmup_steps > 0 else round(options.warmup * steps_per_epoch)
    total_steps = options.epochs * steps_per_epoch
    warmup_steps = min(warmup_steps, total_steps)
    if options.sched == "plateau":
        factor, patience = options.plateau_factor, options.plateau_patience
        return PlateauSchedule(options.lr, options.min_lr, warmup_steps, factor, patience, tuple(losses))
    return CosineSchedule(options.lr, options.min_lr, warmup_steps, total_steps)


def parameter_groups(model: TrainableModel, options: OptimConfig) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups, each with its `lr_scale`, in upstream's order, so that its states load.

    The scale of a parameter is layer_decay ^ (N + 1 - depth), times `task_head_lr_weight` in the head; upstream applies
    the second only if layer decay is off. Biases, vectors and `no_weight_decay()` names are not decayed.

    Args:
        model: has `get_num_layers()`, `layer_id(name)`, `is_head(name)` and `no_weight_decay()`.
        options: decay rates.

    Raises:
        ValueError: `no_weight_decay()` names a parameter that the model doesn't have.
    """
    top = model.get_num_layers() + 1
    exempt = model.no_weight_decay()
    unknown = exempt - {name for name, _ in model.named_parameters()}
    if unknown:
        raise ValueError(f"no_weight_decay() names what isn't a parameter: {', '.join(sorted(unknown))}")
    groups: dict[tuple[int, bool, bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = model.layer_id(name)  # even if it isn't needed: an error if the model gives the parameter no depth
        # Muon is for the matrices inside the layers, and for the convolution that cuts patches; without it, no group is
        # split.
        inside = 0 < depth < top and parameter.ndim == 2
        by_muon = options.opt == "muon" and (inside or parameter.ndim == 4)
        # Without decay every depth has the scale 1, and upstream makes one group of them.
        depth = depth if options.layer_decay < 1 else top
        in_head = options.task_head_lr_weight > 0 and model.is_head(name)
        decayed = parameter.ndim > 1 and not name.endswith(".bias") and name not in exempt
        scale = options.layer_decay ** (top - depth) * (options.task_head_lr_weight if in_head else 1.0)
        group = groups.setdefault(
            (depth, in_head, decayed, by_muon),
            {
                "params": [],
                "weight_decay": options.weight_decay if decayed else 0.0,
                "lr_scale": scale,
                **({"muon": by_muon} if options.opt == "muon" else {}),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def make_optimizer(
    model: TrainableModel,
    options: OptimConfig,
    strategy: SingleProcess | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.optim.Optimizer:
    """Return the optimizer over `parameter_groups`, sharded over the processes if the strategy shards it.

    Args:
        model: its parameters are to be trained.
        options: which optimizer, and its rates.
        strategy: how several processes share the work; None: there is one.
        dtype: of the run's matrix products, for an optimizer that has some.
    """
    return (strategy or SingleProcess()).make_optimizer(parameter_groups(model, options), options, dtype)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the moments of a saved state, whichever implementation and however many processes wrote it.

    Learning rate, weight decay and the other options stay this run's.

    Raises:
        ValueError: the state has other parameter groups, moments of other shapes, or is another optimizer's.
    """
    groups: list[dict[str, Any]] = []
    parameters: list[Tensor] = []
    names: list[tuple[str, ...]] = []
    for own in optimizer.param_groups:
        options = {name: value for name, value in own.items() if name != "params"}
        # Numbered through all groups, as AdamW's own state dict numbers them.
        groups.append({**options, "params": list(range(len(parameters), len(parameters) + len(own["params"])))})
        parameters += own["params"]
        names += [(BUFFER,) if own.get("muon") else ("exp_avg", "exp_avg_sq")] * len(own["params"])
    if [len(group["params"]) for group in state["param_groups"]] != [len(group["params"]) for group in groups]:
        raise ValueError(f"{len(state['param_groups'])} groups, not {len(groups)}, or others in them")
    # The file numbers the parameters in its own way; ours are numbered by their place in the groups.
    order = [index for group in state["param_groups"] for index in group["params"]]
    moments = {place: state["state"][index] for place, index in enumerate(order) if index in state["state"]}
    for place, moment in moments.items():
        if not moment.keys() >= set(names[place]):
            raise ValueError(f"parameter {place} has {' and '.join(moment)}, which another optimizer keeps")
        for name in names[place]:
            shape = parameters[place].shape
            if moment[name].shape != shape:  # the fused kernel doesn't check, and would write out of bounds
                raise ValueError(
                    f"{name} of parameter {place} has shape {tuple(moment[name].shape)}, not {tuple(shape)}"
                )
    # With fsdp each process keeps the moments of its own part alone.
    spread = {
        place: {name: distribute_like(value, parameters[place]) for name, value in moment.items()}
        for place, moment in moments.items()
    }
    optimizer.load_state_dict({"state": spread, "param_groups": groups})
    if isinstance(optimizer, ZeroRedundancyOptimizer):
        # It moves AdamW's counts of steps to the CPU; the fused kernel wants them beside the moments
        # (github.com/pytorch/pytorch/issues/124133).
        for parameter, moment in optimizer.optim.state.items():
            moment["step"] = moment["step"].to(parameter.device)


class ModelEma:
    """Exponential moving average of a model's weights: average = decay * average + (1 - decay) * weights.

    After n steps the decay is at most (1 + n) / (10 + n): with 0.9999 from the first one on, nine tenths of the average
    would be the initial weights, a fresh head among them, after a thousand steps.
    Source: TensorFlow's ExponentialMovingAverage with num_updates.

    Args:
        model: the model that is trained.
        decay: per optimizer step, at most.
        device: where the average is kept; None: beside the weights.

    Attributes:
        average: the averaged weights under the model's names.
        updates: steps that it has followed.
    """

    def __init__(self, model: nn.Module, decay: float, device: str | None = None):
        self.model = model
        self.decay, self.updates = decay, 0
        # A copy on the same device too: else the average would be the weights themselves.
        weights = model.state_dict()
        self.average = {name: value.detach().to(device or value.device, copy=True) for name, value in weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average one step towards the weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages = list(self.average.values())
        # With --model_ema_force_cpu the average is in main memory; elsewhere `to` copies nothing.
        values = self.model.state_dict().values()
        weights = [value.to(average.device) for average, value in zip(averages, values, strict=True)]
        # One kernel for all tensors; with fsdp each process averages its own part.
        torch._foreach_lerp_([_local(a) for a in averages], [_local(w) for w in weights], 1 - decay)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy the values of a saved average; every name must be there."""
        for name, value in self.average.items():
            value.copy_(distribute_like(state[name], value))

    @contextmanager
    def use_ema_weights(self) -> Iterator[None]:
        """Give the model the averaged weights inside the context, and its own back at the end."""
        # Clones, since a state dict holds the weights themselves, which the next line overwrites.
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        try:
            yield
        finally:
            self.model.load_state_dict(own)


def _local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor that is sharded over several."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
