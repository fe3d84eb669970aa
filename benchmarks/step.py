"""The training step: forward, backward, clipping, AdamW; torchscale's forward pass against ours."""

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from beit3_vqa.config.options import OptimConfig
from beit3_vqa.engine.optim import make_optimizer
from beit3_vqa.models.beit3.model import BEiT3Model
from beit3_vqa.runtime import memory
from beit3_vqa.runtime.precision import Precision, pick_device
from benchmarks.network import (
    Loss,
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


def step(
    model: BEiT3Model,
    inputs: dict[str, Tensor],
    loss_fn: Loss,
    variant: Variant,
    precision: Precision,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Train for one step as the variant does."""
    set_allocator(variant.tuned)
    model.beit3.attention = variant.attention
    with precision.autocast():
        outputs = model(**inputs)
    precision.scaler.scale(loss_fn(outputs.float())).backward()
    precision.scaler.unscale_(optimizer)  # before the clipping, which must see the gradients as they are
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    precision.scaler.step(optimizer)
    precision.scaler.update()
    optimizer.zero_grad(set_to_none=True)


def make_steps(
    name: str, device: torch.device, batch: int, wanted: dict[str, Variant]
) -> dict[str, Callable[[], None]]:
    """Return a step for each variant; all train the same weights."""
    model, inputs, loss_fn = make(name, device, batch)
    model.train()
    fused = make_optimizer(model, OptimConfig())
    plain = torch.optim.AdamW(model.parameters(), lr=5e-4)
    precisions = {variant.precision: Precision(variant.precision, device) for variant in wanted.values()}
    return {
        label: partial(step, model, inputs, loss_fn, v, precisions[v.precision], fused if v.fused else plain)
        for label, v in wanted.items()
    }


def peak_memory(options: argparse.Namespace, label: str) -> float:
    """Return the peak memory, in GiB, of three steps of one variant in a process of its own."""
    arguments = ["--model", options.model, "--device", options.device, "--batch_size", str(options.batch_size)]
    arguments += ["--memory_of", label, *(["--precision", options.precision] if options.precision else [])]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.step", *arguments], capture_output=True, text=True, check=True
    )
    return float(result.stdout.split()[-1])


def print_memory(options: argparse.Namespace, device: torch.device, wanted: dict[str, Variant]) -> None:
    """Print the peak memory of three steps in GiB, which `peak_memory` reads."""
    label = options.memory_of
    run = make_steps(options.model, device, options.batch_size, {label: wanted[label]})[label]
    for _ in range(3):
        run()
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**30)
    else:
        print((memory.peak() or 0) / 2**30)


def main() -> None:
    """Run `python -m benchmarks.step`."""
    parser = arguments(__doc__ or "", rounds=5)
    network_arguments(parser)
    parser.add_argument("--memory_of", help="only print the peak memory of this variant in GiB")
    options = parser.parse_args()
    device = pick_device(options.device)
    wanted = variants(device, find_precisions(options.precision, device))
    if options.memory_of:
        print_memory(options, device, wanted)
        return
    steps = make_steps(options.model, device, options.batch_size, wanted)
    seconds = paired(steps, options.rounds)
    share = shares_of_peak(seconds, flops(steps["ours, fp32"]), wanted, device)
    del steps
    memory = {label: round(peak_memory(options, label), 2) for label in wanted}
    more: dict[str, Mapping[str, object]] = {"matrix peak": share, "peak memory, GiB": memory}
    rows = build_rows(seconds, next(iter(wanted)), **more)
    report(f"training step, {options.model}, batch {options.batch_size}", rows, options.output)


if __name__ == "__main__":
    main()
