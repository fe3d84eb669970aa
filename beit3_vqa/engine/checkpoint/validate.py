"""Check what a checkpoint holds before any of it is used.

The file may be damaged, from another program, or made by someone who means harm. An entry that isn't of the kind that
`save.py` writes is named here, in one line, instead of failing somewhere inside the optimizer. `_ENTRIES` lists them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from beit3_vqa.engine.muon import BUFFER
from beit3_vqa.errors import InputError, short
from beit3_vqa.runtime.tensors import all_finite, is_plain

Content = dict[str, Any]  # what a checkpoint file holds; `_ENTRIES` describes the values
SOUP = "soup"  # entry of a checkpoint that is an average of others: how it was made, and of which files
MAX_EPOCH = 10**6
MAX_EXAMPLES = 10**12
MAX_SCORE = 1e300


def validate_content(content: Content, where: str) -> None:
    """Check every entry of a checkpoint that is there; upstream's checkpoints lack some, such as the random state.

    Args:
        content: what `read_checkpoint` returned.
        where: flag and file, for messages.

    Raises:
        InputError: an entry can't be what a run saved; it names the first.
    """
    for name, (holds, wanted) in _ENTRIES.items():
        if name in content and not holds(content[name]):
            raise InputError(
                f"{where}: its {name!r} is {_kind(content[name])}, not {wanted}. The file is damaged, or no checkpoint "
                "of a training run; resume from another."
            )


def _is_epoch(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_EPOCH


def _is_optimizer(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("state"), dict)
        and isinstance(value.get("param_groups"), list)
        and all(isinstance(group, dict) and _is_list_of_ints(group.get("params")) for group in value["param_groups"])
        and all(isinstance(state, dict) and _has_moments(state) for state in value["state"].values())
    )


def _is_list_of_ints(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _has_moments(state: dict[str, Any]) -> bool:
    if set(state) == {BUFFER}:
        return _is_finite(state[BUFFER])
    moments = [state.get(name) for name in ("exp_avg", "exp_avg_sq")]
    steps = state.get("step")
    return all(map(_is_finite, moments)) and (
        _is_finite(steps) and steps.numel() == 1 if isinstance(steps, Tensor) else type(steps) is int
    )


def _is_finite(value: object) -> bool:
    return isinstance(value, Tensor) and is_plain(value) and not value.is_meta and all_finite(value)


def _is_random_state(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("cuda", []), list):
        return False
    states = [value.get("cpu"), *value.get("cuda", [])]
    if not all(isinstance(state, Tensor) and state.dtype == torch.uint8 for state in states):
        return False
    try:
        torch.Generator().set_state(states[0])  # it looks into the state, too
    except RuntimeError:
        return False
    return True


def _is_inside_epoch(value: object) -> bool:
    names = {"steps": int, "examples": int, "loss_sum": float, "counted": float, "bad": float, "lr": float}
    names |= {"validated": int} if isinstance(value, dict) and "validated" in value else {}  # not in older files
    return (
        isinstance(value, dict)
        and set(value) == {*names, "order"}
        and isinstance(value["order"], dict)
        and all(type(value[name]) is kind and 0 <= value[name] < MAX_EXAMPLES for name, kind in names.items())
    )


def _is_time(value: object) -> bool:
    floats, counts = ("hours", "seconds", "step", "validation", "save"), ("last_step", "steps_per_epoch")
    return (
        isinstance(value, dict)
        and set(value) == {*floats, *counts}
        and all(type(value[name]) is float and 0 <= value[name] < MAX_EXAMPLES for name in floats)
        and all(type(value[name]) is int and 0 <= value[name] < MAX_EXAMPLES for name in counts)
    )


def _is_rows(value: object) -> bool:
    """Return whether a value is what `data.fingerprint` keeps: for each split, int64 rows (N) and a digest."""
    return isinstance(value, dict) and all(
        isinstance(split, dict)
        and set(split) == {"rows", "digest"}
        and isinstance(split["digest"], str)
        and isinstance(split["rows"], Tensor)
        and (split["rows"].dtype, split["rows"].ndim, split["rows"].layout) == (torch.int64, 1, torch.strided)
        and split["rows"].is_contiguous()
        and not split["rows"].is_meta
        for split in value.values()
    )


def _is_weights(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _is_number(value: object) -> bool:
    # The comparison is false for NaN; `type` keeps bools out.
    return isinstance(value, (int, float)) and type(value) in (int, float) and abs(value) < MAX_SCORE


_ENTRIES: dict[str, tuple[Callable[[object], bool], str]] = {
    # Upstream's checkpoint-best.pth says "best" where a number is due; whoever needs the number says what to do.
    "epoch": (lambda value: _is_epoch(value) or value == "best", f"a number of epochs from 0 up to {MAX_EPOCH:,}"),
    "optimizer": (_is_optimizer, "the state of an optimizer of --opt with finite moments"),
    "scaler": (lambda value: value is None or isinstance(value, dict), "the state of a gradient scaler"),
    "random_state": (_is_random_state, "the state of torch's random generators"),
    "random_states": (
        lambda value: isinstance(value, list) and all(map(_is_random_state, value)),
        "the states of every process's random generators",
    ),
    "inside_epoch": (_is_inside_epoch, "how far an epoch had come"),
    "time": (_is_time, "the time that a run had used, and its plan"),
    "processes": (lambda value: type(value) is int and 0 < value < MAX_EPOCH, "a number of processes"),
    "model_ema": (lambda value: value is None or _is_weights(value), "a state dict"),
    "model_ema_updates": (lambda value: type(value) is int and value >= 0, "a number of steps"),
    "best_score": (lambda value: value is None or _is_number(value), "a number"),
    "best_epoch": (lambda value: value is None or _is_epoch(value), "a number of epochs"),
    "waited": (lambda value: _is_epoch(value), f"a number of validations from 0 up to {MAX_EPOCH:,}"),
    "val_losses": (lambda value: isinstance(value, list) and all(map(_is_number, value)), "a list of numbers"),
    "task_state": (lambda value: isinstance(value, dict), "what the task keeps, such as its answers"),
    "data_rows": (_is_rows, "fingerprints of the rows of its data"),
    "tokenizer_sha256": (lambda value: isinstance(value, str), "a checksum in hexadecimal digits"),
    "base_sha256": (lambda value: isinstance(value, str), "a checksum in hexadecimal digits"),
    "resumed_from": (lambda value: isinstance(value, str), "the name of a file"),
    SOUP: (lambda value: isinstance(value, dict), "what a soup was made of"),
}


def _kind(value: object) -> str:
    """Return the value as text if it is short and plain, else its type."""
    shown = short(value)
    return (
        shown
        if (value is None or isinstance(value, (int, float, str))) and len(shown) < 40
        else f"another {type(value).__name__}"
    )
