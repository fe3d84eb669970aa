"""What a bundle holds beside its models: the script, this package, the versions of the others, and a page about it."""

import json
import re
import shutil
import zipfile
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from beit3_vqa import __version__
from beit3_vqa.runtime.files import replacing, write_text

SCRIPT, README, REQUIREMENTS = "script.py", "README.md", "requirements.txt"
MODELS, PACKAGES, PRETRAINED = "model", "packages", "pretrained"
PACKAGE = Path(__file__).parents[2]
# What setup.py asks for.
NEEDED: tuple[str, ...] = ("torch", "torchvision", "torchscale", "timm", "sentencepiece", "pillow", "numpy", "pandas")
NEEDED += ("tensorboard", "tqdm")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can say
_MODE = 0o100644 << 16  # a file that everybody can read


@dataclass(frozen=True)
class Packed:
    """A model of a bundle.

    Attributes:
        name: of the kind of model.
        checkpoint: name of the file that it comes from, without its folder.
        sha256: of that file.
        parameters: how many it has.
        packages: what it needs beside `NEEDED`.
    """

    name: str
    checkpoint: str
    sha256: str
    parameters: int
    packages: tuple[str, ...]


def write_script(folder: Path, id: str, columns: str, precision: str) -> None:
    """Write script.py.

    Args:
        folder: of the bundle.
        id: name of the column of ids.
        columns: what other columns mean, as `--columns` says it.
        precision: auto, fp32, bf16, fp16 or int8.
    """
    text = Path(__file__).with_name("script.txt").read_text(encoding="utf-8")
    for name, default, value in (("ID", "ID", id), ("COLUMNS", "", columns), ("PRECISION", "auto", precision)):
        text = text.replace(f"\n{name} = {_quoted(default)}", f"\n{name} = {_quoted(value)}", 1)
    write_text(folder / SCRIPT, text)


def _quoted(value: str) -> str:
    """Return a text as Python and JSON alike write it."""
    return json.dumps(value, ensure_ascii=False)


def copy_package(folder: Path) -> None:
    """Copy this package, as it runs, and its licence into `packages/`, where script.py finds it without installing."""
    target = folder / PACKAGES
    shutil.copytree(PACKAGE, target / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    licence = _licence()
    if licence is not None:
        shutil.copyfile(licence, target / "LICENSE")


def _licence() -> Path | None:
    beside = PACKAGE.parent / "LICENSE"  # in a checkout
    if (PACKAGE.parent / "setup.py").is_file() and beside.is_file():
        return beside
    try:
        files = metadata.files("beit3_vqa") or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name == "LICENSE"), None)


def write_requirements(folder: Path, names: Iterable[str]) -> None:
    """Write the versions of packages, and of all that they ask for, as they are installed here.

    With every one of them named, `pip install --no-deps -r` installs just these, whatever their own pins say.
    """
    found: dict[str, str] = {}
    left = deque(names)
    while left:
        name = left.popleft()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another system, or unpacked by hand
            continue
        found[key] = distribution.version
        for line in distribution.requires or ():
            wanted = _NAME.match(line)
            if wanted and "extra ==" not in line.partition(";")[2]:
                left.append(wanted[0])
    lines = ["# What this bundle was tried out with: pip install --no-deps -r requirements.txt"]
    lines += [f"# beit3_vqa {__version__} is in packages/, where script.py finds it."]
    for name, version in sorted(found.items()):
        public, _, local = version.partition("+")  # no index has the local one
        lines.append(f"{name}=={public}" + (f"  # as installed: {version}" if local else ""))
    write_text(folder / REQUIREMENTS, "\n".join(lines) + "\n")


def write_readme(folder: Path, models: Sequence[Packed], license: str, date: str) -> None:
    """Write the page about a bundle; what the user didn't state isn't stated there."""
    size = sum(path.stat().st_size for path in (folder / MODELS).rglob("*") if path.is_file())
    together = " The models' probabilities are averaged." if len(models) > 1 else ""
    lines = [
        "# An answer to every question of a table, offline",
        "",
        "```",
        "pip install --no-deps -r requirements.txt",
        "python script.py --table test.csv --image_root images --output submission.csv",
        "```",
        "",
        f"`script.py` needs no network and no compiler; its three options have these defaults.{together} An image that "
        "can't be read is named, and its question is answered from the text alone.",
        "",
        "| folder | model | parameters | made of | SHA-256 of that file |",
        "|---|---|---|---|---|",
    ]
    for number, model in enumerate(models, start=1):
        file = f"{MODELS}/{number}", model.name, f"{model.parameters:,}", model.checkpoint, model.sha256
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in file)} |")
    lines += [
        "",
        f"- Parameters in sum: {sum(model.parameters for model in models):,}",
        f"- Size of `{MODELS}/`: {size:,} bytes",
        f"- Licence of the weights that training began with, as stated by who made this: {license or 'not stated'}",
        f"- Date of these weights, as stated by who made this: {date or 'not stated'}",
        f"- `{PACKAGES}/beit3_vqa`: version {__version__}, MIT licence; its code is all there",
    ]
    write_text(folder / README, "\n".join(lines) + "\n")


def write_zip(folder: Path, path: Path) -> None:
    """Write a folder as a zip whose bytes depend on names and contents alone; weights aren't compressed."""
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for source in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(source.relative_to(folder).as_posix(), _EPOCH)
            packs = source.suffix not in (".safetensors", ".bin")
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED if packs else zipfile.ZIP_STORED, _MODE
            entry.create_system = 3  # Unix, on every system
            is_large = source.stat().st_size >= zipfile.ZIP64_LIMIT
            with source.open("rb") as content, archive.open(entry, "w", force_zip64=is_large) as packed:
                shutil.copyfileobj(content, packed, 2**22)
