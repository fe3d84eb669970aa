"""A task on the index files of a folder, ours or upstream's."""

from collections.abc import Iterable
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any, ClassVar

from beit3_vqa.config.config import RunConfig
from beit3_vqa.data.dataset import IndexDataset
from beit3_vqa.data.index import ALL_SPLITS, DatasetInfo, split_file, split_files
from beit3_vqa.data.predictions import predictions_file, publish_results, suffix_of, write_metrics, write_predictions
from beit3_vqa.data.rows import QUESTIONS, Row, RowFormat, Rows, read_rows
from beit3_vqa.data.types import EvalResult, Example, PredictionsInfo
from beit3_vqa.errors import InputError
from beit3_vqa.runtime.files import missing, staged
from beit3_vqa.tasks.base import Task


class IndexTask(Task):
    """Splits, folds, rows and result files. What is left to a task: `example`, and everything from there on.

    Args:
        config: the run's options.
        data_path: prepared folder; None for a task that only answers questions.
    """

    row_format: ClassVar[RowFormat] = QUESTIONS

    def __init__(self, config: RunConfig, data_path: Path | None = None):
        self.config = config
        self.data_path = data_path

    @classmethod
    def from_folder(cls, config: RunConfig) -> "IndexTask":
        """The task on a prepared folder."""
        return cls(config, data_folder(config))

    @classmethod
    def from_checkpoint(cls, config: RunConfig, saved: dict[str, Any], where: str) -> "IndexTask":
        """The task alone."""
        return cls(config)

    def state(self) -> dict[str, Any]:
        """Its name: outputs mean the same on all data."""
        return {"task": self.name}

    def example(self, row: Row, place: int) -> Example:
        """The example of a row, images relative to the image root; `place` counts the rows of the split from 0."""
        raise NotImplementedError

    def learnable(self, rows: Rows, split: str) -> Rows:
        """The rows that a training can use; InputError where some of them can't be right."""
        return rows

    def dataset(self, split: str, processor: Any, *, training: bool) -> IndexDataset:
        """A split of the data; InputError where it doesn't exist."""
        rows = self.rows(split)
        rows = self.learnable(rows, split) if training else rows
        tensors = partial(self._tensors, processor)
        seed = self.config.run.seed
        return IndexDataset(rows, self.example, self.image_root(), tensors, training=training, seed=seed)

    def _tensors(self, processor: Any, example: Example, rng: Any) -> dict[str, Any]:
        return self.tensors(example, processor, rng)

    def _files(self, split: str) -> list[Path]:
        assert self.data_path is not None
        return split_files(self.data_path, split, self.files)

    def splits(self) -> list[str]:
        """The splits that have an index file; with a fold, `val` is that fold."""
        found = [split for split in ALL_SPLITS if self._files(split)]
        if self.config.data.fold is not None and "val" not in found:
            found.insert(1, "val")
        return found

    def folds(self) -> list[int]:
        """The folds of the training rows."""
        return _folds(row for file in self._files("train") for row in read_rows(file, self.row_format))

    def rows(self, split: str) -> Rows:
        """The rows of a split, with a fold those of it.

        Raises:
            InputError: no such split or fold, an empty one, or rows that can't be used.
        """
        fold = self.config.data.fold
        files = self._files("train" if fold is not None and split == "val" else split)
        if not files:
            there = ", ".join(self.splits()) or "none at all"
            hint = " Was it prepared with --folds? Then add --fold K." if split == "val" else ""
            raise InputError(f"--data_path {self.data_path}: has no {split} split; it has {there}.{hint}")
        ours = split_file(split, self.files.name)
        # Upstream's scripts and their forks answer the first of several test questions with one id.
        first = {file: split.startswith("test") and file.name != ours for file in files}
        rows = reduce(add, (read_rows(file, self.row_format, keep_first=first[file]) for file in files))
        if not rows:
            raise InputError(f"{files[0]} is empty: the {split} split has no rows. Prepare the data again.")
        if fold is None or split not in ("train", "val"):
            return rows
        fold_of = [row.get("fold") for row in rows]
        folds = _folds(rows)
        if fold not in folds:
            there = f"folds {folds[0]} to {folds[-1]}" if folds else "no folds; prepare the data with --folds K"
            raise InputError(f"--fold {fold}: the training rows have {there}.")
        return rows.where((other == fold) == (split == "val") for other in fold_of)

    def image_root(self) -> Path:
        """The folder that images are named from; InputError where it isn't there."""
        assert self.data_path is not None
        root = Path(self.config.data.image_root or DatasetInfo.read(self.data_path).image_root)
        try:
            is_there = root.is_dir()
        except OSError as error:  # a name longer than the file system takes, a folder that isn't ours
            raise InputError(f"image folder {root}: {error.strerror}. Say where it is with --image_root.") from error
        if not is_there:
            raise InputError(f"{missing('image folder', root)} Where did the images go? Say it with --image_root.")
        return root

    def write_results(self, result: EvalResult, info: PredictionsInfo, folder: Path) -> list[Path]:
        """predictions.json, what it comes from, the task's own files and, where answers are known, metrics.json."""
        suffix = suffix_of(info.split)
        blind, metrics = f"predictions{suffix}_blind.json", f"metrics{suffix}.json"
        with staged(folder) as place:
            predictions = write_predictions(result.predictions, predictions_file(place, info.split))
            others = self.own_results(result, info, place, suffix)
            if result.blind:
                others.append(write_predictions(result.blind, place / blind))
            if result.metrics:
                others.append(write_metrics(result.metrics, place / metrics))
            return publish_results(info, predictions, others, folder, [blind, metrics])

    def own_results(self, result: EvalResult, info: PredictionsInfo, folder: Path, suffix: str) -> list[Path]:
        """Writes what else the task has to hand in; `suffix` is of the split."""
        return []


def data_folder(config: RunConfig) -> Path:
    """`--data_path`; InputError where it isn't there."""
    if not config.data.data_path:
        raise InputError("--data_path: give the folder that `beit3-vqa prepare` wrote.")
    folder = Path(config.data.data_path)
    if not folder.is_dir():
        raise InputError(f"--data_path: {missing('folder', folder)} `beit3-vqa prepare --help` says how to make one.")
    return folder


def _folds(rows: Iterable[Row]) -> list[int]:
    return sorted({row["fold"] for row in rows if row.get("fold") is not None})
