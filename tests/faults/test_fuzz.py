"""Mutated copies of every file that is read: see `fuzz.py`. Run in a process of its own, so that it may die alone."""

import json
import os
import subprocess
import sys

import pytest

# Seconds are dearer for some than for others.
SHORT = {"csv": 50, "jsonl": 30, "config": 30, "jpeg": 50, "progressive": 30, "png": 50, "checkpoint": 10,
         "visual7w": 50, "dacon": 50, "answers": 30, "dataset": 30, "tokenizer": 50,
         "lines": 30, "xlsx": 20, "xls": 30, "parquet": 30, "feather": 30, "zip": 30}  # fmt: skip
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
