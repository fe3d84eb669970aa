"""Fit other people's weights into BEiT-3: position tables, heads of another size.

This file lists what may differ; everything else that doesn't fit is an error that names it.
"""

import logging
import re
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from beit3_vqa.errors import InputError
from beit3_vqa.models.beit3.model import BEiT3Model
from beit3_vqa.models.beit3.multiway import FIRST_POSITION
from beit3_vqa.models.weights import mismatches
from beit3_vqa.runtime.tensors import is_plain

logger = logging.getLogger(__name__)

IMAGE_POSITIONS = "beit3.encoder.embed_positions.A.weight"
TOKEN_TABLE = "beit3.text_embed.weight"
EXTRA_POSITIONS = FIRST_POSITION + 1  # fairseq's two and [CLS]
# Heads of the pre-training objectives and of other tasks, dropped if the model has none of that shape.
PRETRAINING_HEADS = ("mlm_head.", "mim_head.", "lm_head.")
OTHER_HEADS = ("vision_head.", "language_head.", "logit_scale", "pooler.", "fc_norm.", "head.")
# Models whose output isn't normalised (VQA, ImageNet) have no last norm, where pre-trained ones do.
OUTPUT_NORM = "beit3.encoder.layer_norm."
NEW_IN_FINE_TUNING = ("head.", "pooler.", "fc_norm.", "vision_head.", "language_head.", "logit_scale", "mlm_head.")
ADAPTER = ".lora_"  # part of every name that peft gives


@dataclass
class LoadReport:
    """What was done to make a checkpoint fit; `str()` says it to the user.

    Attributes:
        dropped: names and shapes that the model has no place for.
        kept: names of a head of which another part was dropped.
        new: names that the checkpoint lacks and that keep their fresh weights.
        unread: names that the checkpoint lacks and that no output of the model depends on.
        interpolated: from which grid of image positions to which; empty: they are as they were.
    """

    dropped: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    interpolated: str = ""

    def __str__(self) -> str:
        lines = []
        if self.interpolated:
            lines.append(f"image positions interpolated {self.interpolated}")
        if self.dropped:
            lines.append(f"dropped from the checkpoint: {', '.join(self.dropped)}")
        if self.kept:
            lines.append(f"kept of the checkpoint's head: {', '.join(self.kept)}")
        if self.unread:
            lines.append(f"not in the checkpoint, and not used by this task: {len(self.unread)} weights")
        if self.new:
            lines.append(f"new, not in the checkpoint: {', '.join(self.new)}")
        return "\n".join(lines) or "all weights were loaded unchanged"


def load_pretrained(
    model: BEiT3Model, weights: dict[str, Tensor], where: str, allow_missing: str = "", *, new_head: bool = False
) -> LoadReport:
    """Copy pretrained weights into a model and return what was done to make them fit.

    Image positions of another resolution are interpolated. If a head has another number of classes, its weights that
    fit are kept, as upstream does; heads of other tasks are dropped; a head that the checkpoint lacks stays new.

    Args:
        model: the model to fill.
        weights: state dict of the checkpoint, in any floating-point type.
        where: the file's name, for messages.
        allow_missing: regular expression of names that may be missing on either side.
        new_head: keep nothing of the checkpoint's head, even if it fits.

    Raises:
        InputError: any other missing, unexpected or mis-shaped name, all of them listed.
    """
    own = model.state_dict()
    before, weights = weights, dict(weights)
    report = LoadReport()
    _drop_other_heads(weights, own, report, new_head)
    _fit_positions(weights, own, report)

    try:
        allowed = re.compile(allow_missing) if allow_missing else None
    except re.error as error:
        raise InputError(f"--allow_missing {allow_missing!r} isn't a regular expression: {error}.") from error
    if allowed:
        for name in [name for name in weights if name not in own and allowed.search(name)]:
            report.dropped.append(f"{name} {tuple(weights.pop(name).shape)}")
    new_parts = tuple(part for part in NEW_IN_FINE_TUNING if not any(name.startswith(part) for name in weights))
    new_parts += tuple(name for name in own if name not in weights and name in before)  # dropped, of another shape
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
            f"{_prefix_hint(own, weights)}Is --model the right size and patch? Names that may be missing: "
            "--allow_missing REGEX.",
        )
    # What the checkpoint lacks keeps its fresh value.
    model.load_state_dict({**own, **{name: value.to(own[name].dtype) for name, value in weights.items()}})
    return report


def _prefix_hint(own: dict[str, Tensor], weights: dict[str, Tensor]) -> str:
    """Return a sentence about the prefix that hides the model's own names; empty if none does."""
    found = [name.removesuffix(TOKEN_TABLE) for name in weights if name.endswith(TOKEN_TABLE)]
    prefix = found[0] if TOKEN_TABLE in own and found else ""
    return f"Its names begin with {prefix!r}: --model_prefix {prefix}. " if prefix else ""


def _drop_other_heads(weights: dict[str, Tensor], own: dict[str, Tensor], report: LoadReport, new_head: bool) -> None:
    """Remove from `weights`, in place, heads that the model hasn't, or not of that shape; any if `new_head`."""
    for head in (*PRETRAINING_HEADS, *OTHER_HEADS):
        names = [name for name in weights if name.startswith(head)]
        fit = [name for name in names if name in own and weights[name].shape == own[name].shape]
        if new_head and head.endswith("head."):  # the pooler before it stays
            fit = []
        if len(fit) < len(names):
            report.kept += fit
            report.dropped += [f"{name} {tuple(weights.pop(name).shape)}" for name in names if name not in fit]
    for name in [name for name in weights if name.startswith(OUTPUT_NORM) and name not in own]:
        report.dropped.append(f"{name} {tuple(weights.pop(name).shape)}")


def _fit_positions(weights: dict[str, Tensor], own: dict[str, Tensor], report: LoadReport) -> None:
    """Interpolate the image positions in `weights`, in place, if they are those of another resolution."""
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
    """Interpolate a position table bicubically: (3 + n*n, D) -> float32 (3 + size*size, D).

    The first three rows, fairseq's two and [CLS]'s, are kept.
    """
    table = table.to(torch.float32)  # half-precision weights too: their grid is computed in full
    extra, patches = table[:EXTRA_POSITIONS], table[EXTRA_POSITIONS:]
    grid = round(len(patches) ** 0.5)
    # (1, D, n, n): a table of patches is a small picture with D channels.
    patches = patches.T.reshape(1, -1, grid, grid)
    patches = F.interpolate(patches, size=(size, size), mode="bicubic", align_corners=False)
    return torch.cat([extra, patches.reshape(patches.size(1), -1).T])
