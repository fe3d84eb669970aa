"""Choose the device and the precision in which the model computes."""

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from beit3_vqa.errors import InputError
from beit3_vqa.runtime.distributed import local_device

CPU_BF16_VARIABLE = "BEIT3_VQA_CPU_BF16"
_CPU_INFO = Path("/proc/cpuinfo")
LARGEST = 1e30  # float32 ends at 3.4e38; sums over a few thousand classes must fit


def pick_device(name: str) -> torch.device:
    """Return the device of a name; `auto` takes CUDA, else Apple's MPS, else the CPU.

    If torchrun started several processes, each gets the GPU of its number.

    Raises:
        InputError: this machine has no such device.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return local_device("cuda")
    if name == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: write auto, cpu, cuda, cuda:N or mps.") from error
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, False):
        raise InputError(f"--device {name}: not on this machine; --device auto takes what there is.")
    return device


def in_float32(outputs: Any) -> Any:
    """Return a model's outputs (a tensor, a tuple or a mapping of them) with floating-point numbers as float32."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.is_floating_point() else outputs
    if isinstance(outputs, Mapping):
        return {name: in_float32(value) for name, value in outputs.items()}
    return tuple(map(in_float32, outputs)) if isinstance(outputs, (tuple, list)) else outputs


def outputs_are_finite(outputs: object) -> bool:
    """Return whether every number of a model's outputs (as `in_float32` gives them) is finite.

    Numbers beyond `LARGEST` count as not finite: no probability or loss could be made of them that is.
    """
    if isinstance(outputs, Tensor):
        return not outputs.is_floating_point() or bool((outputs.abs() <= LARGEST).all())
    if isinstance(outputs, Mapping):
        return all(map(outputs_are_finite, outputs.values()))
    return all(map(outputs_are_finite, outputs)) if isinstance(outputs, (tuple, list)) else True


class Precision:
    """Autocast and gradient scaling of a run.

    Weights stay float32; matrix products run in `dtype`. Only fp16 needs its gradients scaled.

    Args:
        name: fp32, bf16, fp16, auto, or int8: as auto, but for linear layers of a trained model (`models.int8`).
        device: where the model is.

    Raises:
        InputError: int8, and it isn't faster here.
    """

    def __init__(self, name: str, device: torch.device):
        self.device = device
        self.int8 = name == "int8"
        if self.int8 and device.type != "cpu":
            raise InputError(f"--precision int8 is for a CPU (--device cpu); on {device} take auto.")
        if self.int8 and not _cpu_has_int8():
            raise InputError("--precision int8 is for a CPU with VNNI, and this one has none; take auto.")
        best = _best_precision(device) if name in ("auto", "int8") else name
        self.name = name if self.int8 else best
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[best]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute inside the context as a forward pass does.

        On a CPU autograd keeps no copy of a weight that autocast casts: the backward pass casts it once more. By
        arithmetic that saves 0.3 GiB for base and 1.1 for large. Python is called for each of the 900 tensors that a
        step of base saves; a fast GPU would wait for that, about 6 ms.
        """
        if self.dtype == torch.float32:
            yield
            return
        casts_again = self.device.type == "cpu" and torch.is_grad_enabled()
        # Autocast's cache would hold the copies too, until the end of the context. It is kept for passes without
        # gradients, since some, as beam search, use the same weights again and again.
        autocast = torch.autocast(self.device.type, dtype=self.dtype, cache_enabled=not casts_again)
        with autocast, saved_tensors_hooks(_keep, _restore) if casts_again else nullcontext():
            yield

    def cast_frozen(self, model: nn.Module) -> None:
        """Cast the frozen operands of matrix products to `dtype`, in place.

        Autocast would cast just these in each forward pass, so the numbers stay the same while memory and time are
        saved. Norms and embeddings, which autocast leaves alone, stay float32, and so does everything that is trained.
        """
        for module in model.modules():
            is_operand = isinstance(module, (nn.Linear, nn.Conv2d))
            if is_operand and not any(parameter.requires_grad for parameter in module.parameters()):
                module.to(self.dtype)

    def scaler_state(self) -> dict[str, object]:
        """Return the scaler's state for a checkpoint; without fp16 that of a fresh one.

        A scaler that is on, as upstream's always is, refuses the empty state of one that is off.
        """
        return (self.scaler if self.scaler.is_enabled() else torch.amp.GradScaler("cpu")).state_dict()

    @contextmanager
    def skipping(self, optimizer: torch.optim.Optimizer, bad: Tensor) -> Iterator[bool]:
        """Make an optimizer step inside the context change nothing if its gradient isn't finite.

        Args:
            optimizer: its gradients are unscaled. If its kernel isn't fused, this waits for the device.
            bad: float32 scalar on the device: 1 if the gradient isn't finite, else 0.

        Yields:
            Whether to call the step.
        """
        if self.scaler.is_enabled():  # the scaler skips such steps by itself
            yield True
        elif getattr(optimizer, "_step_supports_amp_scaling", False):
            # The fused kernel reads the flag on the device, as it reads a scaler's, so the host needn't wait.
            optimizer.grad_scale, optimizer.found_inf = None, bad  # type: ignore[attr-defined]
            yield True
            del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
        else:
            yield not bad


class _Kept(NamedTuple):
    """What autograd keeps of a tensor that the backward pass will read; hundreds are made in each step.

    Attributes:
        tensor: the tensor, or the weight that autocast cast to make it. It is detached: with its graph it would hold
            itself in memory for ever if no backward pass came.
        version: how often it had been written to in place.
        dtype: to which a weight is cast again; None: the tensor is as it was.
        transposed: whether a weight is then transposed, as that of a linear layer.
    """

    tensor: Tensor
    version: int
    dtype: torch.dtype | None = None
    transposed: bool = False


def _keep(saved: Tensor) -> _Kept:
    """Return what autograd is to keep of a tensor."""
    cast = saved.grad_fn
    if cast is None:  # it has no graph
        return _Kept(saved, saved._version)
    transposed = cast.name() == "TBackward0"
    if transposed:
        cast = cast.next_functions[0][0]
    if cast is not None and cast.name() == "ToCopyBackward0":
        # Only the node that adds to a parameter's gradient knows a `variable`: a cast activation stays as it is.
        weight = getattr(cast.next_functions[0][0], "variable", None)
        # A copy that was written to, or is elsewhere, can't be made of the weight again.
        if weight is not None and weight.device == saved.device and saved._version == 0:
            return _Kept(weight.detach(), weight._version, saved.dtype, transposed)
    return _Kept(saved.detach(), saved._version)


def _restore(kept: _Kept) -> Tensor:
    """Return the tensor that `_keep` was given.

    Raises:
        RuntimeError: it was changed in place since then. Without hooks autograd itself looks for that.
    """
    if kept.tensor._version != kept.version:
        raise RuntimeError("a tensor was changed in place between the forward and the backward pass that reads it")
    tensor = kept.tensor if kept.dtype is None else kept.tensor.to(kept.dtype)
    return tensor.t() if kept.transposed else tensor


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and _cpu_has_bf16():
        return "bf16"
    return "fp32"


def _cpu_has_bf16() -> bool:
    """Return whether the CPU multiplies bf16 matrices faster than float32.

    It does with AMX, and on AMD's processors with AVX-512's bf16. Intel's have that too, but at half the speed of their
    float32 (benchmarks.md), and a hypervisor may hide their AMX.

    The variable BEIT3_VQA_CPU_BF16 overrules what the processor says: 1 (it does) or 0 (it doesn't).

    Raises:
        InputError: the variable has another value.
    """
    said = os.environ.get(CPU_BF16_VARIABLE, "")
    if said not in ("", "0", "1"):
        raise InputError(f"{CPU_BF16_VARIABLE}={said}: write 1 (bf16 on a CPU), 0 (never), or leave it unset.")
    if said:
        return said == "1"
    amx, avx512 = (getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("amx_tile", "avx512_bf16"))
    return amx or (avx512 and not _is_of_intel())


def _cpu_has_int8() -> bool:
    """Return whether the CPU multiplies int8 matrices in hardware (AVX-512 VNNI), and torch knows how to."""
    library = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return library and getattr(torch.cpu, "_is_vnni_supported", bool)()


def _is_of_intel() -> bool:
    with suppress(OSError):  # not on Linux
        return "GenuineIntel" in _CPU_INFO.read_text(encoding="ascii", errors="replace")
    return "GenuineIntel" in platform.processor()
