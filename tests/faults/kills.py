"""Kills a training run with SIGKILL at random moments until it has been killed often enough, restarting it each time.

    python -m tests.faults.kills --data DIR --out DIR --kills 50

Every life is a process of its own, forked from one that has imported torch and computed nothing, so that it begins in a
fraction of a second. Where a run ends before all kills are spent, another begins. At the end each run's checkpoints,
log and predictions are compared with those of a run that nobody disturbed; any difference is an error.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from beit3_vqa.cli.main import main
from tests.helpers.commands import CLIP, TINY

# Seconds that a life may last after training begins; one in five ends somewhere before that.
LONGEST = 2.0
DIFFERS_ANYWAY = {"examples_per_second"}


def command(data: Path, out: Path, epochs: int, clip: Path | None) -> list[str]:
    """A run with everything on that must come back: average, accumulation, validations inside epochs, randomness."""
    flags = "--batch_size 3 --update_freq 2 --save_steps 2 --eval_steps 3 --model_ema --num_workers 1 --randaug"
    flags += f" --keep_checkpoints 3 --log_interval 0 --max_hours 100 --epochs {epochs}"
    if clip is None:
        model = [*TINY, "--drop_path", "0.2"]
    else:
        model = ["--model", f"{CLIP.name}_lora", "--pretrained", str(clip), "--lora_rank", "4", "--lora_dropout", "0.1"]
        model += ["--device", "cpu", "--precision", "fp32"]
    return ["finetune", *model, "--data_path", str(data), "--output_dir", str(out), *flags.split()]


def life(arguments: list[str], log: Path) -> int:
    """Starts the command in a process, and group, of its own; returns its number."""
    process = os.fork()
    if process:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(process, process)  # here too: the life may be killed before it comes to that itself
        return process
    os.setpgrp()
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    os._exit(main(arguments))


def lives(arguments: list[str], out: Path, log: Path, kills: int, rng: random.Random) -> Counter:
    """One run from its beginning to its end, killed up to so many times; counts where it was hit."""
    hit: Counter = Counter()
    while True:
        log.touch()
        said = log.stat().st_size
        born = time.monotonic()
        process = life(arguments, log)
        dies_early, rest = rng.random() < 0.2, rng.uniform(0, LONGEST)
        if hit.total() >= kills:
            dies_early, rest = False, 600.0
        training_since = 0.0
        while (ended := os.waitpid(process, os.WNOHANG))[0] == 0:
            now = time.monotonic()
            if not training_since and b"\ntraining: " in log.read_bytes()[said:]:
                training_since = now
            if (training_since and now > training_since + rest) or (dies_early and now > born + rest):
                break
            time.sleep(0.002)
        if ended[0]:
            code = os.waitstatus_to_exitcode(ended[1])
            assert code == 0, f"exit code {code}:\n{log.read_text()[-3000:]}"
            return hit
        where = moment(out, log.read_text(errors="replace")[said:])
        os.killpg(process, signal.SIGKILL)  # the loader's workers with it
        os.waitpid(process, 0)
        if hit.total() >= kills:
            raise TimeoutError(log.read_text()[-3000:])
        hit[where] += 1


def moment(out: Path, said: str) -> str:
    """What a life was doing, by what it left open and said last."""
    if any(out.glob(".*.tmp")):
        return "saving"
    lines = [line for line in said.splitlines() if line.startswith("epoch")]
    if not lines:
        return "start"
    return "evaluation, or between epochs" if " val" in lines[-1] else "steps"


def outcome(out: Path) -> dict[str, object]:
    """All that a run leaves that must not depend on how often it was killed."""
    kept = {path.name: torch.load(path) for path in sorted(out.glob("checkpoint-*.pth"))}
    for content in kept.values():
        content["args"].pop("output_dir")
        content.pop("time")  # another one each time
    lines = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    log = [{name: value for name, value in line.items() if name not in DIFFERS_ANYWAY} for line in lines]
    return {"checkpoints": kept, "log": log, "predictions": (out / "predictions_val.json").read_text()}


def differences(one: object, two: object, where: str = "") -> list[str]:
    """Where two outcomes aren't equal, bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return [] if one.dtype == two.dtype and torch.equal(one, two) else [where]
    if isinstance(one, dict) and isinstance(two, dict):
        found = [f"{where}.{name}" for name in one.keys() ^ two.keys()]
        return found + [
            d for name in one.keys() & two.keys() for d in differences(one[name], two[name], f"{where}.{name}")
        ]
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)) and len(one) == len(two):
        return [d for i, pair in enumerate(zip(one, two, strict=True)) for d in differences(*pair, f"{where}[{i}]")]
    return [] if one == two else [where]


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a prepared folder")
    parser.add_argument("--out", type=Path, required=True, help="where runs go")
    parser.add_argument("--clip", type=Path, help="a Hugging Face folder: train its adapters, not a BEiT-3")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(options.seed)
    hit: Counter = Counter()
    expected, number = None, 0
    while expected is None or hit.total() < options.kills:
        out, log = options.out / f"run-{number}", options.out / f"run-{number}.log"
        allowed = 0 if expected is None else options.kills - hit.total()
        hit += lives(command(options.data, out, options.epochs, options.clip), out, log, allowed, rng)
        evaluate = ["finetune", "--eval", "--split", "val", "--output_dir", str(out), "--data_path", str(options.data)]
        process = life([*evaluate, "--num_workers", "0", "--device", "cpu"], log)
        assert os.waitpid(process, 0)[1] == 0, log.read_text()[-3000:]
        ours = outcome(out)
        assert not list(out.glob(".*.tmp")), "half-written files are left"
        if expected is None:
            expected = ours
        else:
            different = differences(expected, ours)
            assert not different, f"{out} differs from the undisturbed run in {different[:20]}"
        what = f"{hit.total()} kills so far, {dict(hit)}; the same as undisturbed" if number else "undisturbed"
        print(f"run {number}: {what}", flush=True)
        number += 1
    return 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(run())
