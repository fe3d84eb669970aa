"""Real runs in processes of their own, to be stopped, killed, starved and compared."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.helpers.commands import finetune

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def start(arguments: list[str], log: Path, *before: str) -> subprocess.Popen:
    """`python -m beit3_vqa ARGUMENTS` as the leader of a process group, what it says in `log`."""
    with log.open("w") as file:
        return subprocess.Popen(
            [*(before or (sys.executable, "-m", "beit3_vqa")), *arguments],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def long_run(data: Path, out: Path, *flags: str) -> list[str]:
    """A command that trains long enough to be stopped on the way, a line for every step."""
    return finetune(data, out, "--epochs", "4", "--batch_size", "3", "--model_ema", "--log_interval", "0", *flags)


def wait_until(happened: Callable[[], bool], process: subprocess.Popen, seconds: float = 300) -> None:
    """Waits for something that the process is about to do."""
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)


def ended(process: subprocess.Popen, log: Path, seconds: float = 300) -> tuple[int, str]:
    """Exit code and output of a process, once its workers are gone too."""
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"still running:\n{log.read_text()[-3000:]}") from None
    end = time.monotonic() + 10
    while _group_lives(process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _group_lives(process.pid), "it left processes behind"
    return code, log.read_text()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def torchrun(processes: int, *options: str) -> tuple[str, ...]:
    """The beginning of a command that runs in several processes on this machine."""
    return (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), *options)


def run_in_new_process(arguments: list[str]) -> str:
    """Run a command in a process in which warnings are errors; return what it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "beit3_vqa", *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout
