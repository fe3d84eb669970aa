"""The demo, as a stranger starts it; minutes long, so not part of the default run. `.ci/run` runs the quick one."""

import csv
import json
import subprocess
import sys

import pytest

CHANCE = 25.0


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "floor"), [(["--quick"], CHANCE + 15), ([], 75.0)])
def test_demo_learns(tmp_path, flags, floor):
    command = [sys.executable, "-W", "error", "-m", "beit3_vqa", "demo", *flags, "--output_dir", str(tmp_path / "demo")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    out = tmp_path / "demo" / "choices"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["questions"] == 9673
    assert metrics["accuracy"] >= floor
    with (out / "submission.csv").open(encoding="utf-8") as file:
        assert len({row["ID"] for row in csv.DictReader(file)}) == 9673
    assert list((out / "tensorboard").iterdir())
    assert "1 epochs done" in result.stdout  # it stopped and resumed on the way
    assert "dropped from the checkpoint: head.0.weight" in result.stdout
    assert f"Test accuracy with four options: {metrics['accuracy']:.1f}% (chance: 25%)" in result.stdout
