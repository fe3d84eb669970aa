"""How several processes train one model: what each keeps, and how gradients and states meet.

One process: everything is here. ddp: everything in each process, gradients averaged. zero1: as ddp, but each keeps the
optimizer's moments of a part of the parameters only. fsdp: each keeps a part of every parameter and its moments.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from beit3_vqa.config.options import OptimConfig
from beit3_vqa.errors import InputError
from beit3_vqa.runtime import distributed


class SingleProcess:
    """No other process: the base of the strategies, and what each of them does where it says nothing else."""

    def wrap(self, model: Any) -> Any:
        """What is called in place of the model in training; the model itself keeps its names."""
        return model

    def make_optimizer(self, groups: list[dict[str, Any]], options: OptimConfig) -> torch.optim.Optimizer:
        """AdamW, fused: one pass over each group's memory per step."""
        return torch.optim.AdamW(groups, fused=True, **_adamw(options))

    def no_sync(self, wrapped: Any) -> AbstractContextManager:
        """The context of a backward pass after which there is no optimizer step yet."""
        return nullcontext()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The whole state in AdamW's own layout; every process must ask, only the main one needs what comes back."""
        return optimizer.state_dict()


class DDP(SingleProcess):
    """DistributedDataParallel."""

    def wrap(self, model: Any) -> Any:
        """The model with gradients averaged over the processes."""
        # The last layer's text side feeds nothing: the head reads [CLS] alone.
        return DistributedDataParallel(model, find_unused_parameters=True)

    def no_sync(self, wrapped: Any) -> AbstractContextManager:
        """Gradients stay where they are until the step."""
        return wrapped.no_sync()


class ShardedOptimizer(DDP):
    """ZeRO stage 1, in the place of upstream's `--enable_deepspeed --zero_stage 1`.

    Source: Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, 2020.
    """

    def make_optimizer(self, groups: list[dict[str, Any]], options: OptimConfig) -> torch.optim.Optimizer:
        """AdamW whose moments are spread over the processes."""
        return ZeroRedundancyOptimizer(groups, optimizer_class=torch.optim.AdamW, fused=True, **_adamw(options))

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The moments of every process, on the main one."""
        optimizer.consolidate_state_dict(to=0)
        return optimizer.state_dict() if distributed.is_main() else {}


class FSDP(SingleProcess):
    """`fully_shard` of each layer, and of what is left."""

    def wrap(self, model: Any) -> Any:
        """The model itself, its parameters now spread over the processes."""
        problem = getattr(model, "unshardable", "")
        if problem:
            raise InputError(f"--strategy fsdp isn't for this model: {problem}. Take zero1.")
        device = next(model.parameters()).device
        mesh = init_device_mesh(device.type, (distributed.world_size(),))
        for layer, method in model.layers():
            fully_shard(layer, mesh=mesh)
            register_fsdp_forward_method(layer, method)
        # A scalar, such as CLIP's logit scale, can't be divided: each process keeps it.
        scalars = {parameter for parameter in model.parameters() if parameter.dim() == 0}
        fully_shard(model, mesh=mesh, ignored_params=scalars)
        for scalar in scalars:
            if scalar.requires_grad:
                scalar.register_hook(
                    lambda gradient: distributed.all_reduce_sum(gradient.clone()) / distributed.world_size()
                )
        return model

    def make_optimizer(self, groups: list[dict[str, Any]], options: OptimConfig) -> torch.optim.Optimizer:
        """AdamW over the parts."""
        return torch.optim.AdamW(groups, foreach=True, **_adamw(options))

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The moments, put together."""
        state = optimizer.state_dict()
        return {**state, "state": {index: full_state_dict(moments) for index, moments in state["state"].items()}}


def _adamw(options: OptimConfig) -> dict[str, Any]:
    betas = (options.opt_betas[0], options.opt_betas[1])
    return {"lr": options.lr, "betas": betas, "eps": options.opt_eps}


STRATEGIES: dict[str, type[SingleProcess]] = {"ddp": DDP, "zero1": ShardedOptimizer, "fsdp": FSDP}


def make_strategy(name: str) -> SingleProcess:
    """The strategy of that name; with one process there is nothing to spread."""
    return STRATEGIES[name]() if distributed.world_size() > 1 else SingleProcess()


def full_state_dict(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict with its spread tensors put together, in main memory; every process must ask."""
    return {name: value.full_tensor().cpu() if isinstance(value, DTensor) else value for name, value in state.items()}


def distribute_like(value: Any, like: Any) -> Any:
    """A whole tensor, spread over the processes as `like` is; unchanged where that isn't spread."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value
