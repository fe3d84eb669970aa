"""Mutated copies of every file that is read: see `fuzz.py`. Run in a process of its own, so that it may die alone."""

import json
import os
import subprocess
import sys

import pytest

# Seconds are dearer for some than for others.
SHORT = {"csv": 100, "jsonl": 60, "config": 60, "jpeg": 100, "progressive": 60, "png": 100, "checkpoint": 20,
         "visual7w": 100, "dacon": 100, "answers": 60, "dataset": 60, "tokenizer": 100,
         "lines": 60, "xlsx": 40, "xls": 60, "parquet": 60, "feather": 60, "zip": 60}  # fmt: skip
LONG = dict.fromkeys(SHORT, 10_000) | dict.fromkeys(
    ("visual7w", "dacon", "answers", "dataset", "tokenizer", "lines", "xlsx", "xls", "parquet", "feather", "zip"), 2_000
)


def fuzz(counts, root):
    """The result for each reader."""
    arguments = [f"{name}={count}" for name, count in counts.items()]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.faults.fuzz", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=False)
    results = {result["reader"]: result for result in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, f"died after {list(results)}: {done.stderr[-3000:]}"
    return results


def test_readers_of_mutated_files_raise_input_errors_only(pytestconfig):
    for reader, result in fuzz(SHORT, pytestconfig.rootpath).items():
        assert not result["failures"], "\n".join(result["failures"])
        assert 0 < result["refused"] <= result["inputs"] == SHORT[reader]


@pytest.mark.slow
@pytest.mark.parametrize("reader", LONG)
def test_readers_of_many_mutated_files_raise_input_errors_only(pytestconfig, reader):
    result = fuzz({reader: LONG[reader]}, pytestconfig.rootpath)[reader]
    assert not result["failures"], "\n".join(result["failures"])
    assert result["inputs"] == LONG[reader]
