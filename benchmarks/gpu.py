"""All that a machine with one GPU and no network is asked, in eight minutes: `python -m benchmarks.gpu`.

Each section is a process of its own with its own time, so that one that fails or hangs costs the others nothing: its
error stands beside what it had found by then. `--device cpu --small` tries the script on any machine.
"""

import argparse
import contextlib
import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beit3_vqa.cli.main import main as command_line
from beit3_vqa.config.options import OptimConfig
from beit3_vqa.engine.checkpoint.io import read_checkpoint
from beit3_vqa.engine.optim import make_optimizer
from beit3_vqa.errors import InputError
from beit3_vqa.models.beit3.attention import sdpa
from beit3_vqa.models.beit3.model import BEiT3Model
from beit3_vqa.models.compile import compile_model
from beit3_vqa.models.names import HEADS
from beit3_vqa.runtime.host import tune_allocator
from beit3_vqa.runtime.precision import Precision, in_float32, pick_device
from benchmarks import clip
from benchmarks.evaluate import evaluate
from benchmarks.network import TEXT_TOKENS, Loss, Variant, flops, make, matrix_peak
from benchmarks.paired import describe_machine, paired, print_table
from benchmarks.step import step

Row = dict[str, object]
Add = Callable[[Row], None]  # keeps a row of a section's findings


@dataclass(frozen=True)
class Sizes:
    """What is measured: names of models, examples in a batch of training (evaluation takes twice as many), repeats."""

    base: str = "beit3_base_patch16_480"
    large: str = "beit3_large_patch16_480"
    base_batch: int = 16
    large_batch: int = 8
    parity: str = "beit3_base_patch16_224"
    clip: str = "clip_vit_large_patch14_lora"
    clip_layers: int | None = None
    rounds: int = 8
    matrix: int = 8192


TINY = "beit3_tiny_patch8_32"
SMALL = Sizes(TINY, "beit3_tiny_patch8_40", 2, 2, TINY, "clip_vit_base_patch32_lora", 1, rounds=1, matrix=256)

SECONDS = 2.0  # of runs of a variant in each of its turns, so that slow cards come to their end too
# As upstream trains: autocast to fp16, an optimizer that isn't fused.
VARIANTS = {
    "torchscale, fp16, AdamW not fused": Variant("reference", "fp16", tuned=True, fused=False),
    "torchscale, bf16, our optimizer": Variant("reference", "bf16", tuned=True),
    "ours, fp16": Variant("auto", "fp16", tuned=True),
    "ours, bf16": Variant("auto", "bf16", tuned=True),
}
# Largest error of an output over the largest output. torchscale's own forward pass errs by as much; in fp32, cuDNN
# computes the patches in TF32 unless it is told not to.
LARGEST_ERROR = {"fp32": 2e-3, "fp16": 1e-2, "bf16": 1e-1}


def wait(device: torch.device) -> None:
    """Wait until the GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a run."""
    wait(device)
    started = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - started


def peak_gib(device: torch.device) -> float | str:
    """Return the peak memory on the GPU since it was last reset, in GiB."""
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else "not measured"


def largest_error(value: Any, exact: Any) -> float:
    """Return the largest difference of two outputs, over the largest of the exact one."""
    difference = (in_float32(value).cpu() - in_float32(exact).cpu()).abs().max()
    return float(difference / exact.float().abs().max())


@torch.no_grad()
def parity(device: torch.device, sizes: Sizes, add: Add) -> None:
    """Compare each head's outputs with torchscale's on the CPU in fp32, in all precisions.

    Raises:
        AssertionError: at the end, if an error is larger than rounding explains.
    """
    wrong = []
    for head in sorted(HEADS.keys() - {"vqav2"}):  # which is vqacustom's
        model, inputs, _ = make(f"{sizes.parity}_{head}", torch.device("cpu"), 2)
        model.eval()
        model.beit3.attention = "auto"
        on_cpu = model(**inputs)
        model.beit3.attention = "reference"
        exact = model(**inputs)
        model.to(device)
        there = {name: value.to(device) for name, value in inputs.items()}
        for name, allowed in LARGEST_ERROR.items():
            precision, found = Precision(name, device), {}
            for attention in ("reference", "auto"):
                model.beit3.attention = attention
                with precision.autocast():
                    found[attention] = model(**there)
            row: Row = {
                "head": head,
                "precision": name,
                "ours against our CPU's": largest_error(found["auto"], on_cpu),
                "ours against torchscale on the GPU": largest_error(found["auto"], found["reference"]),
                "ours against torchscale on the CPU": largest_error(found["auto"], exact),
                "torchscale against itself on the CPU": largest_error(found["reference"], exact),
            }
            add(row)
            if not all(value <= allowed for value in row.values() if isinstance(value, float)):  # NaN is wrong too
                wrong.append(f"{head} in {name}")
    assert not wrong, f"errors larger than rounding explains: {', '.join(wrong)}"


def network(size: str, training: bool, device: torch.device, sizes: Sizes, add: Add) -> None:
    """Time a batch of training or evaluation against torchscale's forward pass under autocast."""
    name, batch = (sizes.base, sizes.base_batch) if size == "base" else (sizes.large, sizes.large_batch)
    batch *= 1 if training else 2
    model, inputs, loss_fn = make(name, device, batch)
    model.train(training)
    tokens = batch * model.tokens(inputs)
    precisions = {name: Precision(name, device) for name in ("fp16", "bf16")}
    peaks = {name: matrix_peak(device, precision.dtype, sizes.matrix) for name, precision in precisions.items()}
    seconds: dict[str, list[float]] = {label: [] for label in VARIANTS}
    memory: dict[str, object] = {}
    work = 0
    for _turn in range(2):  # in turns, since machines drift
        for label, variant in VARIANTS.items():
            run = runner(model, inputs, loss_fn, variant, precisions[variant.precision], training=training)
            try:
                run()  # the first allocates
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                run()
                memory[label] = peak_gib(device)
                seconds[label] += repeated(run, device, sizes.rounds)
                if label == "ours, bf16" and not work:
                    work = flops(run)
            except torch.OutOfMemoryError:  # an answer too
                memory[label] = "more than there is"
                model.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
    medians = {label: statistics.median(times) for label, times in seconds.items() if times}
    first = medians.get(next(iter(VARIANTS)))
    for label, variant in VARIANTS.items():
        row: Row = {"model": name, "batch": batch, "variant": label, "peak memory, GiB": memory[label]}
        if label in medians:
            median = medians[label]
            row |= {"seconds": median, "tokens a second": round(tokens / median)}
            row["matrix peak"] = f"{100 * work / median / peaks[variant.precision]:.0f}%"
            row["times as fast"] = round(first / median, 2) if first else "unknown"
        add(row)


def repeated(run: Callable[[], object], device: torch.device, most: int) -> list[float]:
    """Return the seconds of at most so many runs, at least one and no more than fit into `SECONDS`."""
    times = [timed(run, device)]
    while len(times) < most and sum(times) < SECONDS:
        times.append(timed(run, device))
    return times


def runner(
    model: BEiT3Model,
    inputs: dict[str, Tensor],
    loss_fn: Loss,
    variant: Variant,
    precision: Precision,
    *,
    training: bool,
) -> Callable[[], object]:
    """Return a function that computes a batch as the variant does, with an optimizer of its own."""
    if not training:
        return partial(evaluate, model, inputs, variant, precision)
    ours = make_optimizer(model, OptimConfig()) if variant.fused else torch.optim.AdamW(model.parameters(), lr=5e-4)
    return partial(step, model, inputs, loss_fn, variant, precision, ours)


def attention(device: torch.device, sizes: Sizes, add: Add) -> None:
    """Tell which kernel attention gets, with a mask of padding and without, and whether flash alone would do.

    Raises:
        AssertionError: without a mask, flash attention isn't taken in bf16 or fp16.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.profiler import ProfilerActivity, profile

    model, inputs, _ = make(sizes.base, device, sizes.base_batch)
    heads, length = model.beit3.args.encoder_attention_heads, model.tokens(inputs)
    shape = (sizes.base_batch, heads, length, model.embed_dim // heads)
    image_tokens = length - TEXT_TOKENS
    of_image = inputs["padding_mask"].new_zeros(sizes.base_batch, image_tokens)
    padded = torch.cat([of_image, inputs["padding_mask"]], dim=1)[:, None, None, :] == 0
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    missed = []
    for name in ("bf16", "fp16"):
        q, k, v = torch.randn(3, *shape, device=device, dtype=Precision(name, device).dtype)
        for mask in (None, padded):
            with profile(activities=activities) as seen:
                sdpa(q, k, v, mask)
                wait(device)
            words = ("flash", "fmha", "cudnn", "efficient", "attention")
            kernels = sorted({e.key for e in seen.key_averages() if any(word in e.key.lower() for word in words)})
            alone = "yes"
            try:
                with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                    sdpa(q, k, v, mask)
            except RuntimeError:
                alone = "no"
            seconds = statistics.median(timed(partial(sdpa, q, k, v, mask), device) for _ in range(sizes.rounds + 1))
            masked = "no mask" if mask is None else "a mask of padding"
            add({"precision": name, "mask": masked, "flash can": alone, "seconds": seconds, "kernels": kernels})
            if mask is None and (alone == "no" or not any("flash" in kernel.lower() for kernel in kernels)):
                missed.append(name)
    assert not missed, f"flash attention isn't taken in {', '.join(missed)}"


def said_by(*arguments: str) -> str:
    """Return what a command of the package prints.

    Raises:
        RuntimeError: it failed; with the last that it printed.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = command_line(list(arguments))
    if code:
        raise RuntimeError(f"beit3-vqa {' '.join(arguments)} ended with {code}: {said.getvalue()[-300:]}")
    return said.getvalue()


def prepare(folder: Path, images: int) -> Path:
    """Prepare the questions about so many images of easy-VQA, which comes as a package."""
    data = folder / "data"
    words = ["prepare", "easy_vqa", "--mode", "choices", "--train_images", str(images), "--val_ratio", "0.2"]
    said_by(*words, "--data_path", str(data), "--train_tokenizer", "200")
    return data


def automatic(device: torch.device, sizes: Sizes, add: Add) -> None:
    """Let `--batch_size auto` choose for steps of 64 examples, and try two of them."""
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder), 100)
        words = ["finetune", "--task", "vqacustom", "--model", sizes.base, "--data_path", str(data), "--dry_run"]
        words += ["--batch_size", "auto", "--effective_batch_size", "8" if sizes == SMALL else "64"]
        said = said_by(*words, "--device", device.type, "--num_workers", "0")
    lines = said.splitlines()
    for start in ("--batch_size auto", "training:", "step 1", "memory:"):
        for line in lines:
            if line.startswith(start):
                add({"model": sizes.base, "said": line})
    assert any(line.startswith("step 1") for line in lines), "no step was taken"


def resume(device: torch.device, sizes: Sizes, add: Add) -> None:
    """Train two epochs at once, and in two sessions; compare the weights, and evaluate them.

    Raises:
        AssertionError: the second session doesn't end where the first run ended, up to rounding.
    """
    with tempfile.TemporaryDirectory() as folder:
        data, outs = prepare(Path(folder), 60), {name: Path(folder) / name for name in ("once", "twice")}
        words = ["finetune", "--task", "vqacustom", "--model", TINY, "--vocab_size", "200", "--data_path", str(data)]
        words += ["--epochs", "2", "--batch_size", "32", "--model_ema", "--device", device.type, "--num_workers", "2"]
        said_by(*words, "--output_dir", str(outs["once"]))
        said_by(*words, "--output_dir", str(outs["twice"]), "--stop_after_epochs", "1")
        said = said_by(*words, "--output_dir", str(outs["twice"]))
        assert "1 to go" in said, "the second session didn't go on"
        once, twice = (read_checkpoint(out / "checkpoint-1.pth", "--resume")["model"] for out in outs.values())
        largest = max(float((once[name] - value).abs().max()) for name, value in twice.items())
        accuracies = []
        for out in outs.values():
            said = said_by(*words, "--eval", "--output_dir", str(out), "--split", "val")
            accuracies.append(float(re.findall(r"val accuracy: ([\d.]+)", said)[0]))
        equal = all(torch.equal(once[name], value) for name, value in twice.items())
        add({"bitwise equal": equal, "largest difference of a weight": largest, "accuracies": accuracies})
        assert largest < 1e-2, f"a weight differs by {largest:.2g}"


def compiled(device: torch.device, sizes: Sizes, add: Add) -> None:
    """Time a step with `--compile` and without.

    Raises:
        RuntimeError: the compiler failed.
    """
    precision = Precision("bf16", device)
    model, inputs, loss_fn = make(sizes.parity, device, sizes.base_batch)
    model.train()
    optimizer = make_optimizer(model, OptimConfig())
    run = partial(step, model, inputs, loss_fn, VARIANTS["ours, bf16"], precision, optimizer)
    paired({"warm": run}, 1)
    plain = statistics.median(timed(run, device) for _ in range(sizes.rounds))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        compile_model(model)
        first = timed(run, device)
    if said.getvalue():
        raise RuntimeError(said.getvalue().strip())
    run()
    seconds = statistics.median(timed(run, device) for _ in range(sizes.rounds))
    row: Row = {"model": sizes.parity, "batch": sizes.base_batch, "seconds": plain, "seconds compiled": seconds}
    add({**row, "times as fast": round(plain / seconds, 2), "first step, seconds": first})


def of_clip(device: torch.device, sizes: Sizes, add: Add) -> None:
    """Time CLIP with adapters against a script that repeats the image for each option; compare their logits."""
    precision = Precision("fp16" if device.type == "cuda" else "bf16", device)
    model = clip.make_model(sizes.clip, device, precision, sizes.clip_layers)
    questions = sizes.base_batch
    inputs = clip.make_inputs(model, questions, questions, device)
    labels = torch.randint(0, clip.OPTIONS, (questions,), device=device)
    optimizer = make_optimizer(model, OptimConfig(lr=1e-4, layer_decay=1.0))
    logits = {name: clip.evaluate(way, model.eval(), inputs, precision) for name, way in clip.WAYS.items()}
    error = largest_error(logits["ours"], next(iter(logits.values())))
    for training in (False, True):
        model.train(training)
        ways: dict[str, Callable[[], object]] = {
            name: partial(clip.train, way, model, inputs, labels, precision, optimizer)
            if training
            else partial(clip.evaluate, way, model, inputs, precision)
            for name, way in clip.WAYS.items()
        }
        medians = {name: statistics.median(times) for name, times in paired(ways, sizes.rounds).items()}
        reference, ours = medians.values()
        row: Row = {"model": sizes.clip, "precision": precision.name, "questions": questions}
        row |= {"what": "training step" if training else "evaluation", "image repeated, seconds": reference}
        add({**row, "ours, seconds": ours, "times as fast": round(reference / ours, 2), "error of a logit": error})
    assert error < LARGEST_ERROR["bf16"], f"logits differ by {error:.2g}"


@dataclass(frozen=True)
class Section:
    """What is measured, and the seconds that it may take."""

    measure: Callable[[torch.device, Sizes, Add], None]
    seconds: int


SECTIONS = {
    "parity": Section(parity, 60),
    "attention": Section(attention, 25),
    "training base": Section(partial(network, "base", True), 50),
    "training large": Section(partial(network, "large", True), 65),
    "evaluation base": Section(partial(network, "base", False), 35),
    "evaluation large": Section(partial(network, "large", False), 45),
    "batch size auto": Section(automatic, 45),
    "resume": Section(resume, 50),
    "compile": Section(compiled, 60),
    "clip": Section(of_clip, 33),
}
MINUTES = 7.8


def measure_here(name: str, options: argparse.Namespace) -> None:
    """Measure a section in this process, a line of JSON for each row in `--rows`."""
    tune_allocator()
    with options.rows.open("a", encoding="utf-8") as file:

        def add(row: Row) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        SECTIONS[name].measure(pick_device(options.device), SMALL if options.small else Sizes(), add)


def measure(name: str, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a section in a process of its own that may take so many seconds.

    Returns:
        Its `rows`, its `error` (empty if there was none), the `seconds` that it took and those of its `budget`.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        rows.touch()
        command = [sys.executable, "-m", "benchmarks.gpu", "--section", name, "--rows", str(rows)]
        command += ["--device", options.device, *(["--small"] if options.small else [])]
        started, error = time.monotonic(), ""
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, seconds))
            if ended.returncode:
                error = ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else f"exit {ended.returncode}"
        except subprocess.TimeoutExpired:
            error = f"not done after {seconds:.0f} seconds"
        lines = rows.read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be half a line
        took = round(time.monotonic() - started, 1)
    return {"rows": found, "error": error, "seconds": took, "budget": round(seconds)}


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """Return the machine, the device that was measured, and whether the sizes are the real ones."""
    device = pick_device(options.device)
    sizes = SMALL if options.small else Sizes()
    found: dict[str, Any] = {**describe_machine(), "device": device.type, "small": options.small, **asdict(sizes)}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {"card": card.name, "memory, GiB": round(card.total_memory / 2**30, 1), "CUDA": torch.version.cuda}
    return found


def table(sections: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Return one table of all sections: a line for each row, and one for each error."""
    lines: list[Row] = []
    for name, section in sections.items():
        for row in section["rows"]:
            values = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in row.items()}
            lines.append({"section": name, "found": ", ".join(f"{key} {value}" for key, value in values.items())})
        if section["error"]:
            lines.append({"section": name, "found": f"FAILED: {section['error']}"})
    return lines


def main() -> int:
    """Run `python -m benchmarks.gpu`; return 0, 1 if a section failed, or 2 if there is no such device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", default="cuda", help="as of finetune")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script: its figures mean nothing")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="sections")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all sections")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="JSON file")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section:
        measure_here(options.section, options)
        return 0
    end = time.monotonic() + 60 * options.minutes
    try:
        found: dict[str, Any] = {"machine": describe(options), "sections": {}}
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    for name in options.only:
        left = end - time.monotonic()
        found["sections"][name] = measure(name, min(SECTIONS[name].seconds, left), options)
        options.output.write_text(json.dumps(found, indent=2) + "\n")  # each time: what is done is kept
        print(f"{name}: {found['sections'][name]['error'] or 'done'}", file=sys.stderr)
    print_table(table(found["sections"]))
    return int(any(section["error"] for section in found["sections"].values()))


if __name__ == "__main__":
    sys.exit(main())
