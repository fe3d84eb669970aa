"""What a checkpoint of a training run holds, checked before any of it is used.

The file may be damaged, from another program, or made by someone who means harm: whatever isn't of the kind that
`save` writes is named here, in one line, instead of failing somewhere inside the optimizer.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from beit3_vqa.errors import InputError

MAX_EPOCH = 10**6


def check_contents(content: dict[str, Any], where: str) -> None:
    """InputError that names the first entry of a checkpoint that can't be what a run saved.

    Entries that aren't there are nobody's fault here: upstream's checkpoints have no random state and no scores.

    Args:
        content: of `read_checkpoint`.
        where: flag and file, for messages.
    """
    for name, (holds, wanted) in _ENTRIES.items():
        if name in content and not holds(content[name]):
            raise InputError(
                f"{where}: its {name!r} is {_kind(content[name])}, not {wanted}. The file is damaged, or no checkpoint "
                "of a training run; resume from another."
            )


def _is_epoch(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_EPOCH


def _is_optimizer(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("state"), dict)
        and isinstance(value.get("param_groups"), list)
        and all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in value["param_groups"])
        and all(isinstance(state, dict) and _has_moments(state) for state in value["state"].values())
    )


def _has_moments(state: dict[str, Any]) -> bool:
    moments = [state.get(name) for name in ("exp_avg", "exp_avg_sq")]
    steps = state.get("step")
    return all(map(_is_finite, moments)) and (_is_finite(steps) if isinstance(steps, Tensor) else type(steps) is int)


def _is_finite(value: Any) -> bool:
    return is_plain(value) and not value.is_meta and bool(value.isfinite().all())


def is_plain(value: Any) -> bool:
    """Whether it is a dense tensor of real floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.layout is torch.strided


def _is_random_state(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("cuda", []), list):
        return False
    states = [value.get("cpu"), *value.get("cuda", [])]
    return all(isinstance(state, Tensor) and state.dtype == torch.uint8 for state in states) and (
        states[0].shape == torch.get_rng_state().shape
    )


def _is_weights(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and value == value


_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    # Upstream's checkpoint-best.pth says "best" where a number is due; whoever needs the number says what to do.
    "epoch": (lambda value: _is_epoch(value) or value == "best", f"a number of epochs from 0 up to {MAX_EPOCH:,}"),
    "optimizer": (_is_optimizer, "the state of an AdamW optimizer with finite moments"),
    "scaler": (lambda value: value is None or isinstance(value, dict), "the state of a gradient scaler"),
    "random_state": (_is_random_state, "the state of torch's random generators"),
    "model_ema": (lambda value: value is None or _is_weights(value), "a state dict"),
    "best_score": (lambda value: value is None or _is_number(value), "a number"),
    "best_epoch": (lambda value: value is None or _is_epoch(value), "a number of epochs"),
    "val_losses": (lambda value: isinstance(value, list) and all(map(_is_number, value)), "a list of numbers"),
    "task_state": (lambda value: isinstance(value, dict), "what the task keeps, such as its answers"),
    "tokenizer_sha256": (lambda value: isinstance(value, str), "a checksum in hexadecimal digits"),
    "base_sha256": (lambda value: isinstance(value, str), "a checksum in hexadecimal digits"),
    "resumed_from": (lambda value: isinstance(value, str), "the name of a file"),
}


def _kind(value: Any) -> str:
    """The value if it is short, else its type."""
    is_short = value is None or (isinstance(value, (int, float, str)) and len(repr(value)) < 40)
    return repr(value) if is_short else f"another {type(value).__name__}"
