"""Reading other people's checkpoints: keys, position tables, heads of another size.

What may differ is listed here; everything else that doesn't fit is an error that names it.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from beit3_vqa.config.config import RunConfig
from beit3_vqa.config.options import InitConfig
from beit3_vqa.errors import InputError, short
from beit3_vqa.models.beit3.model import BEiT3Model
from beit3_vqa.models.beit3.multiway import FIRST_POSITION
from beit3_vqa.runtime.tensors import all_finite, is_plain

IMAGE_POSITIONS = "beit3.encoder.embed_positions.A.weight"
TOKEN_TABLE = "beit3.text_embed.weight"
EXTRA_POSITIONS = FIRST_POSITION + 1  # fairseq's two and [CLS]
# Heads of the pre-training objectives and of other tasks, dropped where the model has none of that shape.
PRETRAINING_HEADS = ("mlm_head.", "mim_head.", "lm_head.")
OTHER_HEADS = ("vision_head.", "language_head.", "logit_scale", "pooler.", "fc_norm.", "head.")
# Models whose output isn't normalised (VQA, ImageNet) have no last norm, where pre-trained ones do.
OUTPUT_NORM = "beit3.encoder.layer_norm."
NEW_IN_FINE_TUNING = ("head.", "pooler.", "fc_norm.", "vision_head.", "language_head.", "logit_scale", "mlm_head.")
ADAPTER = ".lora_"  # in the names that peft gives
MODEL_KEY = InitConfig.model_key
LIGHTNING_KEY = "state_dict"
WRAPPERS = ("module.", "model.")  # of DDP, DeepSpeed and Lightning, before every name
# Of torch.compile, FSDP and recomputed layers, which may wrap any part of a model.
WRAPPERS_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


@dataclass
class LoadReport:
    """What was done to make a checkpoint fit."""

    dropped: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # of a head of which another part was dropped
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
            lines.append(f"kept of its head: {', '.join(self.kept)}")
        if self.unread:
            lines.append(f"not in the checkpoint, and of no influence on this task: {len(self.unread)} weights")
        if self.new:
            lines.append(f"new, not of the checkpoint: {', '.join(self.new)}")
        return "\n".join(lines) or "every weight taken as it is"


def find_weights(
    content: dict[str, Any],
    model_key: str = MODEL_KEY,
    model_prefix: str = "",
    *,
    where: str = "the checkpoint",
    required: bool = False,
) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint, without the names that wrappers put around the model's own; says which.

    Args:
        content: of the file.
        model_key: entries that may hold it, tried in order; then Lightning's, then the whole file.
        model_prefix: of the model's names, the only ones that are taken then.
        where: flag and file, for messages.
        required: only `model_key` will do, since somebody asked for it.

    Raises:
        InputError: there are no weights.
    """
    keys = model_key.split("|")
    found = [name for name in (*keys, LIGHTNING_KEY) if isinstance(content.get(name), dict) and content[name]]
    if required and not set(found) & set(keys):
        raise InputError(f"{where}: --model_key {model_key} isn't in it; it holds {_dicts_in(content)}.")
    state = content[found[0]] if found else content
    weights = {name: v for name, v in state.items() if isinstance(name, str) and isinstance(v, Tensor)}
    if not weights:
        raise InputError(f"{where}: no weights where they are looked for ({model_key}); it holds "
                         f"{_dicts_in(content)}. Name the one that holds them with --model_key.")  # fmt: skip
    if model_prefix:  # as upstream: names without it aren't the model's
        weights = {name.removeprefix(model_prefix): v for name, v in weights.items() if name.startswith(model_prefix)}
    weights, taken_off = _unwrapped(weights)
    if taken_off:
        print(f"{where}: taken off the names of its weights: {', '.join(taken_off)}")
    return weights


def asked_weights(content: dict[str, Any], config: RunConfig, where: str, first: str = "") -> dict[str, Tensor]:
    """Return the weights that `--model_key` names; where it wasn't given, those under `first` go before the default."""
    options, asked = config.init, "model_key" in config.given
    keys = f"{first}|{options.model_key}" if first and not asked else options.model_key
    return find_weights(content, keys, options.model_prefix, where=where, required=asked)


def _dicts_in(content: dict[str, Any]) -> str:
    return ", ".join(short(name) for name, value in content.items() if isinstance(value, dict)) or "no state dict"


def _unwrapped(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under the model's own names, and what was taken off them."""
    taken_off = [wrapper for wrapper in WRAPPERS_ANYWHERE if any(wrapper in name for name in weights)]
    for wrapper in taken_off:
        weights = {name.replace(wrapper, ""): value for name, value in weights.items()}
    while prefix := next((p for p in WRAPPERS if weights and all(name.startswith(p) for name in weights)), ""):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
        taken_off.append(prefix)
    return weights, taken_off


def load_pretrained(model: BEiT3Model, weights: dict[str, Tensor], where: str, allow_missing: str = "") -> LoadReport:
    """Copies pretrained weights into a model.

    Image positions of another resolution are interpolated. Of a head of another number of classes what fits is kept, as
    upstream keeps it; heads of other tasks are dropped; a head that the checkpoint lacks stays new.

    Args:
        model: the model to fill.
        weights: state dict of the checkpoint, in any floating-point type.
        where: the file's name, for messages.
        allow_missing: regular expression of names that may be missing on either side.

    Raises:
        InputError: any other missing, unexpected or mis-shaped name, all of them listed.
    """
    own = model.state_dict()
    before, weights = weights, dict(weights)
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
    model.load_state_dict({**own, **{name: value.to(own[name].dtype) for name, value in weights.items()}})
    return report


def _prefix_hint(own: dict[str, Tensor], weights: dict[str, Tensor]) -> str:
    """Say which prefix hides the model's own names, if one does."""
    found = [name.removesuffix(TOKEN_TABLE) for name in weights if name.endswith(TOKEN_TABLE)]
    prefix = found[0] if TOKEN_TABLE in own and found else ""
    return f"Its names begin with {prefix!r}: --model_prefix {prefix}. " if prefix else ""


def mismatches(own: dict[str, Tensor], weights: dict[str, Tensor]) -> list[str]:
    """What keeps `weights` from filling a model whose state dict is `own`, a line each."""
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


def _drop_other_heads(weights: dict[str, Tensor], own: dict[str, Tensor], report: LoadReport) -> None:
    for head in (*PRETRAINING_HEADS, *OTHER_HEADS):
        names = [name for name in weights if name.startswith(head)]
        fit = [name for name in names if name in own and weights[name].shape == own[name].shape]
        if len(fit) < len(names):
            report.kept += fit
            report.dropped += [f"{name} {tuple(weights.pop(name).shape)}" for name in names if name not in fit]
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
