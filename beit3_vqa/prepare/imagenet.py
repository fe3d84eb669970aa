"""ImageNet, or any images in folders by class: `train/CLASS/IMAGE` and `val/CLASS/IMAGE` under `--image_root`.

Classes are numbered in the order of their names, as upstream and torchvision have it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beit3_vqa.data.index import CLASSES_FILE, classes_text
from beit3_vqa.errors import MAX_PROBLEMS
from beit3_vqa.files import is_text, missing
from beit3_vqa.prepare import Argument
from beit3_vqa.prepare.writer import Prepared, PrepareOptions

ARGUMENTS = (
    Argument("train", "folder of the training images in --image_root", default="train"),
    Argument("val", "folder of the validation images in --image_root", default="val"),
)


def read(values: Mapping[str, Any], options: PrepareOptions) -> Prepared:
    """Read the folders; without one for validation, `--val_ratio` of the training images are it."""
    prepared = Prepared("imagenet", [], options.image_root, task="imagenet")
    root = Path(options.image_root)
    if not options.image_root or not (root / values["train"]).is_dir():
        prepared.problems.append(missing("folder of training images", root / values["train"]))
        return prepared
    classes = _subfolders(root / values["train"])
    prepared.extra_files = lambda splits: {CLASSES_FILE: classes_text(classes)}
    if not classes:
        prepared.problems.append(f"{root / values['train']} has no folder in it: each class needs one")
    unnameable = [name for name in classes if not is_text(name)]
    prepared.problems += [f"class folder {name!r}: its name isn't text in UTF-8; rename it" for name in unnameable]
    for split in ("train", "val"):
        folder = root / values[split]
        if split == "val" and not folder.is_dir():
            prepared.notes.append(f"{folder} isn't there")
            continue
        unknown = set(_subfolders(folder)) - set(classes)
        prepared.problems += [f"{folder / name}: no class of the training images" for name in sorted(unknown)]
        for label, name in enumerate(classes):
            _add_class(prepared, split, folder / name, label, root)
    prepared.notes.append(f"{len(classes):,} classes")
    return prepared


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def _add_class(prepared: Prepared, split: str, folder: Path, label: int, root: Path) -> None:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not found and split == "train":
        prepared.problems.append(f"{folder} holds no image")
    for path in found:
        name = path.relative_to(root).as_posix()
        if is_text(name):
            prepared.add(split, {"image_path": name, "label": label}, str(path))
        elif len(prepared.problems) < MAX_PROBLEMS:
            prepared.problems.append(f"{path!r}: its name isn't text in UTF-8; rename it")
