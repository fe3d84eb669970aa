"""Low-rank adapters (Hu et al. 2021, "LoRA") by peft: added to a model, and what is frozen beside them.

An adapter of a Linear layer W adds (alpha / r) B A x to W x, with A (r, in) and B (out, r); B begins at zero, so that
training starts from the pretrained model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from beit3_vqa.config.options import ModelConfig
from beit3_vqa.errors import InputError, nearest
from beit3_vqa.models.clip.hub import optional


def lora_config(options: ModelConfig, targets: Sequence[str] = ()) -> Any:
    """peft's `LoraConfig` of a run; `targets` are names of layers in full, else the last parts that the options say."""
    return optional("peft").LoraConfig(
        r=options.lora_rank,
        lora_alpha=2 * options.lora_rank if options.lora_alpha is None else options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=list(targets) or _targets(options),
        bias="none",
    )


def _targets(options: ModelConfig) -> list[str]:
    return [name.strip() for name in options.lora_targets.split(",") if name.strip()]


def _short(name: str) -> str:
    """What the options call a layer: the last part of its name, without the Multiway's side (A vision, B language)."""
    return name.removesuffix(".A").removesuffix(".B").split(".")[-1]


def add_adapters(model: nn.Module, options: ModelConfig) -> None:
    """Puts adapters beside a model's Linear layers, in place, and freezes everything else.

    Args:
        model: whose layers are named in `--lora_targets`, by the last part of their names; of a Multiway layer both
            sides are meant.
        options: `--lora_rank` and the rest.

    Raises:
        InputError: a target that no Linear layer of the model has, or peft isn't installed.
    """
    linear = {name: _short(name) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = [name for name in _targets(options) if name not in linear.values()]
    if unknown or not _targets(options):
        known = sorted(set(linear.values()))
        wrong = f"no Linear layer is called {unknown[0]!r}.{nearest(unknown[0], known)}" if unknown else "is empty."
        raise InputError(f"--lora_targets {options.lora_targets!r}: {wrong} There are {', '.join(known)}.")
    wanted = [name for name, short in linear.items() if short in _targets(options)]
    optional("peft").inject_adapter_in_model(lora_config(options, wanted), model)
    for _, layer in _adapted(model):
        # Autocast sees to types; peft's own cast would take the input to float32 only for it to come back.
        layer.cast_input_dtype_enabled = False


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    kind = optional("peft").tuners.lora.LoraLayer
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kind)]


def keep_names(model: nn.Module) -> None:
    """Lets a model with adapters save and load its own weights under the names they had without.

    peft moves the weights of a layer `x` to `x.base_layer`; checkpoints of others know nothing of that.
    """
    moved = {
        f"{layer}.{name}": f"{layer}.base_layer.{name}"
        for layer, module in _adapted(model)
        for name, _ in module.get_base_layer().named_parameters()
    }

    def rename(state: dict[str, Any], names: dict[str, str]) -> None:
        for old in [name for name in state if name in names]:
            state[names[old]] = state.pop(old)

    def on_save(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        rename(state, {prefix + now: prefix + before for before, now in moved.items()})

    def on_load(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        rename(state, {prefix + before: prefix + now for before, now in moved.items()})

    model.register_state_dict_post_hook(on_save)
    model.register_load_state_dict_pre_hook(on_load)


def hold_frozen_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Keeps the frozen operands of matrix products in the compute dtype, in place.

    Autocast casts just these, in each forward pass, so the numbers stay the same while memory and time halve. Norms and
    embeddings, which autocast leaves alone, stay float32, and so does everything that is trained.
    """
    for module in model.modules():
        is_operand = isinstance(module, (nn.Linear, nn.Conv2d))
        if is_operand and not any(parameter.requires_grad for parameter in module.parameters()):
            module.to(dtype)


def keep_only(model: nn.Module, names: frozenset[str]) -> None:
    """Makes `state_dict()` hold just these names, and `load_state_dict` ask for no others: what a checkpoint keeps."""

    def drop_others(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for name in [name for name in state if name.removeprefix(prefix) not in names]:
            del state[name]

    def expect_no_others(module: nn.Module, incompatible: Any) -> None:
        incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name in names]

    model.register_state_dict_post_hook(drop_others)
    model.register_load_state_dict_post_hook(expect_no_others)
