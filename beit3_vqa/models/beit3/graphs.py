"""Write BEiT-3 as a graph, for onnxruntime or `torch.export.load`, and check it against the model's own logits.

Shapes: B examples, T text tokens, S side of the image in pixels. B and T may differ from call to call.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from beit3_vqa.data.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from beit3_vqa.errors import InputError
from beit3_vqa.models.beit3.model import MAX_TEXT_TOKENS, BEiT3ForVisualQuestionAnswering
from beit3_vqa.models.beit3.processor import BEiT3Processor

logger = logging.getLogger(__name__)

ONNX_FILE, PT2_FILE = "model.onnx", "model.pt2"
NEEDED = ("onnx", "onnxscript")  # by torch's exporter; onnxruntime only checks
TOLERANCE = 1e-4  # largest difference of a logit, over the largest logit if that is more than 1
FIRST_WORD = UNK_ID
# (examples, tokens) of the batches that a graph is checked on: alone, short, long, padded.
CHECKED = ((1, 12), (2, 5), (3, 40))

Run = Callable[[dict[str, Tensor]], Tensor]


def require_packages(formats: Sequence[str]) -> None:
    """Raise InputError if a package that a format needs isn't installed, or torch is too old for it."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7):
        wanted = " ".join(formats)
        raise InputError(
            f"--format {wanted}: needs torch 2.7, whose exporter leaves sizes open; this is {torch.__version__}."
        )
    absent = [name for name in NEEDED if find_spec(name) is None] if "onnx" in formats else []
    if absent:
        raise InputError(f'--format onnx needs {" and ".join(absent)}: pip install "beit3_vqa[onnx]".')


def export_graphs(model: BEiT3ForVisualQuestionAnswering, folder: Path, formats: Sequence[str]) -> None:
    """Write `model.onnx`, `model.pt2` or both, and print how far their logits are from the model's.

    Args:
        model: its weights loaded, in float32 on the CPU.
        folder: for the files.
        formats: `onnx`, `pt2`, or both.

    Raises:
        InputError: a package is missing, or a graph gives other logits than the model.
    """
    require_packages(formats)
    model.eval()
    batches = [_batch(model, examples, tokens) for examples, tokens in CHECKED]
    # The shortest text is `<s>` and `</s>`.
    names = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("tokens", min=2, max=MAX_TEXT_TOKENS)}
    shapes = {"image": {0: names[0]}, "question": names, "padding_mask": names}
    with torch.no_grad(), _plain_attention(model):
        program = torch.export.export(model, (), batches[1], dynamic_shapes=shapes)
        if "pt2" in formats:
            torch.export.save(program, folder / PT2_FILE)
            loaded = torch.export.load(folder / PT2_FILE).module()
            _check(PT2_FILE, model, batches, lambda batch: loaded(**batch))
        if "onnx" in formats:
            with warnings.catch_warnings():
                # The inputs share their axes, of which the exporter says that a name is used once.
                warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
                torch.onnx.export(
                    program,
                    (),
                    folder / ONNX_FILE,
                    kwargs=batches[1],
                    input_names=list(shapes),
                    output_names=["logits"],
                    dynamic_shapes=shapes,
                    dynamo=True,
                    external_data=True,  # a protobuf file holds 2 GB at most
                    verbose=False,
                )
            if find_spec("onnxruntime") is None:
                logger.warning(f"{ONNX_FILE}: not checked, since onnxruntime isn't installed")
            else:
                _check(ONNX_FILE, model, batches, _onnxruntime(folder / ONNX_FILE))


@contextmanager
def _plain_attention(model: BEiT3ForVisualQuestionAnswering) -> Iterator[None]:
    """Attend by PyTorch's own operator while a graph is made: `auto` looks at sizes, which a graph leaves open."""
    before, model.beit3.attention = model.beit3.attention, "sdpa"
    try:
        yield
    finally:
        model.beit3.attention = before


def _batch(model: BEiT3ForVisualQuestionAnswering, examples: int, tokens: int) -> dict[str, Tensor]:
    """Return inputs of noise and random words; each text is a token shorter than the one before."""
    draw = torch.Generator().manual_seed(examples)
    words = torch.randint(FIRST_WORD, model.vocab_size, (examples, tokens), generator=draw)
    ends = tokens - 1 - torch.arange(examples)[:, None]  # where `</s>` stands
    places = torch.arange(tokens)
    words[:, 0] = BOS_ID
    words = words.masked_fill(places == ends, EOS_ID).masked_fill(places > ends, PAD_ID)
    image = torch.rand(examples, 3, model.img_size, model.img_size, generator=draw) * 2 - 1
    return {"image": image, "question": words, "padding_mask": (places > ends).long()}


def _onnxruntime(path: Path) -> Run:
    session = import_module("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(batch: dict[str, Tensor]) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {name: value.numpy() for name, value in batch.items()})[0])

    return run


def _check(name: str, model: BEiT3ForVisualQuestionAnswering, batches: list[dict[str, Tensor]], run: Run) -> None:
    """Print the largest difference between a graph's logits and the model's.

    Raises:
        InputError: it is more than `TOLERANCE`.
    """
    ours = [model(**batch) for batch in batches]
    largest = max(float((run(batch) - logits).abs().max()) for batch, logits in zip(batches, ours, strict=True))
    scale = max(1.0, *(float(logits.abs().max()) for logits in ours))
    if not largest <= TOLERANCE * scale:
        raise InputError(f"{name}: its logits are {largest:.1e} from the model's, so it wasn't kept. Is torch current?")
    rows = sum(examples for examples, _ in CHECKED)
    logger.info(f"{name}: its logits are within {largest:.1e} of the model's, on {rows} rows of {len(CHECKED)} lengths")


def describe_inputs(processor: BEiT3Processor) -> dict[str, object]:
    """Return in plain data how an image and a question become the inputs of the graphs."""
    return {
        "inputs": {
            "image": "float32 (batch, 3, size, size), RGB, normalised",
            "question": "int64 (batch, tokens), token ids",
            "padding_mask": "int64 (batch, tokens), 1 at padding, 0 at tokens",
        },
        "outputs": {"logits": "float32 (batch, answers)"},
        "image": {
            "size": processor.size,
            "resize": "upright (EXIF), RGB, the whole image to size x size, bicubic, antialiased as Pillow's",
            "scale": 1 / 255,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "text": {
            "tokenizer": "tokenizer.spm",
            "ids": "SentencePiece's id 0 -> unk, any other -> itself + 1; bos before the text, eos after it",
            "bos": BOS_ID,
            "pad": PAD_ID,
            "eos": EOS_ID,
            "unk": UNK_ID,
            "max_tokens": processor.max_tokens,
            "prompt_template": processor.prompt.naming_each(),
            "too_long": "cut the question at its end, never the options",
        },
    }
