"""How time and memory grow: with rows, image size, text length, options, processes. `python -m benchmarks.growth`.

The slope is the exponent of the growth since the line before: 1 is linear, 2 quadratic.
"""

import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from beit3_vqa.data.rows import read_prepared_rows
from beit3_vqa.models.names import build_model
from beit3_vqa.runtime import memory
from beit3_vqa.runtime.files import file_sha256
from beit3_vqa.runtime.host import tune_allocator
from beit3_vqa.runtime.precision import Precision
from benchmarks.data import write_index
from benchmarks.paired import arguments, report

CPU = torch.device("cpu")
Point = tuple[int, float, float]  # the size, seconds, GiB

ROWS = (1_000, 10_000, 100_000, 1_000_000)
SIDES = (128, 224, 320, 480)  # pixels
TEXTS = (16, 64, 128, 256)  # tokens
OPTIONS = (2, 4, 8)
PROCESSES = (1, 2, 3)
EXAMPLES = 2  # in a forward pass
TINY = ["--model", "beit3_tiny_patch8_32", "--vocab_size", "200", "--batch_size", "16", "--num_workers", "0"]


def measure(run: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the median seconds of a run, and the memory in GiB that it takes beside what was in use before."""
    before = memory.in_use(CPU)
    peak = memory.measure_peak(run, CPU)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), (peak - before) / 2**30


def of_rows(rounds: int) -> Iterator[Point]:
    """Open an index that `prepare` wrote."""
    for count in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vqacustom.train.jsonl"
            write_index(path, count)
            checksum = file_sha256(path)
            yield count, *measure(lambda path=path, checksum=checksum: read_prepared_rows(path, checksum), rounds)


def forward(side: int, tokens: int, examples: int) -> Callable[[], Tensor]:
    """Return a forward pass of base at so many pixels, with texts of so many tokens."""
    torch.manual_seed(0)
    model = build_model(f"beit3_base_patch16_{side}_vqacustom").eval()
    image = torch.randint(0, 256, (examples, 3, side, side), dtype=torch.uint8)
    text, padding = torch.randint(4, 64000, (examples, tokens)), torch.zeros(examples, tokens, dtype=torch.long)

    @torch.no_grad()
    def run() -> Tensor:
        with Precision("auto", CPU).autocast():
            logits: Tensor = model(image, text, padding_mask=padding)
            return logits

    return run


def of_sides(rounds: int) -> Iterator[Point]:
    """Compute images of more pixels; the size is the number of tokens."""
    for side in SIDES:
        yield (side // 16) ** 2 + 1 + TEXTS[0], *measure(forward(side, TEXTS[0], EXAMPLES), rounds)


def of_texts(rounds: int) -> Iterator[Point]:
    """Compute longer texts, at 224 pixels; the size is the number of tokens, the image's among them."""
    for tokens in TEXTS:
        yield (224 // 16) ** 2 + 1 + tokens, *measure(forward(224, tokens, EXAMPLES), rounds)


def of_options(rounds: int) -> Iterator[Point]:
    """Score more options of a question one by one, as `vqarank` does, at 224 pixels."""
    for options in OPTIONS:
        yield options, *measure(forward(224, TEXTS[0], options), rounds)


def of_processes(_rounds: int) -> Iterator[Point]:
    """Train a tiny model in several processes (gloo): seconds for 1,000 examples, GiB of the first process."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        prepare = ["prepare", "easy_vqa", "--mode", "choices", "--train_images", "100", "--train_tokenizer", "200"]
        _call("beit3_vqa", *prepare, "--val_ratio", "0.1", "--data_path", str(data))
        for processes in PROCESSES:
            out = Path(folder) / str(processes)
            train = ["finetune", "--task", "vqacustom", *TINY, "--data_path", str(data), "--output_dir", str(out)]
            launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m", "beit3_vqa"]
            said = _call(*launcher, *train, "--device", "cpu", "--epochs", "2", "--log_interval", "0")
            last = json.loads((out / "log.txt").read_text(encoding="utf-8").splitlines()[-1])
            yield processes, 1000 / last["examples_per_second"], float(re.findall(r"memory ([\d.]+) GiB", said)[-1])


def _call(module: str, *words: str) -> str:
    return subprocess.run([sys.executable, "-m", module, *words], check=True, capture_output=True, text=True).stdout


KINDS: dict[str, Callable[[int], Iterator[Point]]] = {
    "rows of an index": of_rows,
    "tokens of larger images": of_sides,
    "tokens of longer texts": of_texts,
    "options": of_options,
    "processes": of_processes,
}


def main() -> None:
    """Run `python -m benchmarks.growth`."""
    parser = arguments(__doc__ or "", rounds=5)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS), help="kinds of growth")
    options = parser.parse_args()
    tune_allocator()
    for kind in options.only:
        rows: list[dict[str, object]] = []
        last: Point | None = None
        for size, seconds, gib in KINDS[kind](options.rounds):
            slope = math.log(seconds / last[1]) / math.log(size / last[0]) if last else "-"
            last = size, seconds, gib
            rows.append({kind: size, "seconds": seconds, "slope": slope, "GiB": round(gib, 3)})
        report(f"growth with {kind}", rows, options.output)


if __name__ == "__main__":
    main()
