"""Find the weights in a checkpoint of anybody's making, under the model's own names, and say what doesn't fit."""

import logging

from torch import Tensor

from beit3_vqa.config.config import RunConfig
from beit3_vqa.config.options import InitConfig
from beit3_vqa.errors import InputError, short
from beit3_vqa.runtime.tensors import all_finite, is_plain

logger = logging.getLogger(__name__)

MODEL_KEY = InitConfig.model_key
LIGHTNING_KEY = "state_dict"
WRAPPERS = ("module.", "model.")  # of DDP, DeepSpeed and Lightning, before every name
# Of torch.compile, FSDP and recomputed layers, which may wrap any part of a model.
WRAPPERS_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def find_weights(
    content: dict[str, object],
    model_key: str = MODEL_KEY,
    model_prefix: str = "",
    *,
    where: str = "the checkpoint",
    required: bool = False,
) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint under the model's own names; print what wrappers had put before them.

    Args:
        content: what the file holds.
        model_key: entries that may hold it, separated by "|" and tried in order; then Lightning's, then the whole file.
        model_prefix: if given, only names that begin with it are taken, and it is removed from them.
        where: flag and file, for messages.
        required: accept `model_key` alone, since the user asked for it.

    Raises:
        InputError: there are no weights.
    """
    keys = model_key.split("|")
    found = [name for name in (*keys, LIGHTNING_KEY) if isinstance(content.get(name), dict) and content[name]]
    if required and not set(found) & set(keys):
        raise InputError(f"{where}: --model_key {model_key} isn't in it; it holds {_dicts_in(content)}.")
    state = content[found[0]] if found else content
    assert isinstance(state, dict)
    weights = {name: v for name, v in state.items() if isinstance(name, str) and isinstance(v, Tensor)}
    if not weights:
        raise InputError(f"{where}: no weights under {model_key.replace('|', ' or ')}; the file holds "
                         f"{_dicts_in(content)}. Name the right key with --model_key.")  # fmt: skip
    if model_prefix:  # as upstream: names without it aren't the model's
        weights = {name.removeprefix(model_prefix): v for name, v in weights.items() if name.startswith(model_prefix)}
    weights, taken_off = _unwrapped(weights)
    if taken_off:
        logger.info(f"{where}: removed from the parameter names: {', '.join(taken_off)}")
    return weights


def asked_weights(content: dict[str, object], config: RunConfig, where: str, first: str = "") -> dict[str, Tensor]:
    """Return the weights under `--model_key`; if it wasn't given, those under `first` before those of the default.

    Args:
        content: what the checkpoint holds.
        config: the run's options.
        where: flag and file, for messages.
        first: a key that is tried before the default ones; empty: none.

    Raises:
        InputError: there are no weights.
    """
    options, asked = config.init, "model_key" in config.given
    keys = f"{first}|{options.model_key}" if first and not asked else options.model_key
    return find_weights(content, keys, options.model_prefix, where=where, required=asked)


def _dicts_in(content: dict[str, object]) -> str:
    return ", ".join(short(name) for name, value in content.items() if isinstance(value, dict)) or "no state dict"


def _unwrapped(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights under the model's own names, and what was removed from their names."""
    taken_off = [wrapper for wrapper in WRAPPERS_ANYWHERE if any(wrapper in name for name in weights)]
    for wrapper in taken_off:
        weights = {name.replace(wrapper, ""): value for name, value in weights.items()}
    # A prefix counts only if all names have it; wrappers nest, so there may be several.
    while prefix := next((p for p in WRAPPERS if weights and all(name.startswith(p) for name in weights)), ""):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
        taken_off.append(prefix)
    return weights, taken_off


def mismatches(own: dict[str, Tensor], weights: dict[str, Tensor]) -> list[str]:
    """Return what keeps `weights` from filling a model whose state dict is `own`, a line for each problem."""
    problems = [f"unexpected: {name} {tuple(value.shape)}" for name, value in weights.items() if name not in own]
    problems += [
        f"shape of {name}: {tuple(value.shape)} in the checkpoint, {tuple(own[name].shape)} in the model"
        for name, value in weights.items()
        if name in own and value.shape != own[name].shape
    ]
    problems += [f"missing: {name}" for name in own if name not in weights]
    for name, value in weights.items():
        if name not in own or own[name].is_meta or value.shape != own[name].shape:
            continue
        if value.is_meta or not is_plain(value):
            problems.append(f"not a plain tensor of floating-point numbers: {name} ({value.layout}, {value.dtype})")
        elif not all_finite(value):
            problems.append(f"not finite: {name} holds NaN or infinity")
    return problems
