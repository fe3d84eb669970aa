"""Train one model in several processes: what each of them keeps, and when gradients and states are exchanged.

ddp: every process keeps everything; gradients are averaged. zero1: as ddp, but each process keeps the optimizer's
moments of a part of the parameters only. fsdp: each process keeps a part of every parameter and of its moments.
"""

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from beit3_vqa.config.options import OptimConfig
from beit3_vqa.engine.muon import Muon
from beit3_vqa.errors import InputError
from beit3_vqa.models.base import TrainableModel
from beit3_vqa.runtime import distributed


class SingleProcess:
    """Training without other processes, and the base of the strategies: each replaces the methods that differ."""

    def wrap(self, model: TrainableModel) -> nn.Module:
        """Return the module to call in training; the model itself keeps its parameters' names."""
        return model

    def make_optimizer(
        self, groups: list[dict[str, Any]], options: OptimConfig, dtype: torch.dtype = torch.float32
    ) -> torch.optim.Optimizer:
        """Return the optimizer of `--opt` over parameter groups.

        Args:
            groups: of `engine.optim.parameter_groups`.
            options: of the optimizer.
            dtype: of the run's matrix products, for an optimizer that has some.
        """
        if options.opt == "adamw":
            return self.make_adamw(groups, options)
        # fp16 can't hold what the products pass through. A CPU multiplies matrices of a few hundred columns in float32
        # sooner than in bf16.
        exact = dtype != torch.bfloat16 or not groups[0]["params"][0].is_cuda
        return Muon(groups, torch.float32 if exact else dtype, **_adamw(options))

    def make_adamw(self, groups: list[dict[str, Any]], options: OptimConfig) -> torch.optim.Optimizer:
        """Return AdamW over parameter groups."""
        return torch.optim.AdamW(groups, fused=True, **_adamw(options))  # fused: one pass over memory per step

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Return a context for backward passes that are not the last of their step: gradients stay in the process."""
        return nullcontext()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, object]:
        """Return the whole state in the layout of one process, in the main one; every process must call it."""
        return optimizer.state_dict()


class DDP(SingleProcess):
    """The whole model in every process: torch's DistributedDataParallel."""

    def wrap(self, model: TrainableModel) -> nn.Module:
        """Return the model, wrapped so that its backward pass averages the gradients over the processes."""
        # The last layer's text side feeds nothing: the head reads [CLS] alone.
        return DistributedDataParallel(model, find_unused_parameters=True)

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Return a context for backward passes after which gradients aren't averaged yet."""
        assert isinstance(wrapped, DistributedDataParallel)
        return wrapped.no_sync()


class ShardedOptimizer(DDP):
    """ZeRO stage 1, in the place of upstream's `--enable_deepspeed --zero_stage 1`.

    Source: Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, 2020.
    """

    def make_adamw(self, groups: list[dict[str, Any]], options: OptimConfig) -> torch.optim.Optimizer:
        """Return AdamW whose moments are sharded over the processes."""
        return ZeroRedundancyOptimizer(groups, optimizer_class=torch.optim.AdamW, fused=True, **_adamw(options))

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, object]:
        """Return the moments of all processes on the main one; empty on the others."""
        assert isinstance(optimizer, ZeroRedundancyOptimizer)
        # All processes must take part, though only the main one gets the state.
        optimizer.consolidate_state_dict(to=0)
        return optimizer.state_dict() if distributed.is_main() else {}


class FSDP(SingleProcess):
    """A part of every parameter in each process: torch's `fully_shard` on each layer, and on the rest of the model."""

    def wrap(self, model: TrainableModel) -> nn.Module:
        """Shard the model's parameters over the processes and return it.

        Raises:
            InputError: the model can't be sharded.
        """
        if "ignored_params" not in inspect.signature(fully_shard).parameters:
            raise InputError(f"--strategy fsdp needs torch 2.7, and this is {torch.__version__}. Take zero1.")
        problem = getattr(model, "unshardable", "")
        if problem:
            raise InputError(f"--strategy fsdp isn't for this model: {problem}. Take zero1.")
        device = next(model.parameters()).device
        mesh = init_device_mesh(device.type, (distributed.world_size(),))
        # Each layer by itself: its weights are whole only while it computes. The call on the model shards the rest.
        for layer, method in model.layers():
            fully_shard(layer, mesh=mesh)
            # The hooks of `fully_shard` are on `forward`, and BEiT-3's layers are called by another method.
            register_fsdp_forward_method(layer, method)
        # A scalar, such as CLIP's logit scale, can't be sharded: each process keeps it, and `fully_shard` leaves it
        # alone, so the mean of its gradient is taken here.
        scalars = {parameter for parameter in model.parameters() if parameter.dim() == 0}
        fully_shard(model, mesh=mesh, ignored_params=scalars)
        for scalar in scalars:
            if scalar.requires_grad:
                scalar.register_hook(  # type: ignore[no-untyped-call]
                    # A clone, since all_reduce writes in place.
                    lambda gradient: distributed.all_reduce_sum(gradient.clone()) / distributed.world_size()
                )
        return cast(nn.Module, model)

    def make_adamw(self, groups: list[dict[str, Any]], options: OptimConfig) -> torch.optim.Optimizer:
        """Return AdamW over this process's parts of the parameters."""
        return torch.optim.AdamW(groups, foreach=True, **_adamw(options))

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, object]:
        """Return the moments, gathered from all processes."""
        state = optimizer.state_dict()
        return {**state, "state": {index: full_state_dict(moments) for index, moments in state["state"].items()}}


class _AdamW(TypedDict):
    lr: float
    betas: tuple[float, float]
    eps: float


def _adamw(options: OptimConfig) -> _AdamW:
    betas = (options.opt_betas[0], options.opt_betas[1])
    return {"lr": options.lr, "betas": betas, "eps": options.opt_eps}


STRATEGIES: dict[str, type[SingleProcess]] = {"ddp": DDP, "zero1": ShardedOptimizer, "fsdp": FSDP}


def make_strategy(name: str) -> SingleProcess:
    """Return the strategy of that name; with one process, `SingleProcess` whatever the name."""
    return STRATEGIES[name]() if distributed.world_size() > 1 else SingleProcess()


def full_state_dict(state: Mapping[str, object]) -> dict[str, object]:
    """Return a state dict whose sharded tensors are gathered into main memory; every process must call it."""
    # One by one to main memory: the whole model needn't fit on a GPU beside its parts.
    return {name: value.full_tensor().cpu() if isinstance(value, DTensor) else value for name, value in state.items()}


def distribute_like(value: Any, like: Any) -> Any:
    """Return a whole tensor sharded over the processes as `like` is; unchanged if `like` isn't sharded."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value
