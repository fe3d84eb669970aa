"""`beit3-vqa serve` as a process, by the commands of its page: its address, many clients, its memory, its end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
from PIL import Image

from beit3_vqa.apps.serve import limits, server
from beit3_vqa.apps.serve.server import greeting, is_loopback, listen
from beit3_vqa.cli.main import main
from beit3_vqa.data.images import BYTES_PER_PIXEL, CACHE_BYTES, MAX_IMAGE_PIXELS, MAX_JPEG_PIXELS
from beit3_vqa.engine.predictor import MOST_OPTIONS
from tests.helpers import serve_abuse as abusers
from tests.helpers.pages import ROOT, commands
from tests.helpers.processes import ended, start, wait_until
from tests.helpers.serve_client import ask, form, running, send

CLIENTS = 16
MIB = 2**20
PAGE = "get_started/serve.md"
INSTALL, SERVE_ONE, SERVE_TWO, *CURLS = commands(PAGE)


class Served:
    """A server in a process of its own, on a free port."""

    def __init__(self, command: list[str], places: dict[str, Path], log: Path):
        self.log = log
        arguments = [str(places.get(word, word)) for word in command[1:]]
        self.process = start([*arguments, "--port", "0", "--device", "cpu"], log)
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


def abuse(served: Served, images: list[Path], seconds: float, seed: int) -> dict[str, Counter]:
    """Statuses that each kind of abusive client got, and two that ask good questions beside them."""
    end = time.monotonic() + seconds
    statuses = {client.__name__: Counter() for client in abusers.CLIENTS} | {"good": Counter()}

    def bad(place: int) -> None:
        client = abusers.Abuser(served.url, images, seed + place)
        while time.monotonic() < end:
            with suppress(OSError):  # no place for a connection at the moment
                abusers.CLIENTS[place](client)
        statuses[abusers.CLIENTS[place].__name__].update(client.statuses)

    def good(place: int) -> None:
        image, told, first = images[place], Counter(), None
        while time.monotonic() < end:
            try:
                status, said = ask(served.url, image, attention="true")
            except OSError as error:
                told[type(error).__name__] += 1
                continue
            told[status] += 1
            time.sleep(0.2 * (status == 503))
            if status == 200:
                probabilities = [option["probability"] for option in said["options"]]
                first = first or probabilities
                assert probabilities == pytest.approx(first, abs=0.02)  # bf16 rounds otherwise in other company
        statuses["good"].update(told)

    with ThreadPoolExecutor(len(abusers.CLIENTS) + 2) as pool:
        running = [pool.submit(bad, place) for place in range(len(abusers.CLIENTS))]
        running += [pool.submit(good, place) for place in range(2)]
        for one in running:
            one.result(seconds + 120)
    return statuses


def as_typed(command: list[str], url: str, folder: Path) -> dict:
    """JSON that one of the page's curl commands brings from a server at `url`; by our own client without curl."""
    words = [word.replace("http://127.0.0.1:8000", url) for word in command]
    assert words[0] == "curl"
    assert words[1].startswith(url)
    if shutil.which("curl"):
        return json.loads(subprocess.run([*words, "-sS", "--fail"], cwd=folder, check=True, capture_output=True).stdout)
    parts: list[tuple[str, str | bytes]] = []
    for name, _, value in (word.partition("=") for word in words[3::2]):
        parts.append((name, (folder / value[1:]).read_bytes() if value.startswith("@") else value))
    body, headers = form(parts)
    status, said = send(url, "POST" if parts else "GET", words[1].removeprefix(url), body, headers)
    assert status == 200
    return said


def test_documentation_states_the_servers_limits():
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert INSTALL == ["pip", "install", "-e", ".[serve]"]
    for figure in (
        f"{limits.MAX_UPLOAD_BYTES // MIB} MiB",
        f"JPEG of {MAX_JPEG_PIXELS // 10**6} million",
        f"others of {MAX_IMAGE_PIXELS // 10**6} million",
        f"{limits.MAX_QUESTION:,} and {limits.MAX_OPTION} characters",
        f"{limits.MAX_BODY_SECONDS:.0f} s for",
        f"{limits.MAX_WAITING} questions, {limits.MAX_CONNECTIONS} connections",
        f"`--batch_size` ({limits.BATCH_SIZE})",
        f"within {1000 * limits.WINDOW_SECONDS:.0f} ms",
        f"2 to {MOST_OPTIONS}",
    ):
        assert figure in text, figure


def test_server_answers_from_start_to_sigint(scpc, trained, photograph, tmp_path, capsys):
    checkpoint = trained / "checkpoint-best.pth"
    served = Served(SERVE_ONE, {"out/checkpoint-best.pth": checkpoint}, tmp_path / "log")
    statuses, _ = load(served, sorted((scpc / "images").iterdir()), 2)
    assert set(statuses) == {200}
    assert statuses[200] >= CLIENTS  # each has had an answer, however busy the machine

    (tmp_path / "images").mkdir()
    shutil.copy(photograph, tmp_path / "images" / "0.jpg")
    answer, model = (as_typed(command, served.url, tmp_path) for command in CURLS)
    assert answer["text"] in ("a cat", "a dog", "a hat", "nothing")
    assert len(answer["attention"]) == 1
    assert model["models"][0]["model"] == "beit3_tiny_patch8_32"

    port = served.url.rpartition(":")[2]
    assert main(["serve", "--checkpoint", str(checkpoint), "--port", port]) == 2
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
def test_sixteen_clients_get_answers_in_constant_memory(scpc, trained, clip_checkpoint, tmp_path, families):
    places = {
        "out/checkpoint-best.pth": trained / "checkpoint-best.pth",
        "out-clip/checkpoint-best.pth": clip_checkpoint,
    }
    served = Served((SERVE_ONE, SERVE_TWO)[families - 1], places, tmp_path / "log")
    statuses, memory = load(served, sorted((scpc / "images").iterdir()), 60)
    served.stop(signal.SIGTERM)
    print(f"{dict(statuses)}, memory {[round(m / MIB) for m in memory]} MiB")
    assert set(statuses) == {200}
    assert max(memory[15:]) - memory[14] < 16 * MIB


@pytest.mark.slow
def test_five_minutes_of_abuse_leave_two_models_answering_and_the_memory_flat(scpc, trained, clip_checkpoint, tmp_path):
    """Once its caches are full and the heap has its gaps, which takes the first 200 s."""
    places = {
        "out/checkpoint-best.pth": trained / "checkpoint-best.pth",
        "out-clip/checkpoint-best.pth": clip_checkpoint,
    }
    images = sorted((scpc / "images").iterdir())
    served = Served(SERVE_TWO, places, tmp_path / "log")
    for size in range(250, 250 + CACHE_BYTES // (250 * 250 * BYTES_PER_PIXEL) + 10):
        Image.new("RGB", (size, 250)).save(tmp_path / "large.png")
        assert ask(served.url, tmp_path / "large.png")[0] == 200
    kept, said = [], []
    for seconds in (200, 100, 100, 100):
        said.append(abuse(served, images, seconds, seed=len(said)))
        time.sleep(2 * limits.MAX_IDLE_SECONDS + 2)  # every connection is closed by now
        assert ask(served.url, images[0])[0] == 200
        kept.append((served.memory() / MIB, len(list(Path(f"/proc/{served.process.pid}/fd").iterdir()))))
    log = served.stop()
    print(*said, f"MiB and open files after each: {kept}", log[-2000:], sep="\n")
    for statuses in said:
        assert statuses["good"][200] > 10
        assert set(statuses["good"]) <= {200, 503}
        assert not [status for told in statuses.values() for status in told if status in (500, 502)]
    assert max(memory for memory, _ in kept[1:]) - kept[0][0] < 32
    assert max(files for _, files in kept) - kept[0][1] < 3


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--port", "70000"], "--port 70000: must be at least 0 and at most 65,535"),
        (["--host", "no such host"], "--host no such host"),
        (["--host", "192.0.2.1"], "can't be listened on"),
        (["--batch_size", "0"], "--batch_size 0"),
        (["--port", "0"], "no such file"),
        (["--token", "short"], "--token: must have 16 to 200 characters"),
        (["--token", "sixteen letters!"], "letters, digits and - . _ ~ only"),
    ],
)
def test_bad_serve_options_are_one_clear_error(flags, says, capsys):
    assert main(["serve", "--checkpoint", "/no/such.pth", *flags]) == 2
    assert says in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "--checkpoint", "x"]) == 2
    assert 'pip install "beit3_vqa[serve]"' in capsys.readouterr().err


def test_other_machines_are_let_in_only_if_host_says_so(ensemble):
    with running(ensemble, "0.0.0.0") as url:
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert send(url, "GET", "/api/model", headers={"Host": "my.machine:8000"})[0] == 200
        assert send(url, "POST", "/api/answer", b"", {"Origin": "http://evil.example"})[0] == 403
    with closing(listen("0.0.0.0", 0)) as everybody, closing(listen("localhost", 0)) as this_machine:
        said, port = greeting(ensemble, everybody, "made"), everybody.getsockname()[1]
        assert f"http://127.0.0.1:{port}/#token=made\n" in said
        assert "in the place of 127.0.0.1: whoever has the token. Nothing is encrypted." in said
        assert "token" not in greeting(ensemble, this_machine)
        assert not is_loopback(everybody)
        assert is_loopback(this_machine)


@pytest.mark.parametrize("given", ["", "a-token_of.24~characters"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_token_is_made_if_others_are_let_in_and_none_is_given(ensemble, monkeypatch, capsys, host, given):
    asked_for = []
    monkeypatch.setattr(server, "_predictor", lambda *_: ensemble.predictors[0])
    monkeypatch.setattr(server.uvicorn.Server, "run", lambda self, **_: asked_for.append(self.config.app.token))
    for _ in range(2):
        assert main(["serve", "--checkpoint", "x", "--host", host, "--port", "0", "--token", given]) == 0
    printed = re.findall(r"/#token=(\S+)\n", capsys.readouterr().out)
    if given or host == "127.0.0.1":
        assert (asked_for, printed) == ([given] * 2, [])  # one that was given is known already
    else:
        assert asked_for == printed
        assert len(set(printed)) == 2
        assert min(map(len, printed)) == 43  # 256 bits


@pytest.mark.parametrize(("environment", "said"), [({}, "16 16 False"), ({"LRU_CACHE_CAPACITY": "9"}, "9 16 False")])
def test_caches_of_compiled_shapes_are_bounded_before_torch_is_loaded(environment, said):
    code = """
import os, sys, types
server = types.ModuleType("beit3_vqa.apps.serve.server")
names = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
server.serve = lambda **options: print(*map(os.environ.get, names), "torch" in sys.modules)
sys.modules[server.__name__] = server
from beit3_vqa.cli.main import main
main(["serve", "--checkpoint", "x"])
"""
    inherited = {name: value for name, value in os.environ.items() if name not in limits.COMPILED_SHAPES}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env={**inherited, **environment}, capture_output=True, text=True, check=True)
    assert found.stdout == f"{said}\n"
