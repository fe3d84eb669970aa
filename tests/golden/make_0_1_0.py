"""Make `files_of_0_1_0/`: what version 0.1.0 wrote, which every later version reads, goes on with and agrees with.

A prepared folder, a training that stopped after the first of its two epochs, the results of that epoch's checkpoint,
and what the second epoch made of the weights. It was run with the code of 0.1.0 (commit 595c452) beside it, in an
empty folder, on one thread, and isn't run again:

    mkdir ../0.1.0 && git archive 595c452 | tar x -C ../0.1.0
    mkdir made && cd made
    OMP_NUM_THREADS=1 PYTHONPATH=../../0.1.0 python ../tests/golden/make_0_1_0.py ../tests/golden/files_of_0_1_0

The model is of width 6, so that its checkpoint is small; the files know nothing of that but its name, so whoever reads
them makes `SIZES["tiny"]` as narrow.
"""

import csv
import hashlib
import json
import lzma
import os
import platform
import random
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

WIDTH, LAYERS, HEADS = 6, 2, 2
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 220, 40)}
TEMPLATES = ("Which colour is the picture?", "What colour do you see?", "무슨 색입니까?")
PREPARE = ["prepare", "choices", "--train", "train.csv", "--test", "test.csv", "--image_root", "images"]
PREPARE += ["--data_path", "data", "--val_ratio", "0.3", "--train_tokenizer", "200"]
TRAIN = ["finetune", "--task", "vqacustom", "--model", "beit3_tiny_patch8_32", "--vocab_size", "200"]
TRAIN += ["--data_path", "data", "--output_dir", "run", "--device", "cpu", "--precision", "fp32", "--num_workers", "0"]
TRAIN += ["--seed", "3", "--epochs", "2", "--batch_size", "4", "--update_freq", "2", "--lr", "2e-3", "--randaug"]
TRAIN += ["--drop_path", "0.2", "--clip_grad", "1", "--model_ema", "--model_ema_decay", "0.9"]
EVALUATE = ["finetune", "--eval", "--resume", "run/checkpoint-0.pth", "--data_path", "data", "--device", "cpu"]
EVALUATE += ["--precision", "fp32", "--num_workers", "0", "--output_dir", "results"]
SCORE = ["evaluate", "results/predictions.json", "--answers", "answers.csv"]
# Of a larger tensor the first rows are kept: the others are positions that no text reaches, and rare words.
KEPT_ROWS = 40


def machine() -> dict[str, str]:
    """What numbers may hang on to the last bit: the libraries, and what the processor can do."""
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text().splitlines() if processor.exists() else [platform.processor()]
    about = sorted({line for line in lines if line.startswith(("flags", "model name"))})
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "processor": hashlib.sha256("\n".join(about).encode()).hexdigest(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def write_sources() -> None:
    """Images of one colour with some noise, and questions about them."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    Path("images").mkdir()
    rows = []
    for number in range(18):
        name = f"{number:02}.png"
        colour = list(COLOURS)[number % len(COLOURS)]
        pixels = np.array(COLOURS[colour]) + noise.integers(-25, 25, (6, 8, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(f"images/{name}")
        for question in TEMPLATES[: 1 + number % 3]:
            options = rng.sample(list(COLOURS), len(COLOURS))
            rows.append((number, [name, question, *options], "ABCD"[options.index(colour)]))
    header = ["ID", "img_path", "Question", *"ABCD"]
    tables = {"train": [header + ["answer"]], "test": [header], "answers": [["ID", "answer"]]}
    for place, (number, row, answer) in enumerate(rows):
        if number < 13:
            tables["train"].append([f"train_{place}", *row, answer])
        else:
            tables["test"].append([f"test_{place}", *row])
            tables["answers"].append([f"test_{place}", answer])
    for name, table in tables.items():
        with Path(f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(table)


def tensors(content: object, prefix: str = ""):
    """(name, tensor) of everything that is learned in a checkpoint: weights, moving average, moments."""
    if isinstance(content, torch.Tensor):
        yield prefix, content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from tensors(value, f"{prefix}/{name}" if prefix else str(name))


def learned(path: Path) -> dict[str, np.ndarray]:
    """Those tensors of a checkpoint file, and the state of the random generator."""
    content = torch.load(path)
    groups = {name: content[name] for name in ("model", "model_ema", "random_state")}
    groups["optimizer"] = content["optimizer"]["state"]
    return {name: value.numpy() for name, value in tensors(groups)}


def digests(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """SHA-256 of each group of tensors: names, types, shapes and numbers."""
    found: dict[str, Any] = {}
    for name in sorted(arrays):
        about = f"{name} {arrays[name].dtype} {arrays[name].shape} "
        found.setdefault(name.split("/")[0], hashlib.sha256()).update(about.encode() + arrays[name].tobytes())
    return {group: sha.hexdigest() for group, sha in found.items()}


def compared(arrays: dict[str, np.ndarray]) -> list[str]:
    """The weights and averages that are kept as numbers too, for other machines than the one that made them.

    A key's bias changes no attention: what Adam makes of its gradient is rounding errors alone.
    """
    return [name for name in sorted(arrays) if name.startswith("model") and not re.search(r"k_proj\..*bias", name)]


def kept(array: np.ndarray) -> np.ndarray:
    """What is kept of one of them."""
    return array[:KEPT_ROWS].reshape(-1)


def main(target: Path) -> None:
    """Run 0.1.0 in the current folder and keep in `target` what is to be read later."""
    from beit3_vqa.models.registry import SIZES, Size

    import beit3_vqa
    from beit3_vqa.cli import main as command

    assert beit3_vqa.__version__ == "0.1.0"
    assert torch.get_num_threads() == 1
    SIZES["tiny"] = Size(embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS)

    def run(*arguments: str) -> None:
        assert command(arguments) == 0, arguments

    write_sources()
    run(*PREPARE)
    run(*TRAIN, "--stop_after_epochs", "1")
    run(*EVALUATE, "--split", "val")
    run(*EVALUATE)
    run(*SCORE, "--json", "results/score.json")
    target.mkdir()
    for name in ("images", "data", "results"):
        shutil.copytree(name, target / name)
    (target / "run").mkdir()
    for name in ("train.csv", "test.csv", "answers.csv", "run/config.json", "run/log.txt", "run/checkpoint-0.json"):
        shutil.copy(name, target / name)
    for name in ("run/checkpoint-0.pth", "data/tokenizer.spm"):
        packed = lzma.compress(Path(name).read_bytes(), preset=9 | lzma.PRESET_EXTREME)
        (target / f"{name}.xz").write_bytes(packed)
    (target / "data/tokenizer.spm").unlink()
    assert Path("run/tokenizer.spm").read_bytes() == Path("data/tokenizer.spm").read_bytes()

    run(*TRAIN)
    whole = learned(Path("run/checkpoint-1.pth"))
    Path("run").rename("resumed")
    run(*TRAIN)
    assert digests(learned(Path("run/checkpoint-1.pth"))) == digests(whole)
    weights = np.concatenate([kept(whole[name]) for name in compared(whole)])
    (target / "oracle.f32.xz").write_bytes(lzma.compress(weights.tobytes(), preset=9))
    oracle = {
        "machine": machine(),
        "sha256": digests(whole),
        "log": json.loads(Path("run/log.txt").read_text().splitlines()[-1]),
    }
    (target / "oracle.json").write_text(json.dumps(oracle, indent=1) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{size:,} bytes in {target}")


if __name__ == "__main__":
    assert not os.listdir(), "run it in an empty folder"  # noqa: PTH208
    main(Path(sys.argv[1]).resolve())
