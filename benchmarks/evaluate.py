"""A batch of evaluation: torchscale's forward pass against ours, and what precision costs in accuracy of the logits."""

import copy
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from beit3_vqa.errors import InputError
from beit3_vqa.models.beit3.model import BEiT3Model
from beit3_vqa.models.int8 import round_linear_layers
from beit3_vqa.runtime.precision import Precision, pick_device
from benchmarks.network import (
    Variant,
    find_precisions,
    flops,
    make,
    network_arguments,
    set_allocator,
    shares_of_peak,
    variants,
)
from benchmarks.paired import arguments, build_rows, paired, report


@torch.no_grad()
def evaluate(model: BEiT3Model, inputs: dict[str, Tensor], variant: Variant, precision: Precision) -> Tensor:
    """Compute logits as the variant does."""
    set_allocator(variant.tuned)
    model.beit3.attention = variant.attention
    with precision.autocast():
        logits: Tensor = model(**inputs)
        return logits.float()


def main() -> None:
    """Run `python -m benchmarks.evaluate`."""
    parser = arguments(__doc__ or "", rounds=7)
    network_arguments(parser)
    options = parser.parse_args()
    device = pick_device(options.device)
    model, inputs, _ = make(options.model, device, options.batch_size)
    model.eval()
    wanted = variants(device, find_precisions(options.precision, device))
    runs: dict[str, Callable[[], Tensor]] = {
        label: partial(evaluate, model, inputs, variant, Precision(variant.precision, device))
        for label, variant in wanted.items()
    }
    with suppress(InputError):  # no CPU, or one that is no faster in int8
        precision, rounded = Precision("int8", device), copy.deepcopy(model)
        round_linear_layers(rounded)
        runs["ours, int8"] = partial(evaluate, rounded, inputs, Variant("auto", "int8", tuned=True), precision)
    exact = runs["reference, fp32, as upstream ships it"]()
    logits = {label: run() for label, run in runs.items()}
    error = {label: f"{((of - exact).abs().max() / exact.abs().max()).item():.1e}" for label, of in logits.items()}
    others = {label: int((of.argmax(-1) != exact.argmax(-1)).sum()) for label, of in logits.items()}
    seconds = paired(runs, options.rounds)
    share = shares_of_peak(seconds, flops(runs["ours, fp32"]), wanted, device)
    columns = {"matrix peak": share, "largest error of a logit": error, "other answers": others}
    rows = build_rows(seconds, next(iter(wanted)), **columns)
    report(f"evaluation, {options.model}, batch {options.batch_size}", rows, options.output)


if __name__ == "__main__":
    main()
