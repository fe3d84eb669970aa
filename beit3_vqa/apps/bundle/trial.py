"""Run a bundle as its receiver will: unpacked elsewhere, in a new environment, without network and without us.

The new environment sees the libraries of this one (torch alone has gigabytes) but not what is installed to be edited:
only folders of packages are named to it, and Python reads no further .pth file there. What it mustn't need (this
package's own folder, the checkpoints) can't be opened in it.
"""

import csv
import os
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from beit3_vqa.apps.bundle.contents import SCRIPT
from beit3_vqa.errors import InputError

_UNSHARE = ("unshare", "--map-root-user", "--net")  # a network namespace of its own, in which there is no interface
_LINES = 12  # of the script's last words, if it fails
# Python imports this first of all. Libraries in other languages could still open what it refuses.
_GUARD = """\
import os, sys

HIDDEN = {hidden!r}


def refuse(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if any(path == place or path.startswith(place + os.sep) for place in HIDDEN):
            raise PermissionError(13, "a bundle must do without this file", path)
    # The address of a socket between processes of this machine, which loaders of data have, is one text.
    reaches_out = event in ("socket.connect", "socket.bind", "socket.sendto") and isinstance(arguments[1], tuple)
    if reaches_out or event in ("socket.getaddrinfo", "socket.gethostbyname"):
        raise OSError("a bundle must do without a network: " + event)


sys.addaudithook(refuse)
"""


@dataclass(frozen=True)
class Trial:
    """How a bundle did.

    Attributes:
        answers: (id, answer) in the order of its submission.
        said: what the script printed.
        network: how the network was kept away, in words.
        seconds: that the script took, from its start to its end.
    """

    answers: list[tuple[str, str]]
    said: str
    network: str
    seconds: float


def run_bundle(bundle: Path, place: Path, table: Path, image_root: Path, device: str, hidden: Sequence[Path]) -> Trial:
    """Unpack a bundle and run its script.

    Args:
        bundle: the zip.
        place: an empty folder.
        table: the questions.
        image_root: where their images are.
        device: where the script computes.
        hidden: files and folders that the script mustn't open.

    Raises:
        InputError: the script failed; its last words are in the message.
    """
    place = place.absolute()  # the script runs in another folder
    unpacked, elsewhere = place / "unpacked", place / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(unpacked)
    python = _new_environment(place / "environment", hidden)
    isolated = _can_unshare()
    output = elsewhere / "submission.csv"
    # -I: no PYTHON... variable, no folder of the user's or the script's own, is looked at.
    command = [*(_UNSHARE if isolated else ()), str(python), "-I", str(unpacked / SCRIPT), "--device", device]
    command += ["--table", str(table.absolute()), "--image_root", str(image_root.absolute()), "--output", str(output)]
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=elsewhere, env=_environment(), capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    seconds = time.monotonic() - started
    if done.returncode != 0:
        words = "\n".join((done.stdout + done.stderr).strip().splitlines()[-_LINES:])
        raise InputError(f"the bundle isn't written: its {SCRIPT} failed by itself, offline. Its last words:\n{words}")
    network = "in a network namespace without interfaces" if isolated else "Python's sockets refused; no namespace here"
    return Trial(_read(output), done.stdout.strip(), network, seconds)


def _new_environment(folder: Path, hidden: Sequence[Path]) -> Path:
    """Make an environment that sees the packages of this one, and return its Python."""
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    ours = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "others.pth").write_text("\n".join(ours) + "\n", encoding="utf-8")
    places = sorted({form(path) for path in map(str, hidden) for form in (os.path.abspath, os.path.realpath)})
    (packages / "sitecustomize.py").write_text(_GUARD.format(hidden=tuple(places)), encoding="utf-8")
    return folder / "bin" / "python"


def _environment() -> Mapping[str, str]:
    """Return the variables of this process that a stranger's would have too, and those that keep libraries offline."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BEIT3_", "VIRTUAL_"))}
    return {**kept, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _can_unshare() -> bool:
    try:
        return subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _read(submission: Path) -> list[tuple[str, str]]:
    with submission.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return [(row[0], row[header.index("answer")]) for row in rows]
