"""SIGKILL at random moments; see kills.py."""

import subprocess
import sys

import pytest

from tests.helpers.processes import ENVIRONMENT, ROOT


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "epochs"), [(1, 2), (50, 4)])
def test_a_run_killed_at_any_moment_and_restarted_ends_with_the_same_weights(scpc, tmp_path, kills, epochs):
    kill(scpc / "data", tmp_path, kills, epochs)


@pytest.mark.slow
def test_a_clip_run_killed_at_any_moment_and_restarted_ends_with_the_same_weights(scpc, clip_folder, tmp_path):
    kill(scpc / "data", tmp_path, 20, 4, "--clip", str(clip_folder))


def kill(data, out, kills, epochs, *flags):
    command = [sys.executable, "-m", "tests.faults.kills", "--data", str(data), "--out", str(out), *flags]
    result = subprocess.run(
        [*command, "--kills", str(kills), "--epochs", str(epochs), "--seed", str(kills)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout)
    assert f"{kills} kills so far" in result.stdout
