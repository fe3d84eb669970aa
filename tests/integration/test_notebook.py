"""The notebook for Colab, run as a user would, with a tiny model; and bars in a kernel."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import zipfile
from pathlib import Path

import pytest
import torch

from beit3_vqa.models.names import build_model
from tests.helpers.commands import TINY
from tests.helpers.file_server import Behaviour, FileServer, Handler
from tests.helpers.pages import ROOT

nbformat = pytest.importorskip("nbformat", reason="nbformat isn't installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient isn't installed")
pytest.importorskip("ipykernel", reason="ipykernel isn't installed")
pytest.importorskip("jinja2", reason="the report needs jinja2")
pytestmark = pytest.mark.filterwarnings("default")  # of the client's own packages
NOTEBOOK = ROOT / "get_started" / "colab.ipynb"


def cell_tagged(book, tag):
    (cell,) = [cell for cell in book.cells if tag in cell.metadata.get("tags", [])]
    return cell


def run(book, folder: Path, monkeypatch, python: str | Path = sys.executable, path: str = str(ROOT)) -> str:
    """Run all cells in a new kernel, whose commands are those of `python`, and return what they printed."""
    monkeypatch.setenv("PATH", f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", path)  # also if the package is installed from elsewhere
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return printed(book)


def printed(book) -> str:
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


@pytest.fixture
def drive(scpc, tmp_path) -> Path:
    """A folder with the three files, as a Korean Excel writes them; the zip has a folder around the images."""
    folder = tmp_path / "My Drive"
    folder.mkdir()
    shutil.make_archive(str(folder / "images"), "zip", scpc, "images")
    for name in ("train.csv", "test.csv"):
        text = (scpc / name).read_text(encoding="utf-8").replace("?", " (그림을 보세요)?")
        assert "그림" in text
        (folder / name).write_text(text, encoding="cp949")
    return folder


def stand_in(book, scpc, drive: Path, work: Path, training: str) -> None:
    """Replace the first cell: a tiny model on a CPU, with weights and a tokenizer that needn't be fetched."""
    (work / "checkpoints").mkdir(parents=True)
    shutil.copy(scpc / "data" / "tokenizer.spm", work / "checkpoints" / "beit3.spm")
    torch.manual_seed(0)
    weights = build_model("beit3_tiny_patch8_32_vqacustom", vocab_size=300, num_classes=4).state_dict()
    torch.save({"model": weights}, work / "checkpoints" / "tiny.pth")
    values = {"FOLDER": str(drive), "WORK": str(work), "GPU": "tiny", "TRAINING": training}
    values |= {
        "SETTINGS": {"tiny": f"{' '.join(TINY)} --batch_size 4 --update_freq 2"},
        "WEIGHTS": {"tiny": "tiny.pth"},
    }
    cell_tagged(book, "parameters").source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    install = cell_tagged(book, "install")
    install.source = install.source.split("![")[0]


@pytest.mark.slow  # half a minute; `.ci/today` runs it
def test_the_notebook_goes_from_a_zip_to_a_submission_and_on_after_a_disconnect(scpc, drive, tmp_path, monkeypatch):
    book = nbformat.read(NOTEBOOK, as_version=4)
    stand_in(
        book, scpc, drive, tmp_path / "work", "--epochs 2 --save_steps 2 --keep_checkpoints 1 --stop_after_epochs 1"
    )
    (last,) = [place for place, cell in enumerate(book.cells) if cell.id == "train"]
    del book.cells[last + 1 :]
    said = run(book, tmp_path, monkeypatch)
    assert "stopped after epoch 0 as asked" in said

    again = nbformat.read(NOTEBOOK, as_version=4)  # another session: another machine, the same Drive
    stand_in(again, scpc, drive, tmp_path / "other", "--epochs 2 --save_steps 2 --keep_checkpoints 1")
    said = run(again, tmp_path, monkeypatch)
    assert "1 epoch done, 1 to go" in said
    log = [json.loads(line) for line in (drive / "out" / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [0, 1]
    with (scpc / "test.csv").open(encoding="utf-8") as test, (drive / "out" / "submission.csv").open() as submission:
        assert [row["ID"] for row in csv.DictReader(submission)] == [row["ID"] for row in csv.DictReader(test)]
    assert "ID,answer" in said
    shown, frame = (
        output
        for cell in again.cells
        if cell.id in ("report", "python")
        for output in cell.outputs
        if output["output_type"] == "execute_result"
    )
    assert "probability" in frame["data"]["text/plain"]
    assert shown["data"]["text/html"].startswith('<div><iframe srcdoc="')
    assert (drive / "out" / "report.html").stat().st_size < len(shown["data"]["text/html"])
    # Every bar that is drawn over itself counts as one line: no more of them than bars, and none is left behind.
    for cell in (cell for book in (book, again) for cell in book.cells if cell.id == "train"):
        text = "".join(output["text"] for output in cell.outputs)
        assert len([line for line in text.split("\n") if "ex/s" in line]) <= 4, text
        assert len(text) < 10_000


@pytest.mark.slow  # as long; `.ci/today` runs it
@pytest.mark.skipif(shutil.which("git") is None, reason="git isn't installed")
def test_the_notebook_installs_and_fetches_what_it_needs(scpc, drive, tmp_path, monkeypatch):
    """In an environment of its own; the repository, pip's index and the address of the weights are on this machine."""
    book = nbformat.read(NOTEBOOK, as_version=4)
    install = cell_tagged(book, "install").source
    stand_in(book, scpc, drive, tmp_path / "work", "")
    tokenizer = tmp_path / "work" / "checkpoints" / "beit3.spm"
    served = tokenizer.read_bytes()
    tokenizer.unlink()
    python, content = environment(tmp_path / "environment"), tmp_path / "content"
    with FileServer(("127.0.0.1", 0), Handler) as server:
        server.behaviour = Behaviour(served)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        repository = make_repository(tmp_path / "repository", server.url.rpartition("/")[0])
        cell_tagged(book, "parameters").source += f"\nREPOSITORY = {str(repository)!r}"
        cell_tagged(book, "install").source = install.replace("/content/", f"{content}/")
        del book.cells[[cell.id for cell in book.cells].index("train-text") :]
        content.mkdir()
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(make_wheels(tmp_path / "wheels")))
        monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's way to say that it is off
        said = run(book, tmp_path, monkeypatch, python, "")
        server.shutdown()
    assert tokenizer.read_bytes() == served
    assert [request["path"] for request in server.behaviour.requests] == ["/beit3.spm"]
    assert "choices   prepared" in said
    assert (tmp_path / "work" / "data" / "vqacustom.train.jsonl").is_file()


def environment(folder: Path) -> Path:
    """Return the Python of a new environment, which also finds the packages that this test runs with."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    pip = folder / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m pip "$@"\n')
    pip.chmod(0o755)
    return folder / "bin" / "python"


def make_repository(folder: Path, address: str) -> Path:
    """Make a git repository of this package, in which official files are at another address."""
    shutil.copytree(ROOT / "beit3_vqa", folder / "beit3_vqa", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "requirements-colab.txt"):
        shutil.copy(ROOT / name, folder)
    file = folder / "beit3_vqa" / "models" / "beit3" / "download.py"
    source, count = re.subn(r'^RELEASES = "[^"]+"', f'RELEASES = "{address}/"', file.read_text(), flags=re.M)
    assert count == 1
    file.write_text(source)
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in ("init -q", "add .", "commit -q -m x"):
        subprocess.run([*git, *shlex.split(command)], check=True)
    return folder


def make_wheels(folder: Path) -> Path:
    """Make empty wheels of what requirements-colab.txt asks for, which pip takes if the real ones aren't there."""
    folder.mkdir()
    lines = (ROOT / "requirements-colab.txt").read_text().splitlines()
    for name, version in (re.split(">=|==", line) for line in lines if line[0] != "#"):
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            info = f"{name}-{version}.dist-info"
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    return folder


def test_a_command_that_fails_stops_the_notebook(scpc, drive, tmp_path, monkeypatch):
    (drive / "test.csv").write_text("ID,img_path\n")
    book = nbformat.read(NOTEBOOK, as_version=4)
    stand_in(book, scpc, drive, tmp_path / "work", "--epochs 1")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="That didn't work"):
        run(book, tmp_path, monkeypatch)
    assert "no column for question" in printed(book)
    assert not (drive / "out").exists()


@pytest.mark.slow
def test_a_kernel_shows_bars_and_no_flood_of_lines(scpc, tmp_path, monkeypatch):
    source = f"""
from beit3_vqa.cli.main import main
words = {[*TINY, "--batch_size", "4", "--num_workers", "0", "--log_interval", "0", "--epochs", "1"]!r}
code = main(["finetune", "--task", "vqacustom", *words, "--data_path", {str(scpc / "data")!r}, "--output_dir", "out"])
assert code == 0
"""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    said = run(book, tmp_path, monkeypatch)
    widgets = [o for o in book.cells[0].outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    assert len(widgets) == 2 or re.search(r"\repoch 0/1:", said)
    assert not re.search(r"ex/s  .* left", said)  # the lines for a file
    assert "epoch 0: val accuracy" in said


def test_the_notebook_is_clean_and_fits_the_package():
    text = NOTEBOOK.read_text(encoding="utf-8")
    book = nbformat.reads(text, as_version=4)
    nbformat.validate(book)
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")
    values: dict[str, dict[str, str]] = {}
    exec(cell_tagged(book, "parameters").source, values)
    from beit3_vqa.models.beit3.download import OFFICIAL_WEIGHTS
    from beit3_vqa.models.names import listed_names

    assert values["SETTINGS"].keys() == values["WEIGHTS"].keys() == {"T4", "A100"}
    assert set(values["WEIGHTS"].values()) <= set(OFFICIAL_WEIGHTS)
    for settings in values["SETTINGS"].values():
        flags = dict(zip(settings.split()[::2], settings.split()[1::2], strict=True))
        assert flags["--model"] in listed_names()
        assert int(flags["--batch_size"]) * int(flags["--update_freq"]) == 16
