"""Several processes train as one does."""

import subprocess

import pytest

from tests.helpers.processes import ENVIRONMENT, ROOT, torchrun


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_every_strategy_trains_as_one_process_does(size):
    command = [*torchrun(size), "-m", "tests.helpers.strategies", str(size)]
    result = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    for name in ("ddp", "zero1", "fsdp"):
        assert result.stderr.count(f"{name}: the same as one process") == size
