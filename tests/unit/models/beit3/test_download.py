"""`download` against a real HTTP server that misbehaves."""

import dataclasses
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from beit3_vqa.errors import InputError
from beit3_vqa.models.beit3.download import OFFICIAL_WEIGHTS, RELEASES, download
from beit3_vqa.models.beit3.key_layout import KeyLayout
from beit3_vqa.runtime.https import SafeRedirects
from beit3_vqa.runtime.transfer import RELEASE_PAGE
from tests.helpers.checkpoint_files import checkpoint_bytes
from tests.helpers.file_server import NAME, Behaviour, FileServer, Handler

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    return checkpoint_bytes(filler=3_000_000)


@pytest.fixture
def server(checkpoint: bytes) -> Iterator[FileServer]:
    with FileServer(("127.0.0.1", 0), Handler) as running:
        running.behaviour = Behaviour(checkpoint)
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def fetch(server: FileServer, tmp_path: Path) -> Callable[..., Path]:
    def call(name: str = NAME, url: str | None = None, **options: Any) -> Path:
        return download(name, tmp_path, url or server.url, **{"pause": 0.01, "say": lambda text: None, **options})

    return call


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# A transfer that works, at once or after trouble


def test_a_file_is_fetched_checked_and_reported(fetch: Callable[..., Path], server: FileServer, tmp_path: Path) -> None:
    said: list[str] = []
    path = fetch(say=said.append)
    assert path == tmp_path / NAME
    assert path.read_bytes() == server.behaviour.body
    assert names_in(tmp_path) == {NAME}
    assert "width 768, 12 layers, 196 patches, 64,010 token rows" in said[-1]


@pytest.mark.parametrize("name", [NAME, NAME.removesuffix(".pth"), NAME.replace(".pth", ".zip")])
def test_name_without_pth_and_the_browsers_zip_mean_the_same_file(
    name: str, fetch: Callable[..., Path], tmp_path: Path
) -> None:
    assert fetch(name) == tmp_path / NAME


def test_a_complete_file_is_not_fetched_again(fetch: Callable[..., Path], server: FileServer) -> None:
    fetch()
    said: list[str] = []
    fetch(say=said.append)
    assert len(server.behaviour.requests) == 1
    assert said == [text for text in said if "already there" in text]


def test_a_broken_connection_goes_on_at_the_byte_where_it_broke(fetch: Callable[..., Path], server: FileServer) -> None:
    server.behaviour.drop_after = [1_000_000, 0, 700_000]
    assert fetch().read_bytes() == server.behaviour.body
    assert server.behaviour.ranges == [None, "bytes=1000000-", "bytes=1000000-", "bytes=1700000-"]
    assert [request["If-Range"] for request in server.behaviour.requests] == [None, '"v1"', '"v1"', '"v1"']


def test_a_later_call_goes_on_with_the_part_that_is_there(
    fetch: Callable[..., Path], server: FileServer, tmp_path: Path
) -> None:
    server.behaviour.drop_after = [1_000_000, 0]
    with pytest.raises(InputError, match=r"run the same command again"):
        fetch(attempts=1)
    assert names_in(tmp_path) == {f"{NAME}.part", f"{NAME}.part.json"}
    assert (tmp_path / f"{NAME}.part").stat().st_size == 1_000_000
    server.behaviour.drop_after = []
    assert fetch().read_bytes() == server.behaviour.body
    assert server.behaviour.ranges[-1] == "bytes=1000000-"
    assert names_in(tmp_path) == {NAME}


def test_starts_over_when_the_server_ignores_range(fetch: Callable[..., Path], server: FileServer) -> None:
    server.behaviour.drop_after = [1_000_000]
    server.behaviour.ignore_range = True
    assert fetch().read_bytes() == server.behaviour.body
    assert server.behaviour.ranges == [None, "bytes=1000000-"]


@pytest.mark.parametrize("ignore_if_range", [False, True])
@pytest.mark.parametrize("new_length", ["same", "shorter than what is there", "longer"])
def test_starts_over_when_the_file_changed(
    ignore_if_range: bool, new_length: str, fetch: Callable[..., Path], server: FileServer
) -> None:
    server.behaviour.drop_after = [2_000_000]
    with pytest.raises(InputError):
        fetch(attempts=1)
    filler = {"same": 3_000_000, "shorter than what is there": 1_000, "longer": 3_500_000}[new_length]
    server.behaviour.body = checkpoint_bytes(filler=filler, seed=1)
    server.behaviour.etag, server.behaviour.ignore_if_range = '"v2"', ignore_if_range
    assert fetch().read_bytes() == server.behaviour.body


@pytest.mark.parametrize("etag", [None, 'W/"v1"'])
def test_without_a_strong_validator_nothing_is_appended(
    etag: str | None, fetch: Callable[..., Path], server: FileServer
) -> None:
    server.behaviour.etag, server.behaviour.drop_after = etag, [1_000_000]
    assert fetch().read_bytes() == server.behaviour.body
    assert server.behaviour.ranges == [None, None]


def test_retries_an_overloaded_server(fetch: Callable[..., Path], server: FileServer) -> None:
    server.behaviour.statuses = [503, 429, 500]
    said: list[str] = []
    assert fetch(say=said.append).read_bytes() == server.behaviour.body
    assert [text for text in said if "503" in text]


def test_gives_up_after_failures_in_a_row(fetch: Callable[..., Path], server: FileServer, tmp_path: Path) -> None:
    server.behaviour.statuses = [503] * 9
    with pytest.raises(InputError, match="HTTP 503"):
        fetch(attempts=3)
    assert len(server.behaviour.requests) == 3
    assert names_in(tmp_path) == set()


def test_an_address_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(InputError, match="no connection"):
        download(NAME, tmp_path, "http://127.0.0.1:9/x", say=said.append)
    assert len(said) == 1  # nobody listens there, so it isn't tried again
    assert names_in(tmp_path) == set()


def test_without_a_network_it_ends_at_once_and_names_other_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):  # one would be asked instead
        monkeypatch.delenv(name, raising=False)
    said: list[str] = []
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        download(NAME, tmp_path, "https://no-such-host.invalid/x", say=said.append)
    assert time.monotonic() - started < 2
    assert len(said) == 1
    for way in ("no connection", RELEASE_PAGE, "--url", "browser", f"put it at {tmp_path / NAME}"):
        assert way in str(caught.value)
    assert names_in(tmp_path) == set()


def test_a_broken_progress_note_only_costs_a_fresh_start(
    fetch: Callable[..., Path], server: FileServer, tmp_path: Path
) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(b"of unknown origin")
    (tmp_path / f"{NAME}.part.json").write_text('{"address": 7')
    assert fetch().read_bytes() == server.behaviour.body
    assert server.behaviour.ranges == [None]


def test_complete_but_not_yet_renamed_needs_no_request(
    fetch: Callable[..., Path], server: FileServer, tmp_path: Path
) -> None:
    note = {"address": server.url, "total": len(server.behaviour.body), "etag": '"v1"', "last_modified": None}
    (tmp_path / f"{NAME}.part").write_bytes(server.behaviour.body)
    (tmp_path / f"{NAME}.part.json").write_text(json.dumps(note))
    assert fetch().read_bytes() == server.behaviour.body
    assert server.behaviour.requests == []


def test_redirect_on_this_machine_is_followed_with_its_range(fetch: Callable[..., Path], server: FileServer) -> None:
    server.behaviour.redirect = "/moved"
    server.behaviour.drop_after = [1_000_000]
    assert fetch().read_bytes() == server.behaviour.body
    assert server.behaviour.requests[-1] == {"path": "/moved", "Range": "bytes=1000000-", "If-Range": '"v1"'}


DOWNLOAD_SCRIPT = """
import sys
from beit3_vqa.models.beit3.download import download
download(sys.argv[1], sys.argv[2], sys.argv[3])
"""


def test_killed_processes_are_taken_up_where_they_were(server: FileServer, tmp_path: Path) -> None:
    server.behaviour.seconds_per_block = 0.03
    part = tmp_path / f"{NAME}.part"
    command = [sys.executable, "-c", DOWNLOAD_SCRIPT, NAME, str(tmp_path), server.url]
    sizes = [0]
    for stop_at in (600_000, 1_500_000):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while not (part.exists() and part.stat().st_size >= stop_at):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        sizes.append(part.stat().st_size)
        assert names_in(tmp_path) == {f"{NAME}.part", f"{NAME}.part.json"}
    server.behaviour.seconds_per_block = 0.0
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / NAME).read_bytes() == server.behaviour.body
    assert server.behaviour.ranges == [None, f"bytes={sizes[1]}-", f"bytes={sizes[2]}-"]
    assert 0 < sizes[1] < sizes[2] < len(server.behaviour.body)


def test_two_downloads_of_one_file_do_not_mix(fetch: Callable[..., Path], server: FileServer, tmp_path: Path) -> None:
    server.behaviour.seconds_per_block = 0.03
    part = tmp_path / f"{NAME}.part"
    first = threading.Thread(target=fetch)
    first.start()
    while not (part.exists() and part.stat().st_size):  # its lock comes after the file
        time.sleep(0.01)
    with pytest.raises(InputError, match="Another download is writing"):
        fetch()
    first.join()
    assert (tmp_path / NAME).read_bytes() == server.behaviour.body
    assert len(server.behaviour.requests) == 1


# What is refused


@pytest.mark.parametrize("status", [401, 403, 404, 409, 410])
def test_a_moved_file_is_one_clear_error(
    status: int, fetch: Callable[..., Path], server: FileServer, tmp_path: Path
) -> None:
    server.behaviour.statuses = [status]
    with pytest.raises(InputError, match=rf"HTTP {status}.*may have moved.*{RELEASE_PAGE} says where"):
        fetch()
    assert len(server.behaviour.requests) == 1
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize(
    "elsewhere",
    ["http://example.org/x.pth", "file:///etc/passwd", "ftp://127.0.0.1/x", "http://127.0.0.1.example.org/"],
)
def test_redirects_away_from_https_are_refused(
    elsewhere: str, fetch: Callable[..., Path], server: FileServer, tmp_path: Path
) -> None:
    server.behaviour.redirect = elsewhere
    with pytest.raises(InputError, match="refused"):
        fetch()
    assert names_in(tmp_path) == set()


def test_without_url_the_official_address_is_asked(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official = dataclasses.replace(OFFICIAL_WEIGHTS[NAME], address=server.url.replace(NAME, "of-the-catalogue"))
    monkeypatch.setitem(OFFICIAL_WEIGHTS, NAME, official)
    download(NAME, tmp_path, say=lambda text: None)
    assert [request["path"] for request in server.behaviour.requests] == ["/of-the-catalogue"]


def test_a_known_sha256_is_verified(
    fetch: Callable[..., Path], server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = hashlib.sha256(server.behaviour.body).hexdigest()
    for sha256 in ("0" * 64, right):
        monkeypatch.setitem(OFFICIAL_WEIGHTS, NAME, dataclasses.replace(OFFICIAL_WEIGHTS[NAME], sha256=sha256))
        if sha256 == right:
            assert fetch() == tmp_path / NAME
        else:
            with pytest.raises(InputError, match="SHA-256 should be 0000"):
                fetch()
            assert names_in(tmp_path) == {f"{NAME}.part.rejected"}


def test_from_https_not_even_this_machine_may_be_redirected_to() -> None:
    asked = urllib.request.Request("https://example.org/x")
    with pytest.raises(InputError, match="refused"):
        SafeRedirects().redirect_request(asked, None, 302, "", {}, "http://127.0.0.1/x")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/x.pth",
        "http://127.0.0.1@example.org/x.pth",
        "http://localhost.example.org/x.pth",
        "http://10.0.0.1/x.pth",
        "file:///tmp/x.pth",
        "ftp://example.org/x.pth",
        "https:///x.pth",
        "https://example.org:port/x.pth",
        "https://[::1/x.pth",
        "https://example.org/a b.pth",
        "https://example.org/모델.pth",
        "x.pth",
    ],
)
def test_addresses_that_are_not_https_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="https"):
        download(NAME, tmp_path, url, say=lambda text: None)
    assert names_in(tmp_path) == set()


def test_no_key_in_an_address_is_repeated(fetch: Callable[..., Path], server: FileServer, tmp_path: Path) -> None:
    server.behaviour.drop_after = [1_000_000, 0]
    said: list[str] = []
    with pytest.raises(InputError) as caught:
        fetch(url=f"{server.url}?sig=SECRET", attempts=2, say=said.append)
    assert "SECRET" not in "".join([*said, str(caught.value), (tmp_path / f"{NAME}.part.json").read_text()])


def test_a_file_over_the_limit_is_not_begun(fetch: Callable[..., Path], server: FileServer, tmp_path: Path) -> None:
    server.behaviour.claimed_length = 9_000_000_000
    with pytest.raises(InputError, match=r"9\.00 GB, more than the 8\.00 GB allowed"):
        fetch()
    assert names_in(tmp_path) == set()


def test_a_file_larger_than_the_disk_is_not_begun(
    fetch: Callable[..., Path], server: FileServer, tmp_path: Path
) -> None:
    server.behaviour.claimed_length = 10**15 - 1
    with pytest.raises(InputError, match="free"):
        fetch(max_bytes=10**16)
    assert names_in(tmp_path) == set()


def test_a_body_shorter_than_promised_never_gets_the_name(
    fetch: Callable[..., Path], server: FileServer, tmp_path: Path
) -> None:
    server.behaviour.claimed_length = len(server.behaviour.body) + 5
    server.behaviour.ignore_range = True
    with pytest.raises(InputError, match="connection ended after"):
        fetch(attempts=2)
    assert NAME not in names_in(tmp_path)


def test_an_answer_without_a_length_is_refused(fetch: Callable[..., Path], server: FileServer, tmp_path: Path) -> None:
    server.behaviour.without_length = True
    with pytest.raises(InputError, match="how long"):
        fetch()
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"<Error><Code>PublicAccessNotPermitted</Code></Error>", "web page or XML"),
        (b"", "not in torch's zip format"),
        (b"PK\x03\x04 but no more", "damaged"),
    ],
)
def test_what_is_not_a_checkpoint_is_set_aside(
    body: bytes, message: str, fetch: Callable[..., Path], server: FileServer, tmp_path: Path
) -> None:
    server.behaviour.body = body
    with pytest.raises(InputError, match=message) as caught:
        fetch()
    assert names_in(tmp_path) == {f"{NAME}.part.rejected"}
    assert f"{NAME}.part.rejected" in str(caught.value)
    server.behaviour.body = checkpoint_bytes()
    assert fetch().name == NAME


def test_one_flipped_bit_is_found(fetch: Callable[..., Path], server: FileServer, tmp_path: Path) -> None:
    body = bytearray(server.behaviour.body)
    body[len(body) // 2] ^= 1
    server.behaviour.body = bytes(body)
    with pytest.raises(InputError, match="check sum"):
        fetch()
    assert NAME not in names_in(tmp_path)


def test_another_size_under_this_name_is_refused(fetch: Callable[..., Path], server: FileServer) -> None:
    server.behaviour.body = checkpoint_bytes(width=1024, layers=24)
    with pytest.raises(InputError, match="other sizes"):
        fetch()
    assert fetch("large.pth").name == "large.pth"  # under a name of one's own any BEiT-3 will do


def test_a_wrong_file_that_was_there_before_is_left_alone(
    fetch: Callable[..., Path], server: FileServer, tmp_path: Path
) -> None:
    (tmp_path / NAME).write_bytes(b"mine")
    with pytest.raises(InputError, match="was there before"):
        fetch()
    assert (tmp_path / NAME).read_bytes() == b"mine"
    assert server.behaviour.requests == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_error(fetch: Callable[..., Path], tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="can't be written"):
        fetch()
    tmp_path.chmod(0o700)


def test_a_file_where_the_folder_should_be_is_an_error(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        download(NAME, tmp_path / "taken", server.url, say=lambda text: None)


def test_a_misspelt_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"Did you mean 'beit3_large_indomain_patch16_224\.pth'"):
        download("beit3_large_indomian_patch16_224")


@pytest.mark.parametrize("name", ["../x.pth", "a/b.pth", "a\\b.pth", ".pth", "x.py", "x.pth\n", ""])
def test_a_name_cannot_leave_the_folder(name: str, fetch: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="plain file name"):
        fetch(name)
    assert names_in(tmp_path) == set()


def test_a_tokenizer_is_fetched_and_checked(fetch: Callable[..., Path], server: FileServer, tmp_path: Path) -> None:
    import sentencepiece

    text = (f"what colour is shape number {n} in picture {n * n}" for n in range(300))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=text, model_writer=model, vocab_size=60, minloglevel=2, hard_vocab_limit=False
    )
    server.behaviour.body = b"not a model"
    with pytest.raises(InputError, match="is not a SentencePiece model"):
        fetch("beit3.spm")
    server.behaviour.body = model.getvalue()
    assert fetch("beit3.spm").read_bytes() == model.getvalue()
    assert names_in(tmp_path) == {"beit3.spm", "beit3.spm.part.rejected"}


# The catalogue and its page


def test_catalogue_and_readme_say_the_same() -> None:
    page = (ROOT / "checkpoints" / "README.md").read_text(encoding="utf-8")
    for name, official in OFFICIAL_WEIGHTS.items():
        assert official.address == f"{RELEASES}{name}"
        assert f"| `{name}` | {official.parameters} |".replace("|  |", "| |") in page
    assert f"{RELEASES}NAME" in page
    assert set(re.findall(r"^\| `(\S+)`", page, re.MULTILINE)) == set(OFFICIAL_WEIGHTS)


def test_expected_layouts_follow_from_the_names() -> None:
    layouts = {name: official.layout for name, official in OFFICIAL_WEIGHTS.items()}
    assert layouts["beit3_base_itc_patch16_224.pth"] == KeyLayout(768, 12, 196, 64010)
    assert layouts["beit3_large_indomain_patch16_480_vqa.pth"] == KeyLayout(1024, 24, 900, 64010)
    assert layouts["beit3_large_indomain_patch16_768_vgqaaug_vqa.pth"] == KeyLayout(1024, 24, 2304, 64010)
    assert layouts["beit3.spm"] is None
