"""A batch of evaluation: torchscale's forward pass against ours, and what precision costs in accuracy of the logits."""

import argparse
import copy
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

Run = partial[Tensor]


@torch.no_grad()
def evaluate(model: BEiT3Model, inputs: dict[str, Tensor], variant: Variant, precision: Precision) -> Tensor:
    """Compute logits as the variant does."""
    set_allocator(variant.tuned)
    model.beit3.attention = variant.attention
    with precision.autocast():
        logits: Tensor = model(**inputs)
        return logits.float()


def make_runs(options: argparse.Namespace, device: torch.device, wanted: dict[str, Variant]) -> dict[str, Run]:
    """Return label -> a batch computed so, by the same weights."""
    model, inputs, _ = make(options.model, device, options.batch_size)
    model.eval().requires_grad_(False)
    apart = dict(inputs)  # an image for each question
    if options.questions > 1:
        image_of = torch.arange(options.batch_size, device=device) // options.questions
        apart["image"] = inputs["image"].index_select(0, image_of)
        inputs = {**inputs, "image": inputs["image"][: int(image_of.max()) + 1], "image_of": image_of}
    runs: dict[str, Run] = {}
    for label, variant in wanted.items():
        precision, holds = Precision(variant.precision, device), model
        if variant.attention != "reference" and variant.precision != "fp32":
            holds = copy.deepcopy(model)
            precision.cast_frozen(holds)  # as `--eval` and `predict` do
        runs[label] = partial(evaluate, holds, inputs, variant, precision)
        if options.questions > 1 and variant.attention != "reference":
            runs[f"{label}, an image for each question"] = partial(evaluate, holds, apart, variant, precision)
    with suppress(InputError):  # no CPU, or one that is no faster in int8
        precision, rounded = Precision("int8", device), copy.deepcopy(model)
        round_linear_layers(rounded)
        precision.cast_frozen(rounded)
        runs["ours, int8"] = partial(evaluate, rounded, inputs, Variant("auto", "int8", tuned=True), precision)
    return runs


def main() -> None:
    """Run `python -m benchmarks.evaluate`."""
    parser = arguments(__doc__ or "", rounds=7)
    network_arguments(parser)
    parser.add_argument("--questions", type=int, default=1, help="questions about each image")
    parser.add_argument("--only", default="", help="part of the names of the variants; the first is compared with")
    options = parser.parse_args()
    device = pick_device(options.device)
    wanted = variants(device, find_precisions(options.precision, device))
    every = make_runs(options, device, wanted)
    runs = {label: run for label, run in every.items() if options.only in label}
    if not runs:
        parser.error(f"--only {options.only}: no variant has that in its name: {', '.join(every)}")
    first = next(iter(runs))
    logits = {label: run() for label, run in runs.items()}
    exact = logits[first]
    error = {label: f"{((of - exact).abs().max() / exact.abs().max()).item():.1e}" for label, of in logits.items()}
    others = {label: int((of.argmax(-1) != exact.argmax(-1)).sum()) for label, of in logits.items()}
    seconds = paired(runs, options.rounds)
    counted = {label: variant for label, variant in wanted.items() if label in runs}
    share = shares_of_peak(seconds, flops(every["ours, fp32"]), counted, device)
    columns = {"matrix peak": share, "largest error of a logit": error, "other answers": others}
    rows = build_rows(seconds, first, **columns)
    report(f"evaluation, {options.model}, batch {options.batch_size}", rows, options.output)


if __name__ == "__main__":
    main()
