"""Timing in turns, and a table of it.

Machines drift: a number from this minute isn't comparable with one from the last. So variants are always run A B A B
in one process, and what counts is the ratio of their medians.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

Run = Callable[[], object]


def paired(variants: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Time the variants by turns, after one run of each that isn't timed, and return the seconds of each run.

    Args:
        variants: name -> what is timed.
        rounds: timed runs of each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(-1, rounds):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():  # a GPU computes on after the call has returned
                torch.cuda.synchronize()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def build_rows(
    seconds: Mapping[str, Sequence[float]], reference: str, **more: Mapping[str, object]
) -> list[dict[str, object]]:
    """Return a row for each variant: median seconds, how many times as fast as `reference`, and further columns."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        {
            "variant": name,
            "seconds": round(median[name], 6),
            "times as fast": round(median[reference] / median[name], 2),
            **{column: values.get(name, "") for column, values in more.items()},
        }
        for name in seconds
    ]


def arguments(description: str, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="timed runs of each variant")
    parser.add_argument("--output", type=Path, help="also write the table as JSON to this file")
    return parser


def report(title: str, rows: Sequence[Mapping[str, object]], output: Path | None) -> None:
    """Print a table in Markdown below a line about the machine; with `output`, add both to that JSON file."""
    machine = describe_machine()
    print(f"\n{title}\n{', '.join(f'{name} {value}' for name, value in machine.items())}\n")
    print_table(rows)
    if output:
        existing = json.loads(output.read_text()) if output.exists() else []
        output.write_text(json.dumps([*existing, {"title": title, **machine, "rows": list(rows)}], indent=2) + "\n")


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Print a table in Markdown."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, ["---"] * len(columns), *[[_cell(row.get(column, "")) for column in columns] for row in rows]]
    for line in cells:
        print("| " + " | ".join(line) + " |")


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe_machine() -> dict[str, object]:
    """Return what the numbers depend on: date, processor, cores, threads, GPU, version of torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    flags = torch.backends.cpu.get_cpu_capability()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "processor": f"{platform.machine()} {flags}",
        "cores": cores,
        "threads": torch.get_num_threads(),
        "GPU": gpu,
        "torch": torch.__version__,
    }
