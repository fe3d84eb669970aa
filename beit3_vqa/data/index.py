"""The JSONL index: what a prepared folder holds, reading and writing it, seeded splits by image.

One row is one question, a JSON object on one line of UTF-8:

* multiple choice: `{"id", "image_path", "question", "choices": [4 texts], "answer": "C", "weight": 2.0, "fold": 3}`,
  where `answer` is a letter and absent when unknown, `weight` and `fold` are there only when asked for;
* open-ended: `{"id", "image_path", "question", "answer": "teal"}`; an answer outside the label table keeps its row;
* upstream's own: `{"image_path", "text_segment": [ids], "labels": [..], "scores": [..], "qid"}`; forks put text in
  `text_segment`, or call it `text`.

Image paths are relative to `DatasetInfo.image_root`.
"""

import json
import os
import posixpath
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beit3_vqa.errors import InputError
from beit3_vqa.files import missing, write_text

Row = dict[str, Any]

SPLITS = ("train", "val", "test")
INFO_FILE = "dataset.json"
ANSWERS_FILE = "answer2label.txt"
TOKENIZER_FILE = "tokenizer.spm"
MAX_WEIGHT = 1e12  # sums over millions of rows stay finite
MAX_ID = 1000  # characters
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")

# Upstream trains on the larger part of VQAv2's validation set too and validates on the rest of it.
_UPSTREAM_FILES = {
    "train": ("vqa.train.jsonl", "vqa.trainable_val.jsonl"),
    "val": ("vqa.rest_val.jsonl",),
    "test": ("vqa.test.jsonl",),
}


def split_file(split: str) -> str:
    """The name of the file that holds `split` in a prepared folder."""
    return f"vqacustom.{split}.jsonl"


def split_files(data_path: Path, split: str) -> list[Path]:
    """The files that hold `split`: ours or, in a folder without any of ours, upstream's; empty when there are none."""
    if any((data_path / split_file(known)).is_file() for known in SPLITS):
        names: tuple[str, ...] = (split_file(split),)
    else:
        names = _UPSTREAM_FILES.get(split, ())
    return [data_path / name for name in names if (data_path / name).is_file()]


def image_key(row: Mapping[str, Any]) -> str:
    r"""What tells one image from another: `img/0.jpg`, `./img/0.jpg` and `img\0.jpg` are the same."""
    return posixpath.normpath(row["image_path"].replace("\\", "/"))


def row_id(row: Mapping[str, Any]) -> str:
    """The id of a row; upstream's name for it is qid."""
    return str(row["id"] if "id" in row else row["qid"])


def is_text(value: object) -> bool:
    """Whether `value` is a string that can be stored: no NUL and no lone surrogate, which JSON can smuggle in."""
    return isinstance(value, str) and not _UNSTORABLE.search(value)


def read_rows(path: Path) -> list[Row]:
    """Read an index file, ours or upstream's; blank lines are skipped.

    Raises InputError that lists `file:line` of every row that isn't valid JSON, isn't an object, lacks a field, has
    one of the wrong type, or repeats an id.
    """
    rows: list[Row] = []
    problems: list[str] = []
    first_line: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.isspace():
                    continue
                try:
                    row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, RecursionError) as error:
                    problems.append(f"{path}:{number}: isn't JSON in UTF-8: {error}")
                    continue
                problem = _row_problem(row)
                if problem:
                    problems.append(f"{path}:{number}: {problem}")
                    continue
                name = row_id(row)
                if first_line.setdefault(name, number) != number:
                    problems.append(f"{path}:{number}: the id {name!r} is on line {first_line[name]} too")
                rows.append(row)
    except FileNotFoundError:
        raise InputError(missing("index file", path)) from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    if problems:
        raise InputError.of_problems(f"{path} is no index that can be used:", problems)
    return rows


def _row_problem(row: object) -> str:
    """What is wrong with a row, or an empty string."""
    if not isinstance(row, dict):
        return "isn't a JSON object"
    if "image_path" not in row:
        return f"has no image_path (it has {', '.join(row) or 'no field at all'})"
    if not is_text(row["image_path"]) or not row["image_path"]:
        return "image_path must be text"
    name = row.get("id", row.get("qid"))
    if name is None:
        return "has no id (or, upstream's name for it, qid)"
    if not (is_text(name) and name.strip()) and type(name) is not int:
        return "id must be text or a whole number"
    if len(str(name)) > MAX_ID:
        return f"id has more than {MAX_ID} characters"
    problem = _text_problem(row) or _target_problem(row)
    if problem:
        return problem
    weight = row.get("weight", 1.0)
    if type(weight) not in (int, float) or not 0 <= weight <= MAX_WEIGHT:
        return f"weight must be a number from 0 to {MAX_WEIGHT:g}"
    return "" if is_count(row.get("fold", 0)) else "fold must be a whole number"


def _text_problem(row: Row) -> str:
    if "text_segment" in row:
        segment = row["text_segment"]
        known = all(map(is_count, segment)) if isinstance(segment, list) else bool(segment) and is_text(segment)
        return "" if known else "text_segment must be a list of token ids, or text"
    if "question" not in row:
        return "has no question (nor upstream's text_segment)"
    if not is_text(row["question"]) or not row["question"].strip():
        return "question must be text"
    choices = row.get("choices", ("", ""))
    if type(choices) not in (list, tuple) or not 2 <= len(choices) <= len(LETTERS) or not all(map(is_text, choices)):
        return f"choices must be a list of 2 to {len(LETTERS)} texts"
    if "choices" in row and not all(choice.strip() for choice in choices):
        return "choices must not be empty"
    return ""


def _target_problem(row: Row) -> str:
    if "answer" in row:
        answer = row["answer"]
        if not is_text(answer) or not answer:
            return "answer must be text (leave it out where it isn't known)"
        if "choices" in row and answer not in tuple(LETTERS[: len(row["choices"])]):
            return f"answer {answer!r} must be a letter from A to {LETTERS[len(row['choices']) - 1]}"
    labels, scores = row.get("labels"), row.get("scores")
    if labels or scores:  # a fork writes "" where the answer isn't known
        if not isinstance(labels, list) or not all(map(is_count, labels)):
            return "labels must be a list of class numbers"
        if not isinstance(scores, list) or not all(type(s) in (int, float) and 0 <= s <= 1 for s in scores):
            return "scores must be a list of numbers from 0 to 1"
        if len(labels) != len(scores):
            return f"has {len(labels)} labels but {len(scores)} scores"
    return ""


def is_count(value: object) -> bool:
    """Whether `value` is a whole number, 0 or more (True and False aren't)."""
    return type(value) is int and value >= 0


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write an index file; until all of it is written, whatever was at `path` stays."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_text(path, lines)


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.json` says about a prepared folder.

    Attributes:
        image_root: the folder that rows' image paths are relative to.
        format: the format that `prepare` read, empty where it isn't known.
        seed: what the split and the shuffles were drawn with.
        splits: rows in each split.
        summary: further numbers, for people to read.
    """

    image_root: Path
    format: str = ""
    seed: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, data_path: Path) -> "DatasetInfo":
        """Read `dataset.json`; a folder without one (upstream's, a fork's) keeps its images inside itself."""
        path = data_path / INFO_FILE
        if not path.exists():
            return cls(image_root=data_path)
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            known = {name: fields[name] for name in ("format", "seed", "splits", "summary") if name in fields}
            return cls(image_root=data_path / fields["image_root"], **known)
        except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"can't read {path} ({type(error).__name__}: {error}); run `beit3-vqa prepare` again to write it anew"
            ) from error

    def write(self, data_path: Path, folder: Path | None = None) -> None:
        """Write the `dataset.json` of `data_path`, into `folder` where it is to be moved later.

        Images inside the prepared folder or beside it are named relative to it, so that both can move together.
        """
        fields = {
            "format": self.format,
            "image_root": _portable_path(self.image_root, data_path),
            "seed": self.seed,
            "splits": self.splits,
            "summary": self.summary,
        }
        text = json.dumps(fields, ensure_ascii=False, indent=2, allow_nan=False)
        write_text((folder or data_path) / INFO_FILE, [text, "\n"])


def _portable_path(image_root: Path, data_path: Path) -> str:
    images, home = image_root.resolve(), data_path.resolve()
    beside = home.parent in (images, images.parent)
    return Path(os.path.relpath(images, home)).as_posix() if beside or images.is_relative_to(home) else str(images)


def split_by_image(rows: Sequence[Row], val_ratio: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows into (train, val) so that no image is on both sides.

    About `val_ratio` of the images go to val, of each majority answer the same share as near as whole images allow
    (largest remainder), and at least one image to each side. The split depends on the rows and the seed, not on the
    rows' order; each side keeps it. Raises InputError when there are fewer than two images.
    """
    if not 0 < val_ratio < 1:
        raise InputError(f"the share of images for validation must lie between 0 and 1, not {val_ratio}")
    groups = _images_by_answer(rows, seed)
    total = sum(map(len, groups))
    if total < 2:
        raise InputError(
            f"can't split by image: the training rows have {total} image(s) and each side needs one; "
            "give validation rows of their own, or do without any (--val_ratio 0)"
        )
    wanted = min(max(round(val_ratio * total), 1), total - 1)
    quotas = [len(group) * wanted // total for group in groups]
    by_remainder = sorted(range(len(groups)), key=lambda index: -(len(groups[index]) * wanted % total))
    for index in by_remainder[: wanted - sum(quotas)]:
        quotas[index] += 1
    val_images = {image for group, quota in zip(groups, quotas, strict=True) for image in group[:quota]}
    train_rows = [row for row in rows if image_key(row) not in val_images]
    return train_rows, [row for row in rows if image_key(row) in val_images]


def assign_folds(rows: Sequence[Row], folds: int, seed: int) -> list[int]:
    """The fold (0 to folds - 1) of each row: all rows of an image in one fold, images dealt out answer by answer.

    Folds differ by at most one image, in all and for each majority answer. Raises InputError when there are fewer
    images than folds.
    """
    if folds < 2:
        raise InputError(f"there must be at least 2 folds, not {folds}")
    images = [image for group in _images_by_answer(rows, seed) for image in group]
    if len(images) < folds:
        raise InputError(f"can't make {folds} folds by image: the training rows have {len(images)} image(s)")
    fold_of = {image: position % folds for position, image in enumerate(images)}
    return [fold_of[image_key(row)] for row in rows]


def _images_by_answer(rows: Sequence[Row], seed: int) -> list[list[str]]:
    """Images grouped by the answer most of their rows have, groups and images within them in seeded random order."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        answers[image_key(row)][row.get("answer", "")] += 1
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
