"""The README's lines for Colab, where newer packages are than torchscale's pins allow: none of them is changed.

The environment is a stand-in for Colab: links to the packages that run this test, without ours and the three that are
to be added.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.helpers.pages import ROOT

ADDED = {"beit3_vqa", "torchscale", "fairscale", "sentencepiece"}
OUTSIDE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python of an environment with links to all packages but `ADDED`."""
    folder = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for distribution in metadata.distributions():
        if distribution.name in ADDED:
            continue
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            link = packages / top
            if not link.exists() and not top.endswith(".pth"):
                link.symlink_to(Path(str(distribution.locate_file(top))))
    return folder / "bin" / "python"


def output(python: Path, *arguments: str, cwd: Path, accept: tuple[int, ...] = (0,)) -> str:
    result = subprocess.run(
        [str(python), *arguments], cwd=cwd, env=OUTSIDE, capture_output=True, text=True, check=False
    )
    assert result.returncode in accept, result.stdout + result.stderr
    return result.stdout


def state(python: Path, folder: Path) -> tuple[dict[str, str], set[str]]:
    """The versions that are installed, and what `pip check` complains of."""
    listed = json.loads(output(python, "-m", "pip", "list", "--format", "json", cwd=folder))
    complaints = output(python, "-m", "pip", "check", cwd=folder, accept=(0, 1)).splitlines()
    return {one["name"]: one["version"] for one in listed}, set(complaints) - {"No broken requirements found."}


def install_lines(page: str) -> list[str]:
    return re.findall(r"^!pip (install .+)$", (ROOT / page).read_text(encoding="utf-8"), flags=re.M)


def test_the_pages_install_in_the_same_way():
    assert install_lines("README.md") == install_lines("README.ko.md") != []


@pytest.mark.skipif(metadata.version("timm").startswith("0."), reason="needs timm 1.0 or newer, as Colab has")
def test_installing_as_the_readme_says_changes_no_package(python, tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "requirements-colab.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "beit3_vqa", tmp_path / "beit3_vqa", ignore=shutil.ignore_patterns("__pycache__"))
    versions, complaints = state(python, tmp_path)
    assert not ADDED & set(versions)
    (line,) = install_lines("README.md")
    pip = ("-m", "pip", *shlex.split(line), "--quiet")
    # First what it would do: a change would be written through the links, into the environment that runs this test.
    planned = json.loads(output(python, *pip, "--dry-run", "--report", "-", cwd=tmp_path))["install"]
    assert {one["metadata"]["name"] for one in planned} == ADDED
    output(python, *pip, cwd=tmp_path)
    now, complaints_now = state(python, tmp_path)
    assert {name: now[name] for name in versions} == versions
    assert set(now) - set(versions) == ADDED
    wanted = f"torchscale 0.3.0 has requirement timm==0.6.13, but you have timm {versions['timm']}."
    assert complaints_now - complaints == {wanted}  # as the README says
    code = (
        "import beit3_vqa, timm; beit3_vqa.register_with_timm()\n"
        "timm.create_model('beit3_tiny_patch8_32_vqacustom', num_classes=4); print(beit3_vqa.__file__)"
    )
    (tmp_path / "elsewhere").mkdir()
    file = output(python, "-c", code, cwd=tmp_path / "elsewhere").strip()
    assert Path(file).is_relative_to(python.parent.parent)
