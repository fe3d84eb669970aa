"""How long training waits for a checkpoint: one that a thread writes from a copy, and one that it writes itself.

Run `python -m benchmarks.saving`. The checkpoints are those to go on from: weights and AdamW's moments. Their folder is
in TMPDIR, whose disk decides how long writing takes.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from beit3_vqa.cli.main import main as run
from beit3_vqa.engine.checkpoint.save import Saver
from beit3_vqa.runtime import memory
from benchmarks.paired import arguments, report
from benchmarks.startup import VOCAB, make_data

STEPS = 4  # between two checkpoints


def main() -> None:
    """Run `python -m benchmarks.saving`."""
    parser = arguments(__doc__ or "", rounds=4)
    parser.add_argument("--model", default="beit3_base_patch16_224", help="which is trained")
    options = parser.parse_args()
    waits: list[float] = []
    save_step = Saver.save_step

    def timed(saver: Saver) -> None:
        began = time.perf_counter()
        save_step(saver)
        waits.append(time.perf_counter() - began)

    Saver.save_step = timed  # type: ignore[method-assign]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        # The last checkpoint is written after the last step, where there is nothing to go on with.
        steps = STEPS * options.rounds + 1
        data = make_data(Path(name), 2 * steps)
        for kind, flags in {"a thread": [], "training": ["--no_async_save"]}.items():
            out = Path(name) / "out"
            words = ["finetune", "--task", "vqacustom", "--model", options.model, "--vocab_size", VOCAB]
            words += ["--data_path", str(data), "--output_dir", str(out), "--no_auto_resume", "--batch_size", "2"]
            words += ["--epochs", "1", "--save_steps", str(STEPS), "--stop_after_epochs", "1", *flags]
            waits.clear()
            began = time.perf_counter()
            peak = memory.measure_peak(lambda words=words: run(words), torch.device("cpu"))
            rows.append(
                {
                    "written by": kind,
                    "training waits (s)": round(statistics.median(waits), 2),
                    "checkpoint (GB)": round((out / "checkpoint-0.pth").stat().st_size / 1e9, 2),
                    "whole run (s)": round(time.perf_counter() - began, 1),
                    "peak (GiB)": round(peak / 2**30, 2),
                }
            )
    report(f"checkpoints every {STEPS} steps of 2, {options.model}", rows, options.output)


if __name__ == "__main__":
    main()
