"""Find the files of a prepared folder, and split rows by image with a seed. `data.rows` says what a row is."""

import json
import os
import posixpath
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from beit3_vqa.data.folds import even_out, get_labels
from beit3_vqa.data.rows import Row
from beit3_vqa.errors import InputError, plural, short
from beit3_vqa.runtime.files import file_sha256, is_text, read_json, write_text

SPLITS = ("train", "val", "test")
ALL_SPLITS = (*SPLITS, "test-dev")  # VQAv2's smaller test
INFO_FILE = "dataset.json"
MAX_INFO = 100_000_000  # bytes of `INFO_FILE`
UNFINISHED = {"unfinished": True}  # content of that file while `prepare` replaces the others
ANSWERS_FILE = "answer2label.txt"
TOKENIZER_FILE = "tokenizer.spm"
CLASSES_FILE = "classes.json"  # names of the classes of images, in the order of their labels


@dataclass(frozen=True)
class IndexFiles:
    """The names of a task's index files.

    Attributes:
        name: our files are `NAME.SPLIT.jsonl`.
        others: split -> the files that upstream's scripts write for it.
        train_name: NAME of the training split, if it is another task's; empty: as for the others.
        tests_on_val: True if the val split is also the test split, unless there is one.
    """

    name: str
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    train_name: str = ""
    tests_on_val: bool = False


# Upstream trains on the larger part of VQAv2's validation set too and validates on the rest of it.
UPSTREAMS_VQA = {
    "train": ("vqa.train.jsonl", "vqa.trainable_val.jsonl"),
    "val": ("vqa.rest_val.jsonl",),
    "test": ("vqa.test.jsonl",),
    "test-dev": ("vqa.test-dev.jsonl",),
}
VQACUSTOM = IndexFiles("vqacustom", UPSTREAMS_VQA)


def split_file(split: str, name: str = VQACUSTOM.name) -> str:
    """Return the name of the file that holds `split` in a folder prepared for the task `name`."""
    return f"{name}.{split}.jsonl"


def split_files(data_path: Path, split: str, files: IndexFiles = VQACUSTOM) -> list[Path]:
    """Return the files of a split: ours or, in a folder without any of ours, upstream's; empty if there are none."""
    name = files.train_name if split == "train" and files.train_name else files.name
    if any((data_path / split_file(known, name)).is_file() for known in ALL_SPLITS):
        names: tuple[str, ...] = (split_file(split, name),)
    else:
        names = files.others.get(split, ())
    found = [data_path / name for name in names if (data_path / name).is_file()]
    return split_files(data_path, "val", files) if not found and split == "test" and files.tests_on_val else found


def image_key(row: Row) -> str:
    """Return the key of a row's (first) image: `path_key` of its path."""
    return path_key(row["image_path"])


@lru_cache(maxsize=100_000)  # every step asks for the key of every row's image
def path_key(path: str) -> str:
    r"""Return the same key for every spelling of an image's path: `img/0.jpg`, `./img/0.jpg`, `img\0.jpg`."""
    return posixpath.normpath(path.replace("\\", "/"))


def image_paths(row: Row) -> list[str]:
    """Return the paths of every image of a row."""
    return [row[name] for name in ("image_path", "image2_path") if name in row]


@dataclass(frozen=True)
class DatasetInfo:
    """The content of `dataset.json` in a prepared folder.

    Attributes:
        image_root: the folder that rows' image paths are relative to.
        format: the format that `prepare` read; empty if it isn't known.
        seed: seed of the split and the shuffles.
        splits: split -> number of rows.
        summary: further numbers, for people to read.
        written: name -> SHA-256 of the other files that `prepare` wrote there.
    """

    image_root: Path
    format: str = ""
    seed: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    summary: dict[str, object] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)

    def wrote(self, path: Path) -> bool:
        """Return whether `prepare` wrote that file of the folder and nobody has changed it since.

        Version 0.1.0 kept no record; all that lies beside its dataset.json counts as written by it.
        """
        return self.written.get(path.name) == file_sha256(path) if self.written else self.format != ""

    @classmethod
    def read(cls, data_path: Path) -> "DatasetInfo":
        """Read `dataset.json`; a folder without one (upstream's, a fork's) is its own image root.

        Raises:
            InputError: the file is there and can't be used.
        """
        path = data_path / INFO_FILE
        if not path.exists():
            return cls(image_root=data_path)
        fields = _read(path)
        if fields == UNFINISHED:
            raise InputError(
                f"{data_path}: `beit3-vqa prepare` was ended while it replaced files here, so they may not belong "
                "together; run it again. What it replaced is in the newest previous-N of that folder."
            )
        try:
            if not is_text(fields["image_root"]):
                raise ValueError(f"image_root can't be {short(fields['image_root'])}")
            if not isinstance(fields.get("written", {}), dict):
                raise ValueError(f"written can't be {short(fields['written'])}")
            names = ("format", "seed", "splits", "summary", "written")
            known = {name: fields[name] for name in names if name in fields}
            return cls(image_root=data_path / fields["image_root"], **known)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"can't read {path} ({type(error).__name__}: {error}); run `beit3-vqa prepare` again to write it anew"
            ) from error

    def write(self, data_path: Path, folder: Path | None = None) -> None:
        """Write the `dataset.json` of `data_path`; with a `folder`, there, to be moved later.

        An image root inside the prepared folder or beside it is written relative to it, so that both can move together.
        """
        fields = {
            "format": self.format,
            "image_root": _portable_path(self.image_root, data_path),
            "seed": self.seed,
            "splits": self.splits,
            "summary": self.summary,
            "written": self.written,
        }
        text = json.dumps(fields, ensure_ascii=False, indent=2, allow_nan=False)
        write_text((folder or data_path) / INFO_FILE, [text, "\n"])


def _read(path: Path) -> Any:
    """Return the JSON that `prepare` wrote; InputError if it can't be read."""
    try:
        return read_json(path, MAX_INFO)
    except InputError as error:
        raise InputError(f"can't read {path}: {error} Run `beit3-vqa prepare` again to write it anew") from error


def _portable_path(image_root: Path, data_path: Path) -> str:
    """Return the image root relative to the folder if both can move together; else its absolute path."""
    images, home = image_root.resolve(), data_path.resolve()
    beside = home.parent in (images, images.parent)
    return Path(os.path.relpath(images, home)).as_posix() if beside or images.is_relative_to(home) else str(images)


def classes_text(classes: Sequence[str]) -> str:
    """Return the text of `CLASSES_FILE` for these names."""
    return json.dumps(list(classes), ensure_ascii=False, indent=0) + "\n"


def read_classes(data_path: Path) -> list[str]:
    """Read the names in `CLASSES_FILE`; InputError if they can't be read, aren't text, or one occurs twice."""
    path = data_path / CLASSES_FILE
    classes = _read(path)
    if not isinstance(classes, list) or not classes or not all(map(is_text, classes)):
        raise InputError(f"{path} must be a list of texts, one for each class; prepare the data again")
    if len(set(classes)) < len(classes):
        raise InputError(f"{path} names a class twice; prepare the data again")
    return classes


def split_by_image(
    rows: Sequence[Row], val_ratio: float, seed: int, key: Callable[[Row], str] = image_key
) -> tuple[list[Row], list[Row]]:
    """Split rows into (train, val) so that no image is on both sides.

    About `val_ratio` of the images go to val: of each majority answer the same share, as near as whole images allow
    (largest remainder). Each side gets at least one image. The split depends on the rows and the seed, not on the rows'
    order, which each side keeps. Images are the same if the `key` of their rows is.

    Raises:
        InputError: there are fewer than two images, or `val_ratio` isn't between 0 and 1.
    """
    if not 0 < val_ratio < 1:
        raise InputError(f"the share of images for validation must lie between 0 and 1, not {val_ratio}")
    groups = _images_by_answer(rows, seed, key)
    total = sum(map(len, groups))
    if total < 2:
        raise InputError(
            f"can't split by image: the training rows have {plural(total, 'image')} and each side needs one; "
            "give a file of validation rows, or make no validation split (--val_ratio 0)"
        )
    wanted = min(max(round(val_ratio * total), 1), total - 1)
    quotas = [len(group) * wanted // total for group in groups]
    by_remainder = sorted(range(len(groups)), key=lambda index: -(len(groups[index]) * wanted % total))
    for index in by_remainder[: wanted - sum(quotas)]:
        quotas[index] += 1
    val_images = {image for group, quota in zip(groups, quotas, strict=True) for image in group[:quota]}
    train_rows = [row for row in rows if key(row) not in val_images]
    return train_rows, [row for row in rows if key(row) in val_images]


def assign_folds(rows: Sequence[Row], folds: int, seed: int, key: Callable[[Row], str] = image_key) -> list[int]:
    """Return the fold (0 to folds - 1) of each row: all rows of an image in one.

    Images are dealt out answer by answer: their numbers in two folds differ by at most one, in all and for each
    majority answer. Then folds swap images until question words and answers are spread evenly too, see `even_out`.
    Images are the same if the `key` of their rows is.

    Raises:
        InputError: there are fewer images than folds, or fewer than 2 folds.
    """
    if folds < 2:
        raise InputError(f"there must be at least 2 folds, not {folds}")
    groups = _images_by_answer(rows, seed, key)
    images = [image for group in groups for image in group]
    if len(images) < folds:
        raise InputError(f"can't make {folds} folds by image: the training rows have {plural(len(images), 'image')}")
    fold_of = {image: position % folds for position, image in enumerate(images)}
    kind_of = {image: str(number) for number, group in enumerate(groups) for image in group}
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        labels[key(row)].update(get_labels(row))
    even_out(fold_of, kind_of, labels, random.Random(seed))
    return [fold_of[key(row)] for row in rows]


def _images_by_answer(rows: Sequence[Row], seed: int, key: Callable[[Row], str]) -> list[list[str]]:
    """Group images by the answer that most of their rows have; shuffle the groups and the images in them."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        answers[key(row)][str(row.get("answer", row.get("label", "")))] += 1
    groups: dict[str, list[str]] = defaultdict(list)
    for image in sorted(answers):
        majority = min(answers[image].items(), key=lambda item: (-item[1], item[0]))[0]
        groups[majority].append(image)
    rng = random.Random(seed)
    ordered = [groups[answer] for answer in sorted(groups)]
    for group in ordered:
        rng.shuffle(group)
    # Answers with equal remainders compete for the last places; without this the first in the alphabet would win.
    rng.shuffle(ordered)
    return ordered
