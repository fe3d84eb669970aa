"""Low-rank adapters (Hu et al. 2021, "LoRA") by peft: added to a model, and what is frozen beside them.

An adapter of a Linear layer W adds (alpha / r) B A x to W x, with A (r, in) and B (out, r); B begins at zero, so that
training starts from the pretrained model.
"""

from typing import Any

import torch
from torch import nn

from beit3_vqa.errors import InputError, nearest
from beit3_vqa.models.hugging_face import optional
from beit3_vqa.options import ModelConfig


def lora_config(options: ModelConfig) -> Any:
    """peft's `LoraConfig` of a run."""
    return optional("peft").LoraConfig(
        r=options.lora_rank,
        lora_alpha=2 * options.lora_rank if options.lora_alpha is None else options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=_targets(options),
        bias="none",
    )


def _targets(options: ModelConfig) -> list[str]:
    return [name.strip() for name in options.lora_targets.split(",") if name.strip()]


def add_adapters(model: nn.Module, options: ModelConfig) -> None:
    """Puts adapters beside a model's Linear layers, in place, and freezes everything else.

    Args:
        model: whose layers are named in `--lora_targets`, by the last part of their names.
        options: `--lora_rank` and the rest.

    Raises:
        InputError: a target that no Linear layer of the model has, or peft isn't installed.
    """
    config = lora_config(options)
    linear = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = [name for name in _targets(options) if name not in linear]
    if unknown or not linear or not _targets(options):
        known = ", ".join(sorted(linear))
        wrong = f"no Linear layer is called {unknown[0]!r}.{nearest(unknown[0], linear)}" if unknown else "is empty."
        raise InputError(f"--lora_targets {options.lora_targets!r}: {wrong} There are {known}.")
    peft = optional("peft")
    peft.inject_adapter_in_model(config, model)
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            # Autocast sees to types; peft's own cast would take the input to float32 only for it to come back.
            module.cast_input_dtype_enabled = False


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
