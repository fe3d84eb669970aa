"""The index files of a prepared folder, ours or upstream's: splits, folds, rows and the folder of the images."""

from collections.abc import Iterable
from functools import reduce
from operator import add
from pathlib import Path

from beit3_vqa.config.options import DataConfig
from beit3_vqa.config.sources import Sources
from beit3_vqa.data.index import ALL_SPLITS, DatasetInfo, IndexFiles, split_file, split_files
from beit3_vqa.data.rows import Row, RowFormat, Rows, read_prepared_rows, read_rows
from beit3_vqa.errors import InputError
from beit3_vqa.runtime.files import missing


class PreparedFolder:
    """The data of one kind of task in a folder; with `--fold`, `val` is that fold of the training rows.

    Args:
        options: where the folder and its images are, and the fold.
        files: names of its index files.
        row_format: of their rows.

    Raises:
        InputError: no such folder.
    """

    def __init__(self, options: DataConfig, files: IndexFiles, row_format: RowFormat):
        sources = Sources.of(options)
        if not sources.folder:
            raise InputError("--data_path: give the folder that `beit3-vqa prepare` wrote.")
        self.path = Path(sources.folder)
        self._image_root = sources.image_roots[sources.main]
        if not self.path.is_dir():
            problem = missing("folder", self.path)
            raise InputError(f"--data_path: {problem} `beit3-vqa prepare --help` says how to make one.")
        self._options, self._files, self._row_format = options, files, row_format

    def files(self, split: str) -> list[Path]:
        """Return the index files of a split; empty if there are none."""
        return split_files(self.path, split, self._files)

    def splits(self) -> list[str]:
        """Return the splits that have an index file, and `val` if it is a fold."""
        found = [split for split in ALL_SPLITS if self.files(split)]
        if self._options.fold is not None and "val" not in found:
            found.insert(1, "val")
        return found

    def folds(self) -> list[int]:
        """Return the numbers of the folds of the training rows, in order; empty if there are none."""
        return _folds(row for file in self.files("train") for row in self._read(file))

    def rows(self, split: str) -> Rows:
        """Return the rows of a split; with a fold, `val` is its rows and `train` all others.

        Raises:
            InputError: no such split or fold, an empty one, or rows that can't be used.
        """
        fold = self._options.fold
        files = self.files("train" if fold is not None and split == "val" else split)
        if not files:
            there = ", ".join(self.splits()) or "none at all"
            hint = " Was it prepared with --folds? Then add --fold K." if split == "val" else ""
            raise InputError(f"--data_path {self.path}: has no {split} split; it has {there}.{hint}")
        ours = split_file(split, self._files.name)
        # Upstream's scripts and their forks answer the first of several test questions with one id.
        first = {file: split.startswith("test") and file.name != ours for file in files}
        rows = reduce(add, (self._read(file, keep_first=first[file]) for file in files))
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

    def _read(self, file: Path, *, keep_first: bool = False) -> Rows:
        """Return the rows of an index file, each checked unless the file is as `prepare` wrote it."""
        sha256 = DatasetInfo.read(self.path).written.get(file.name, "")
        rows = read_prepared_rows(file, sha256) if sha256 else None
        return read_rows(file, self._row_format, keep_first=keep_first) if rows is None else rows

    def image_root(self) -> Path:
        """Return the folder that the image paths of rows start from; InputError if it isn't there."""
        root = Path(self._image_root or DatasetInfo.read(self.path).image_root)
        try:
            is_there = root.is_dir()
        except OSError as error:  # a name longer than the file system takes, a folder that isn't ours
            raise InputError(f"image folder {root}: {error.strerror}. Say where it is with --image_root.") from error
        if not is_there:
            raise InputError(f"{missing('image folder', root)} Where are the images now? Say it with --image_root.")
        return root


def _folds(rows: Iterable[Row]) -> list[int]:
    return sorted({row["fold"] for row in rows if row.get("fold") is not None})
