"""Low-rank adapters (Hu et al. 2021, "LoRA") by peft: how they are added, merged, and how the rest is frozen and saved.

An adapter of a Linear layer W adds (alpha / r) B A x to W x, with A (r, in) and B (out, r); B begins at zero, so that
training starts from the pretrained model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from beit3_vqa.config.options import ModelConfig
from beit3_vqa.errors import InputError, nearest
from beit3_vqa.runtime.extras import import_extra


def _peft() -> Any:
    return import_extra("peft", "clip", "a model with adapters")


def lora_config(options: ModelConfig, targets: Sequence[str] = ()) -> Any:
    """Return peft's `LoraConfig` for a run.

    Args:
        options: `--lora_rank` and the rest.
        targets: full names of layers; none: the last parts of names, as `--lora_targets` has them.
    """
    return _peft().LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.alpha,
        lora_dropout=options.lora_dropout,
        target_modules=list(targets) or _targets(options),
        bias="none",
    )


def _targets(options: ModelConfig) -> list[str]:
    return [name.strip() for name in options.lora_targets.split(",") if name.strip()]


def _short(name: str) -> str:
    """Return what the options call a layer: the last part of its name, without Multiway's A (vision), B (language)."""
    return name.removesuffix(".A").removesuffix(".B").split(".")[-1]


def add_adapters(model: nn.Module, options: ModelConfig) -> None:
    """Put adapters beside a model's Linear layers, in place, and freeze everything else.

    Args:
        model: the model, changed in place.
        options: `--lora_rank` and the rest. `--lora_targets` holds the last parts of layers' names; of a Multiway
            layer it means both sides.

    Raises:
        InputError: no Linear layer of the model has such a name, or peft isn't installed.
    """
    linear = {name: _short(name) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = [name for name in _targets(options) if name not in linear.values()]
    if unknown or not _targets(options):
        known = sorted(set(linear.values()))
        wrong = f"no Linear layer is called {unknown[0]!r}.{nearest(unknown[0], known)}" if unknown else "is empty."
        raise InputError(f"--lora_targets {options.lora_targets!r}: {wrong} There are {', '.join(known)}.")
    wanted = [name for name, short in linear.items() if short in _targets(options)]
    _peft().inject_adapter_in_model(lora_config(options, wanted), model)
    for _, layer in _adapted(model):
        # Autocast chooses the types; peft would cast the input to float32, only for autocast to cast it back.
        layer.cast_input_dtype_enabled = False


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    kind = _peft().tuners.lora.LoraLayer
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kind)]


def keep_names(model: nn.Module) -> None:
    """Make a model with adapters save and load its own weights under their names without adapters.

    peft moves the weights of a layer `x` to `x.base_layer`; other people's checkpoints know nothing of that.
    """
    moved = {
        f"{layer}.{name}": f"{layer}.base_layer.{name}"
        for layer, module in _adapted(model)
        for name, _ in module.get_base_layer().named_parameters()
    }

    def rename(state: dict[str, Tensor], names: dict[str, str]) -> None:
        # A list, since the dict changes inside the loop.
        for old in [name for name in state if name in names]:
            state[names[old]] = state.pop(old)

    def on_save(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
        rename(state, {prefix + now: prefix + before for before, now in moved.items()})

    def on_load(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
        rename(state, {prefix + before: prefix + now for before, now in moved.items()})

    hooks: Any = model  # torch has no types for these methods
    hooks.register_state_dict_post_hook(on_save)
    hooks.register_load_state_dict_pre_hook(on_load)


def without_adapters(options: ModelConfig) -> dict[str, object]:
    """Return the options that name the same model without adapters, by flat name."""
    return {"model": options.model.removesuffix("_lora"), "lora_rank": 0}


def adapter_scale(options: ModelConfig) -> float:
    """Return alpha / r, by which the product of an adapter's matrices counts; 0 for a model without adapters."""
    return options.alpha / options.lora_rank if options.lora_rank else 0.0


def has_adapter(weights: Mapping[str, Tensor], name: str) -> bool:
    """Return whether a checkpoint's weights hold an adapter of the layer whose weight is called `name`."""
    return name.endswith(".weight") and f"{name.removesuffix('.weight')}.lora_B.default.weight" in weights


def merged(weights: Mapping[str, Tensor], name: str, base: Tensor, scale: float) -> Tensor:
    """Return the weight of a layer with its adapter added, base + scale * B A, float64 (out, in).

    Args:
        weights: of a checkpoint, with the adapter.
        name: of the layer's weight.
        base: that weight without the adapter.
        scale: what `adapter_scale` returned.
    """
    # In float64, so that the sum is rounded once, to the type of the weight.
    a, b = (weights[f"{name.removesuffix('.weight')}.lora_{part}.default.weight"].double() for part in "AB")
    return torch.addmm(base.double(), b, a, alpha=scale)


def keep_only(model: nn.Module, names: frozenset[str]) -> None:
    """Make `state_dict()` hold these names alone, and `load_state_dict` ask for no others: what a checkpoint keeps."""

    def drop_others(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
        for name in [name for name in state if name.removeprefix(prefix) not in names]:
            del state[name]

    def expect_no_others(module: nn.Module, incompatible: Any) -> None:
        # In place: torch reads this very list after its hooks to decide whether to raise.
        incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name in names]

    hooks: Any = model  # torch has no types for these methods
    hooks.register_state_dict_post_hook(drop_others)
    hooks.register_load_state_dict_post_hook(expect_no_others)
