"""Reading other people's checkpoints: keys, position tables, heads of another size.

What may differ is listed here; everything else that doesn't fit is an error that names it.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from beit3_vqa.engine.contents import all_finite, is_plain
from beit3_vqa.errors import InputError
from beit3_vqa.models.beit3 import BEiT3Model
from beit3_vqa.models.multiway import FIRST_POSITION

IMAGE_POSITIONS = "beit3.encoder.embed_positions.A.weight"
EXTRA_POSITIONS = FIRST_POSITION + 1  # fairseq's two and [CLS]
# Heads of the pre-training objectives and of other tasks, dropped where the model has none of that shape.
PRETRAINING_HEADS = ("mlm_head.", "mim_head.", "lm_head.")
OTHER_HEADS = ("vision_head.", "language_head.", "logit_scale", "pooler.", "fc_norm.", "head.")
# Models whose output isn't normalised (VQA, ImageNet) have no last norm, where pre-trained ones do.
OUTPUT_NORM = "beit3.encoder.layer_norm."
NEW_IN_FINE_TUNING = ("head.", "pooler.", "fc_norm.", "vision_head.", "language_head.", "logit_scale", "mlm_head.")
ADAPTER = ".lora_"  # in the names that peft gives


@dataclass
class LoadReport:
    """What was done to make a checkpoint fit."""

    dropped: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    interpolated: str = ""

    def __str__(self) -> str:
        lines = []
        if self.interpolated:
            lines.append(f"image positions interpolated {self.interpolated}")
        if self.dropped:
            lines.append(f"dropped from the checkpoint: {', '.join(self.dropped)}")
        if self.unread:
            lines.append(f"not in the checkpoint, and of no influence on this task: {len(self.unread)} weights")
        if self.new:
            lines.append(f"new, not in the checkpoint: {', '.join(self.new)}")
        return "\n".join(lines) or "every weight taken as it is"


def weights_of(content: dict[str, Any], model_key: str = "model|module", model_prefix: str = "") -> dict[str, Tensor]:
    """The state dict in a checkpoint: under one of `model_key`, or the whole file; `module.` of DDP is taken off."""
    for key in model_key.split("|"):
        if isinstance(content.get(key), dict) and content[key]:
            content = content[key]
            break
    weights = {name: v for name, v in content.items() if isinstance(name, str) and isinstance(v, Tensor)}
    if model_prefix:  # as upstream: names without it aren't the model's
        weights = {name.removeprefix(model_prefix): v for name, v in weights.items() if name.startswith(model_prefix)}
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return weights


def load_pretrained(model: BEiT3Model, weights: dict[str, Tensor], where: str, allow_missing: str = "") -> LoadReport:
    """Copies pretrained weights into a model.

    Image positions of another resolution are interpolated; a head of another number of classes, and heads of other
    tasks, are dropped; a head that the checkpoint lacks stays new.

    Args:
        model: the model to fill.
        weights: state dict of the checkpoint, in any floating-point type.
        where: the file's name, for messages.
        allow_missing: regular expression of names that may be missing on either side.

    Raises:
        InputError: any other missing, unexpected or mis-shaped name, all of them listed.
    """
    own = model.state_dict()
    weights = dict(weights)
    report = LoadReport()
    _drop_other_heads(weights, own, report)
    _fit_positions(weights, own, report)

    try:
        allowed = re.compile(allow_missing) if allow_missing else None
    except re.error as error:
        raise InputError(f"--allow_missing {allow_missing!r} isn't a regular expression: {error}.") from error
    if allowed:
        for name in [name for name in weights if name not in own and allowed.search(name)]:
            report.dropped.append(f"{name} {tuple(weights.pop(name).shape)}")
    new_parts = tuple(part for part in NEW_IN_FINE_TUNING if not any(name.startswith(part) for name in weights))
    missing = [name for name in own if name not in weights]
    if not any(ADAPTER in name for name in weights):
        new_parts += tuple(name for name in own if ADAPTER in name)
    report.new = [name for name in missing if name.startswith(new_parts) or (allowed and allowed.search(name))]
    report.unread = [name for name in missing if name not in report.new and model.is_unread(name)]
    left_out = {*report.new, *report.unread}
    problems = mismatches({name: value for name, value in own.items() if name not in left_out}, weights)
    if problems:
        raise InputError.of_problems(
            f"{where} doesn't fit the model:",
            problems,
            "Is --model the right size and patch? Names that may be missing: --allow_missing REGEX.",
        )
    model.load_state_dict({**own, **{name: value.to(own[name].dtype) for name, value in weights.items()}})
    return report


def mismatches(own: dict[str, Tensor], weights: dict[str, Tensor]) -> list[str]:
    """What keeps `weights` from filling a model whose state dict is `own`, a line each."""
    problems = [f"missing: {name}" for name in own if name not in weights]
    problems += [f"unexpected: {name} {tuple(value.shape)}" for name, value in weights.items() if name not in own]
    problems += [
        f"shape of {name}: {tuple(value.shape)} in the checkpoint, {tuple(own[name].shape)} in the model"
        for name, value in weights.items()
        if name in own and value.shape != own[name].shape
    ]
    for name, value in weights.items():
        if name not in own or own[name].is_meta or value.shape != own[name].shape:
            continue
        if value.is_meta or not is_plain(value):
            problems.append(f"not a plain tensor of floating-point numbers: {name} ({value.layout}, {value.dtype})")
        elif not all_finite(value):
            problems.append(f"not finite: {name} holds NaN or infinity")
    return problems


def _drop_other_heads(weights: dict[str, Tensor], own: dict[str, Tensor], report: LoadReport) -> None:
    for head in (*PRETRAINING_HEADS, *OTHER_HEADS):
        names = [name for name in weights if name.startswith(head)]
        fits = all(name in own and weights[name].shape == own[name].shape for name in names)
        if names and not fits:
            report.dropped += [f"{name} {tuple(weights.pop(name).shape)}" for name in names]
    for name in [name for name in weights if name.startswith(OUTPUT_NORM) and name not in own]:
        report.dropped.append(f"{name} {tuple(weights.pop(name).shape)}")


def _fit_positions(weights: dict[str, Tensor], own: dict[str, Tensor], report: LoadReport) -> None:
    table, wanted = weights.get(IMAGE_POSITIONS), own[IMAGE_POSITIONS]
    if table is None or table.ndim != 2 or not is_plain(table):
        return
    if table.shape == wanted.shape or table.shape[1] != wanted.shape[1]:
        return
    old, new = (round(max(0, len(t) - EXTRA_POSITIONS) ** 0.5) for t in (table, wanted))
    if old < 1 or len(table) != old * old + EXTRA_POSITIONS:
        return  # not a square grid: reported as a shape that doesn't fit
    weights[IMAGE_POSITIONS] = interpolate_positions(table, new)
    report.interpolated = f"from {old}x{old} to {new}x{new} patches"


def interpolate_positions(table: Tensor, size: int) -> Tensor:
    """Position table (3 + n*n, D) -> float32 (3 + size*size, D), bicubic; the first three rows are kept."""
    table = table.to(torch.float32)
    extra, patches = table[:EXTRA_POSITIONS], table[EXTRA_POSITIONS:]
    grid = round(len(patches) ** 0.5)
    patches = patches.T.reshape(1, -1, grid, grid)
    patches = F.interpolate(patches, size=(size, size), mode="bicubic", align_corners=False)
    return torch.cat([extra, patches.reshape(patches.size(1), -1).T])
