"""How long a command line takes: to answer before it computes anything, and to come to the first training step."""

import argparse
import csv
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from beit3_vqa.models.names import build_model
from benchmarks.paired import arguments, paired, report

COMMANDS = {
    "beit3-vqa --help": ["-m", "beit3_vqa", "--help"],
    "run_beit3_finetuning.py --help": ["run_beit3_finetuning.py", "--help"],
    "import torch": ["-c", "import torch"],
    "python -c pass": ["-c", "pass"],
}
VOCAB = "300"
STEP = "ex/s"  # in the progress line, which comes after the first step


def make_data(folder: Path, rows: int) -> Path:
    """Prepare so many questions about one picture; return the folder of the index."""
    table, data = folder / "train.csv", folder / "data"
    Image.new("RGB", (640, 480), "teal").save(folder / "0.jpg")
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "img_path", "Question", "A", "B", "C", "D", "answer"])
        for number in range(rows):
            writer.writerow([number, "0.jpg", f"What is number {number}?", "red", "blue", "green", "grey", "A"])
    prepare = ["prepare", "choices", "--train", table, "--image_root", folder, "--data_path", data]
    words = [sys.executable, "-m", "beit3_vqa", *map(str, prepare), "--train_tokenizer", VOCAB, "--val_ratio", "0"]
    subprocess.run(words, check=True, capture_output=True)
    return data


def time_first_step(options: argparse.Namespace) -> None:
    """Train from pretrained weights until the first step is done; report when each line of the output came."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_data(folder, options.rows)
        weights = folder / "weights.pth"
        torch.save({"model": build_model(f"{options.model}_vqacustom", vocab_size=int(VOCAB)).state_dict()}, weights)
        command = ["finetune", "--task", "vqacustom", "--model", options.model, "--vocab_size", VOCAB]
        command += ["--finetune", str(weights), "--data_path", str(data), "--output_dir", str(folder / "out")]
        command += ["--epochs", "1", "--batch_size", "2", "--log_interval", "0"]
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "beit3_vqa", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdout
        rows = []
        for line in process.stdout:
            rows.append({"line": line.strip()[:90], "seconds": round(time.perf_counter() - started, 2)})
            if STEP in line:
                break
        else:
            raise RuntimeError("\n".join(str(row["line"]) for row in rows))
        os.killpg(process.pid, signal.SIGKILL)  # with its workers
        process.wait()
    report(f"the first step, {options.model}, {options.rows:,} rows", rows, options.output)


def main() -> None:
    """Run `python -m benchmarks.startup`, in the folder of the launcher."""
    parser = arguments(__doc__ or "", rounds=7)
    parser.add_argument("--rows", type=int, default=100_000, help="questions in the index of the first step")
    parser.add_argument("--model", default="beit3_base_patch16_480", help="which the first step trains")
    options = parser.parse_args()
    runs = {
        name: lambda command=command: subprocess.run([sys.executable, *command], capture_output=True, check=True)
        for name, command in COMMANDS.items()
    }
    seconds = paired(runs, options.rounds)
    rows = [{"command": name, "seconds": round(statistics.median(values), 3)} for name, values in seconds.items()]
    report("start-up", rows, options.output)
    time_first_step(options)


if __name__ == "__main__":
    main()
