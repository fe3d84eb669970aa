"""A batch of evaluation: torchscale's forward pass against ours, and what precision costs in accuracy of the logits."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from beit3_vqa.models.beit3.model import BEiT3Model
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
    exact = runs["reference, fp32, as upstream ships it"]()
    error = {label: f"{((run() - exact).abs().max() / exact.abs().max()).item():.1e}" for label, run in runs.items()}
    seconds = paired(runs, options.rounds)
    share = shares_of_peak(seconds, flops(runs["ours, fp32"]), wanted, device)
    rows = build_rows(seconds, next(iter(wanted)), **{"matrix peak": share, "largest error of a logit": error})
    report(f"evaluation, {options.model}, batch {options.batch_size}", rows, options.output)


if __name__ == "__main__":
    main()
