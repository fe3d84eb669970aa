"""ImageNet, or any images in folders by class: `train/CLASS/IMAGE` and `val/CLASS/IMAGE` under `--image_root`.

Classes are numbered in the order of their names, as in upstream and torchvision. Links are followed. Files and folders
that operating systems and tools leave behind are passed over and counted.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from beit3_vqa.data.index import CLASSES_FILE, classes_text
from beit3_vqa.errors import MAX_PROBLEMS
from beit3_vqa.preparation.writer import Prepared, PrepareOptions
from beit3_vqa.runtime.fields import Options, option
from beit3_vqa.runtime.files import is_text, missing


@dataclass(frozen=True)
class Arguments(Options):
    """The folders to read."""

    train: str = option("train", "folder of the training images in --image_root")
    val: str = option("val", "folder of the validation images in --image_root")


# Of macOS's archives, Windows and Synology; whatever begins with a dot is hidden.
_LEFT_BY_SYSTEMS = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "@eadir"})
# What people keep beside images. Any other file that Pillow can't read is an error: a photograph in HEIC is to be
# converted, not lost.
_OTHER_FILES = frozenset({".txt", ".csv", ".tsv", ".json", ".xml", ".md", ".html", ".yaml", ".yml", ".log"})
_SHOWN = 5  # names of what is passed over


def read(arguments: Arguments, options: PrepareOptions) -> Prepared:
    """Read the folders; without one for validation, `--val_ratio` of the training images are split off."""
    prepared = Prepared("imagenet", [], options.image_root, task="imagenet")
    root = Path(options.image_root)
    if not options.image_root or not (root / arguments.train).is_dir():
        prepared.problems.append(missing("folder of training images", root / arguments.train))
        return prepared
    passed_over: Counter[str] = Counter()
    classes = _subfolders(root / arguments.train, prepared, passed_over)
    prepared.extra_files = lambda splits: {CLASSES_FILE: classes_text(classes)}
    if not classes:
        prepared.problems.append(f"{root / arguments.train} has no folder in it: each class needs one")
    unnameable = [name for name in classes if not is_text(name)]
    prepared.problems += [f"class folder {name!r}: its name isn't text in UTF-8; rename it" for name in unnameable]
    for split in ("train", "val"):
        folder = root / getattr(arguments, split)
        if split == "val" and not folder.is_dir():
            prepared.notes.append(f"{folder} isn't there")
            continue
        if split == "val":
            unknown = set(_subfolders(folder, prepared, passed_over)) - set(classes)
            prepared.problems += [f"{folder / name}: no class of the training images" for name in sorted(unknown)]
        for label, name in enumerate(classes):
            _add_class(prepared, split, folder / name, label, root, passed_over)
    prepared.notes.append(f"{len(classes):,} class{'es' * (len(classes) != 1)}")
    if passed_over:
        shown = ", ".join(sorted(passed_over)[:_SHOWN]) + (", ..." if len(passed_over) > _SHOWN else "")
        number = passed_over.total()
        what = "file or folder passed over that is no image"
        if number != 1:
            what = "files and folders passed over that are no images"
        prepared.notes.append(f"{number:,} {what}: {shown}")
    return prepared


def _entries(folder: Path, prepared: Prepared, passed_over: Counter[str]) -> list[Path]:
    """Return what is in a folder and may be a class or an image; count the rest in `passed_over`."""
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        prepared.problems.append(f"{folder} can't be read: {error.strerror}")
        return []
    kept = [entry for entry in found if not _is_left_over(entry.name)]
    passed_over.update(entry.name for entry in found if _is_left_over(entry.name))
    return kept


def _is_left_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def _subfolders(folder: Path, prepared: Prepared, passed_over: Counter[str]) -> list[str]:
    return [entry.name for entry in _entries(folder, prepared, passed_over) if entry.is_dir()]


def _files(folder: Path, prepared: Prepared, passed_over: Counter[str], above: tuple[Path, ...]) -> list[Path]:
    """Return the files of a folder and of the folders in it, without those that `passed_over` counts.

    A link to one of the folders `above` this one, or to a folder that holds one, is passed over: it leads in a circle.
    """
    here, found = folder.resolve(), []
    if any(other.is_relative_to(here) for other in above):
        passed_over[folder.name] += 1
        return []
    for entry in _entries(folder, prepared, passed_over):
        if entry.is_dir():
            found += _files(entry, prepared, passed_over, (*above, here))
        elif entry.suffix.lower() in _OTHER_FILES:
            passed_over[entry.name] += 1
        else:  # a link to nothing, or a pipe, is for the check of images to name
            found.append(entry)
    return found


def _add_class(prepared: Prepared, split: str, folder: Path, label: int, root: Path, passed_over: Counter[str]) -> None:
    found = sorted(_files(folder, prepared, passed_over, (folder.parent.resolve(),))) if folder.is_dir() else []
    if not found and split == "train":
        prepared.problems.append(f"{folder} holds no image")
    for path in found:
        name = path.relative_to(root).as_posix()
        if is_text(name):
            prepared.add(split, {"image_path": name, "label": label}, str(path))
        elif len(prepared.problems) < MAX_PROBLEMS:
            prepared.problems.append(f"{path!r}: its name isn't text in UTF-8; rename it")
