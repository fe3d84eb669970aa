"""`beit3-vqa serve` as a process: its address, many clients at once, its memory, its end."""

import re
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from beit3_vqa.cli import main
from beit3_vqa.serving.server import greeting, is_loopback, listen
from tests.faults.processes import ended, start, wait_until
from tests.serving.client import ask, running, send

CLIENTS = 16
MIB = 2**20


class Served:
    """A server in a process of its own, on a free port."""

    def __init__(self, arguments: list[str], log: Path):
        self.log = log
        self.process = start(["serve", *arguments, "--port", "0", "--device", "cpu"], log)
        wait_until(lambda: "Ctrl-C" in log.read_text(), self.process)
        address = re.search(r"http://[\d.]+:\d+", log.read_text())
        assert address
        self.url = address[0]

    def memory(self) -> int:
        """Resident bytes of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    def stop(self, number: int = signal.SIGTERM) -> str:
        """Ends it in order; what it said."""
        self.process.send_signal(number)
        code, said = ended(self.process, self.log)
        assert code == 0, said
        assert said.endswith("stopped\n")
        assert "Traceback" not in said
        return said


def load(served: Served, images: list[Path], seconds: float) -> tuple[Counter, list[int]]:
    """Statuses of `CLIENTS` clients that ask one question after the other, and the memory after each second."""
    statuses: Counter = Counter()
    lock = threading.Lock()
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        asked = number
        while time.monotonic() < end:
            question = f"What is this, {'really ' * (asked % 5)}{asked}?"
            options = {"attention": "true"} if asked % 3 == 0 else {}
            try:
                status, said = ask(served.url, images[asked % len(images)], question, **options)
                if status == 200 and abs(sum(option["probability"] for option in said["options"]) - 1) > 1e-4:
                    status = -1
            except OSError as error:
                status = repr(error)
            with lock:
                statuses[status] += 1
            asked += CLIENTS

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    memory = []
    while time.monotonic() < end:
        time.sleep(1)
        memory.append(served.memory())
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return statuses, memory


def test_a_server_from_its_start_to_its_end(scpc, trained, photograph, tmp_path, capsys):
    checkpoint = str(trained / "checkpoint-best.pth")
    served = Served(["--checkpoint", checkpoint], tmp_path / "log")
    statuses, _ = load(served, sorted((scpc / "images").iterdir()), 2)
    assert set(statuses) == {200}
    assert statuses[200] > 2 * CLIENTS

    port = served.url.rpartition(":")[2]
    assert main(["serve", "--checkpoint", checkpoint, "--port", port]) == 2
    assert "Is another server there?" in capsys.readouterr().err

    said: list[int] = []
    threads = [threading.Thread(target=lambda: said.append(ask(served.url, photograph)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)  # they are on their way, and are answered before the end
    served.stop(signal.SIGINT)
    for thread in threads:
        thread.join(30)
    assert said == [200] * 8


@pytest.mark.slow
@pytest.mark.parametrize("families", [1, 2])
def test_sixteen_clients_for_a_minute(scpc, trained, clip_checkpoint, tmp_path, families):
    checkpoints = [str(trained / "checkpoint-best.pth"), str(clip_checkpoint)][:families]
    served = Served(["--checkpoint", *checkpoints], tmp_path / "log")
    statuses, memory = load(served, sorted((scpc / "images").iterdir()), 60)
    served.stop(signal.SIGTERM)
    print(f"{dict(statuses)}, memory {[round(m / MIB) for m in memory]} MiB")
    assert set(statuses) == {200}
    assert max(memory[15:]) - memory[14] < 16 * MIB


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--port", "70000"], "between 0 and 65535"),
        (["--host", "no such host"], "--host no such host"),
        (["--host", "192.0.2.1"], "can't be listened on"),
        (["--batch_size", "0"], "--batch_size 0"),
        (["--port", "0"], "no such file"),
    ],
)
def test_what_cannot_be_served(flags, says, capsys):
    assert main(["serve", "--checkpoint", "/no/such.pth", *flags]) == 2
    assert says in capsys.readouterr().err


def test_without_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "--checkpoint", "x"]) == 2
    assert 'pip install "beit3_vqa[serve]"' in capsys.readouterr().err


def test_others_are_let_in_only_when_told(panel):
    with running(panel, "0.0.0.0") as url:
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert send(url, "GET", "/api/model", headers={"Host": "my.machine:8000"})[0] == 200
        assert send(url, "POST", "/api/answer", b"", {"Origin": "http://evil.example"})[0] == 403
    with closing(listen("0.0.0.0", 0)) as everybody, closing(listen("localhost", 0)) as this_machine:
        assert "no password" in greeting(panel, everybody)
        assert "no password" not in greeting(panel, this_machine)
        assert not is_loopback(everybody)
        assert is_loopback(this_machine)
