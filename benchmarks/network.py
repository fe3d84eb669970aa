"""What `step` and `evaluate` share: a model, a ragged batch, the variants, floating-point operations."""

import argparse
import ctypes
import inspect
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from beit3_vqa.models.beit3.model import BEiT3Model
from beit3_vqa.models.names import HEADS, build_model, parse_name
from beit3_vqa.runtime.precision import Precision
from beit3_vqa.tasks.losses import contrastive_loss

CLASSES = 4
MASKED = 0.6  # of a caption's tokens
NOT_GIVEN = {"text_len", "incremental_state", "only_infer", "language_masked_pos", "image_of"}
TEXT_TOKENS = 32
PEAK_SIZE = 3072
PEAK_SECONDS = 3.0


@dataclass(frozen=True)
class Variant:
    """How the same weights are computed.

    Attributes:
        attention: as `--attention`; `reference` is torchscale's own forward pass.
        precision: as `--precision`.
        tuned: whether the CPU's allocator keeps freed memory.
        fused: whether AdamW is the fused one; upstream's isn't.
    """

    attention: str
    precision: str
    tuned: bool
    fused: bool = True


def variants(device: torch.device, precisions: list[str]) -> dict[str, Variant]:
    """Return upstream as it is and, for each precision, upstream's forward pass with all else ours, and ours."""
    found = {"reference, fp32, as upstream ships it": Variant("reference", "fp32", tuned=False, fused=False)}
    for precision in precisions:
        found[f"reference, {precision}, allocator and optimizer ours"] = Variant("reference", precision, tuned=True)
        found[f"ours, {precision}"] = Variant("auto", precision, tuned=True)
    return found


def set_allocator(tuned: bool) -> None:
    """Set glibc's allocator as `runtime.host` tunes it, or as it comes: 65,536 maps, 128 KiB trimmed, no padding."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except OSError:
        return
    # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD.
    for number, ours, default in ((-4, 0, 65536), (-1, 2**31 - 1, 128 * 1024), (-2, 64 * 2**20, 0)):
        mallopt(number, ours if tuned else default)


Loss = Callable[[Tensor], Tensor]


def make(name: str, device: torch.device, batch: int) -> tuple[BEiT3Model, dict[str, Tensor], Loss]:
    """Make a model with random weights, inputs as the loader gives them, and its head's loss.

    Texts have 8 to 32 tokens. A name without a head means vqacustom's. The names of the inputs are those of the
    parameters of the model's forward pass.
    """
    torch.manual_seed(0)
    parsed = parse_name(name, head="vqacustom")
    classes = {"num_classes": CLASSES} if HEADS[parsed.head].num_classes else {}
    model = build_model(parsed, drop_path_rate=0.1, **classes).to(device)
    shape = (batch, 3, model.img_size, model.img_size)
    text = torch.randint(4, 64000, (batch, TEXT_TOKENS), device=device)
    lengths = torch.linspace(TEXT_TOKENS, 8, batch, device=device).long()
    padding = (torch.arange(TEXT_TOKENS, device=device) >= lengths[:, None]).long()
    masked = (torch.rand(text.shape, device=device) < MASKED) & (padding == 0)
    given = {"padding_mask": padding, "masked_places": masked.flatten().nonzero().squeeze(1)}
    inputs = {}
    for keyword in (name for name in inspect.signature(model.forward).parameters if name not in NOT_GIVEN):
        if keyword.startswith("image"):
            inputs[keyword] = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        else:
            inputs[keyword] = given.get(keyword, text)
    if parsed.head == "retrieval":
        return model, inputs, contrastive_loss
    labels = text[masked] if parsed.head == "captioning" else torch.randint(0, CLASSES, (batch,), device=device)
    return model, inputs, lambda logits: nn.functional.cross_entropy(logits, labels)


def flops(run: Callable[[], object]) -> int:
    """Count the floating-point operations of the matrix products in `run`, those inside attention among them."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

    def forward(*shapes: object, **_: object) -> int:
        return int(sdpa_flop(*shapes[:3]))

    def backward(_grad: object, *shapes: object, **_kwargs: object) -> int:
        return 2 * forward(*shapes)  # what the kernel computes once more isn't counted

    # torch counts the fused kernels of GPUs, and not that of CPUs.
    cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counted = {cpu: forward, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        run()
    total: int = counter.get_total_flops()
    return total


def matrix_peak(device: torch.device, dtype: torch.dtype, size: int = PEAK_SIZE) -> float:
    """Measure floating-point operations per second of a large matrix product, the best of a few seconds."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, until = 0.0, time.perf_counter() + PEAK_SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def shares_of_peak(
    seconds: Mapping[str, Sequence[float]], work: int, wanted: Mapping[str, Variant], device: torch.device
) -> dict[str, str]:
    """Return, for each variant, the share of the matrix peak of its precision that it reaches.

    Args:
        seconds: times of each variant.
        work: floating-point operations of a run, the same for all.
        wanted: the variants.
        device: where they ran.
    """
    shares = {}
    for label, variant in wanted.items():
        peak = matrix_peak(device, Precision(variant.precision, device).dtype)
        shares[label] = f"{100 * work / statistics.median(seconds[label]) / peak:.0f}%"
    return shares


def network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `step` and `evaluate` share."""
    parser.add_argument("--model", default="beit3_base_patch16_480", help="name with a head, or without: vqacustom's")
    parser.add_argument("--batch_size", type=int, default=2, help="examples in a batch")
    parser.add_argument("--device", default="auto", help="as of finetune")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16"], help="beside fp32; default: what the hardware computes faster"
    )


def find_precisions(wanted: str | None, device: torch.device) -> list[str]:
    """Return fp32 and the precision that is wanted or, if none is, that the hardware computes faster."""
    return list(dict.fromkeys(["fp32", Precision(wanted or "auto", device).name]))
