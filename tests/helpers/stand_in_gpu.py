"""A stand-in for a GPU on a machine without one: tensors that say they are on cuda:0 and are computed on the CPU.

What a GPU refuses is refused here too: an operation over tensors of both devices. What makes the host wait for a GPU is
counted, with the function of the package that did it. All else gives the CPU's numbers, backward passes and optimizers
included, so that a whole run can be compared with the CPU's. (torch's FakeTensorMode has no numbers, so that it stops
at the first one that is read, and without a driver it has no backward pass.)

Not stood in for: kernels and their rounding, memory, streams, page-locked memory. Autocast is the CPU's.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

needs_fake_gpu = pytest.mark.skipif(
    torch.__version__.startswith("2.6."),
    reason="torch 2.6 has no fake GPU without a driver",
)
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten
# Their result's size depends on values, so that the host must know them.
SIZED_BY_VALUES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal"}
ANSWERS = {Tensor.device.__get__: GPU, Tensor.is_cuda.__get__: True, Tensor.is_cpu.__get__: False}
READS = {Tensor.tolist, Tensor.numpy, Tensor.__array__}


class OnGPU(Tensor):
    """A tensor whose numbers are in `inner`, on the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CPU,
        )
        made.inner = inner
        return made

    def __repr__(self):
        return f"OnGPU({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        foreign = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and not isinstance(x, OnGPU)]
        if name in ("copy_", "index", "index_put", "index_put_", "_index_put_impl_"):
            # The three that take tensors of both: a copy, and a tensor on the GPU whose indices are on the CPU.
            if not isinstance(args[0], OnGPU) and name != "copy_":
                raise mismatch(func)
            if foreign and not (name == "copy_" and isinstance(args[0], OnGPU) and _get(args, kwargs, 2)):
                note_wait(name)
            if name != "copy_" and any(_is_mask(index) for index in args[1]):
                note_wait(f"{name} with a mask")
        elif any(x.dim() for x in foreign):  # a number on the CPU goes with everything
            raise mismatch(func)
        if name == "_local_scalar_dense" or name in SIZED_BY_VALUES:
            note_wait(name)
        found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        found = tree_map(lambda x: OnGPU(x) if isinstance(x, Tensor) else x, found)
        if func is aten.copy_.default:
            return args[0]
        return return_and_correct_aliasing(func, args, kwargs, found)


def mismatch(func) -> RuntimeError:
    """What a GPU says."""
    return RuntimeError(f"Expected all tensors to be on the same device, but found two devices, cuda:0 and cpu: {func}")


def _inner(x):
    return x.inner if isinstance(x, OnGPU) else x


def _get(args, kwargs, place):
    return args[place] if len(args) > place else kwargs.get("non_blocking", False)


def _is_mask(index) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


WAITS: Counter[str] = Counter()


def note_wait(what: str) -> None:
    """Count that the host waits, under the innermost function of the package."""
    frame = sys._getframe(1)
    while frame and not frame.f_globals.get("__name__", "").startswith("beit3_vqa."):
        frame = frame.f_back
    where = "elsewhere"
    if frame:
        module = frame.f_globals["__name__"].removeprefix("beit3_vqa.")
        where = f"{module}.{frame.f_code.co_name}"
    WAITS[f"{where}: {what}"] += 1


class StandIn(TorchFunctionMode):
    """Put what Python asks a GPU for on the stand-in."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        x = args[0] if args else None
        ours = isinstance(x, OnGPU)
        if ours and func in ANSWERS:
            return ANSWERS[func]
        if func is Tensor.to:
            return self._to(x, *args[1:], **kwargs)
        if func is Tensor.cpu:
            return self._to(x, CPU)
        if func is Tensor.cuda:
            return self._to(x, GPU)
        if ours and func in READS:
            note_wait(func.__name__)
            return func(x.inner, *args[1:], **kwargs)
        if ours and func is Tensor.__reduce_ex__:  # torch.save
            note_wait("save")
            return func(x.inner.detach(), *args[1:])
        device = kwargs.get("device")
        wanted = device is not None and torch.device(device).type == "cuda"
        if func is torch.tensor or func is Tensor.new_tensor:
            wanted = wanted or (ours and device is None)
            if wanted:
                note_wait("tensor of numbers")  # from memory that isn't page-locked
        if wanted:
            kwargs = {**kwargs, "device": CPU}
        found = func(*args, **kwargs)
        return OnGPU(found) if wanted and isinstance(found, Tensor) and not isinstance(found, OnGPU) else found

    def _to(self, x, *args, copy=False, **kwargs):
        if args and isinstance(args[0], Tensor):
            args = (GPU if isinstance(args[0], OnGPU) else CPU, args[0].dtype, *args[1:])
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        dtype, ours = dtype or x.dtype, isinstance(x, OnGPU)
        to_gpu = ours if device is None else device.type == "cuda"
        if to_gpu and ours:
            return x.to(dtype=dtype, copy=copy)
        if not to_gpu and not ours:
            return x.to(device, dtype, copy=copy)
        assert to_gpu or device == CPU
        assert not (torch.is_grad_enabled() and x.grad_fn), "a copy between devices that gradients go through"
        if not ours:
            if not non_blocking:
                note_wait("to the GPU")
            return OnGPU(x.detach().to(dtype=dtype, copy=True)).requires_grad_(x.requires_grad)
        note_wait("to the CPU")
        return x.inner.detach().to(dtype=dtype, copy=True).requires_grad_(x.requires_grad)


class Autocast(torch.autocast):
    """Autocast of the kind of device on which the numbers really are."""

    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _by_device(original):
    """torch groups tensors by the device that C++ sees."""

    def group(tensors, with_indices=False):
        groups = original(tensors, with_indices)
        return {(next(t for t in found[0][0] if t is not None).device, key[1]): found for key, found in groups.items()}

    return group


CUDA = {
    "is_available": True,
    "is_initialized": True,
    "device_count": 1,
    "current_device": 0,
    "is_bf16_supported": True,
    "is_current_stream_capturing": False,
    "max_memory_allocated": 0,
    "max_memory_reserved": 0,
    "memory_reserved": 0,
    "mem_get_info": (2**34, 2**34),
    "empty_cache": None,
    "reset_peak_memory_stats": None,
    "synchronize": None,
    "get_rng_state_all": [],
    "set_rng_state_all": None,
}


@contextmanager
def stand_in_gpu() -> Iterator[Counter[str]]:
    """A context with a GPU; yields how often the host waited for it, by function and what it did there."""
    WAITS.clear()
    grouping = "_group_tensors_by_device_and_dtype"
    # By name `mock` of Python 3.10 doesn't find the first: `torch.optim` has no such attribute.
    places = [import_module(f"torch.{name}") for name in ("optim.optimizer", "nn.utils.clip_grad")]
    original = getattr(torch.utils._foreach_utils, grouping)
    patches = [mock.patch.object(torch.cuda, name, lambda *_, _v=v, **__: _v) for name, v in CUDA.items()]
    patches += [mock.patch.object(place, grouping, _by_device(original)) for place in places]
    patches += [mock.patch.object(torch, "autocast", Autocast)]
    patches += [  # which asks the driver; its name is not the same in all versions of torch
        mock.patch.object(torch.optim.Optimizer, name)
        for name in vars(torch.optim.Optimizer)
        if name.endswith("_graph_capture_health_check")
    ]
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with ExitStack() as undone, StandIn():
        undone.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        for patch in patches:
            undone.enter_context(patch)
        yield WAITS
