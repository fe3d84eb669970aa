"""The sdist and the wheel: what is in them, what a registry reads, and that they run outside the repository."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest
import yaml

import beit3_vqa
from tests.helpers.pages import ROOT

# Without PYTHONPATH, which would show the repository to what is installed.
OUTSIDE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*command: object, cwd: Path) -> str:
    result = subprocess.run([*map(str, command)], cwd=cwd, env=OUTSIDE, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with an sdist, and the wheel that pip makes of it; packages come from here alone."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"  # a copy: building leaves files behind, and old ones there would be packed
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "beit3_vqa", source / "beit3_vqa", ignore=shutil.ignore_patterns("__pycache__"))
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", code, cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", folder, sdist, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The `bin` of an environment with the wheel, and beside it the packages that run this test."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "others.pth").write_text("\n".join(others))
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-index")
    run(*pip, "--no-deps", "--ignore-installed", wheel, cwd=folder)
    return folder / "bin"


def test_the_wheel_holds_every_file_of_the_package_and_the_licence(wheel):
    files = [path for path in (ROOT / "beit3_vqa").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
    assert packed == {path.relative_to(ROOT).as_posix() for path in files}
    assert {"beit3_vqa/apps/serve/page/index.html", "beit3_vqa/apps/report/page.html.j2"} <= packed
    pages = ("data/page.css", "preparation/check.css", "preparation/check.html.j2")
    assert {f"beit3_vqa/{name}" for name in pages} <= packed


def test_the_sdist_holds_what_builds_it(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "beit3_vqa/py.typed"} <= names


def test_the_version_is_written_in_one_place(metadata):
    assert metadata["Version"] == beit3_vqa.__version__
    for name in ("setup.py", "pyproject.toml"):
        assert beit3_vqa.__version__ not in (ROOT / name).read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == beit3_vqa.__version__
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_the_registrys_page_has_no_dead_links(metadata):
    """A registry has no files beside the README; the words of a link to one stay."""
    page = metadata.get_payload()
    assert not re.findall(r"\]\((?!https?:|#)", page)
    assert "get_started/get_started_for_vqacustom.md" not in page
    assert "your own questions" in page
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_a_registry_takes_both_files(built):
    pytest.importorskip("twine", reason="twine isn't installed")
    run(sys.executable, "-m", "twine", "check", "--strict", *built.glob("beit3_vqa-*"), cwd=built)


@pytest.mark.slow
def test_the_wheel_runs_in_any_folder(installed, tmp_path):
    assert run(installed / "beit3-vqa", "--version", cwd=tmp_path) == f"beit3-vqa {beit3_vqa.__version__}\n"
    assert "beit3_large_patch16_480" in run(installed / "beit3-vqa", "models", cwd=tmp_path)
    code = (
        "import beit3_vqa; from beit3_vqa.apps.report.page import read_template; read_template()\n"
        "print(beit3_vqa.__file__, beit3_vqa.__version__)"
    )
    file, version = run(installed / "python", "-W", "error", "-c", code, cwd=tmp_path).split()
    assert Path(file).is_relative_to(installed.parent)
    assert version == beit3_vqa.__version__
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_wheels_demo_runs_in_any_folder(installed, tmp_path):
    run(installed / "beit3-vqa", "demo", "--quick", cwd=tmp_path)
    assert "<html" in (tmp_path / "demo_output" / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "demo_output" / "choices" / "submission.csv").is_file()
