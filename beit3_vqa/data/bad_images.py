"""Go on without images that can't be read: name each once, and skip as many as the user allows.

What replaces one depends only on the key of the draw and on which files can be read:

- in training the next row of the index whose image can be read (after the last row comes the first), drawn and
  augmented as the row it replaces would have been: batches keep their size, every other example its place;
- in evaluation the row itself with a grey image: every row is answered in its place, and this one is flagged.

Worker processes find bad images, and the main process counts them in the order of the batches: the number of workers
changes neither the count nor the message that ends a run. If torchrun started several processes, each counts what it
meets, and at the end of an epoch or a split they merge their counts.
"""

import logging
import os
from typing import Protocol

from torch.utils.data import Dataset

from beit3_vqa.data.types import Example, Key, Tensors
from beit3_vqa.errors import ImageError, InputError
from beit3_vqa.runtime import distributed

logger = logging.getLogger(__name__)

# An example and its tensors (both None if there is nothing to go on with), and the errors met on the way.
Item = tuple[Example | None, Tensors | None, tuple[InputError, ...]]


class Examples(Protocol):
    """The examples of a split, indexed by `Key`; an ImageError tells that an image can't be read."""

    @property
    def training(self) -> bool:
        """Return True if another row may replace one whose image can't be read."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> tuple[Example, Tensors]: ...

    def without_image(self, index: int, problem: str) -> tuple[Example, Tensors]:
        """Return a row with a grey image, flagged with the `problem`."""


class BadImages:
    """The distinct bad images of a run; a resumed run counts anew.

    Args:
        allowed: how many may be skipped.
    """

    def __init__(self, allowed: int = 0):
        self.allowed = allowed
        self._paths: dict[str, str] = {}  # path -> what is wrong with it

    def __contains__(self, path: str) -> bool:
        return os.path.normpath(path) in self._paths

    @property
    def left(self) -> int:
        """Return how many more may be skipped."""
        return self.allowed - len(self._paths)

    def add(self, error: InputError) -> None:
        """Count and print the image of an error, unless it has been counted before.

        Raises:
            InputError: it is one more than allowed, or the error isn't about an image.
        """
        # Raise a new error: the old one and a frame of its traceback would hold each other and the loader. Collecting
        # that cycle waits 5 s for each worker, which can no longer be told to end.
        if not isinstance(error, ImageError):
            raise InputError(str(error))
        if error.path in self:
            return
        if not self.left:
            if not self.allowed:
                raise ImageError(str(error), error.path)
            raise InputError(f"{error}\nThat is one more bad image than --skip_bad_images {self.allowed} allows.")
        self._name(os.path.normpath(error.path), str(error))

    def _name(self, path: str, problem: str) -> None:
        self._paths[path] = problem
        logger.warning(f"bad image {len(self._paths)} of {self.allowed} allowed: {problem}")

    def sync_ranks(self) -> None:
        """Merge the counts of all processes; each must call it.

        Raises:
            InputError: together they are more than allowed; raised in every process.
        """
        if not self.allowed or distributed.world_size() == 1:
            return
        for found in distributed.all_gather(self._paths):
            for path, problem in found.items():
                if path not in self._paths:
                    self._name(path, problem)
        if len(self._paths) > self.allowed:
            raise InputError(
                f"{len(self._paths)} bad images in all processes, {len(self._paths) - self.allowed} more than "
                f"--skip_bad_images {self.allowed} allows; the last: {list(self._paths.values())[-1]}"
            )


class SkipUnreadable(Dataset[Item]):
    """A data set whose items name the bad images that they replace.

    Errors are returned, not raised: one raised in a worker would arrive wrapped in the worker's traceback.

    Args:
        dataset: the examples.
        allowed: as for `BadImages`; a worker looks for a replacement past that many bad images at most.
    """

    def __init__(self, dataset: Examples, allowed: int):
        self.dataset = dataset
        self.allowed = allowed

    def __getitem__(self, key: Key) -> Item:
        try:
            return (*self.dataset[key], ())
        except ImageError as error:
            if not self.allowed:
                return None, None, (error,)
            if self.dataset.training:
                return self._next_readable(key, error)
            return (*self.dataset.without_image(key[2], str(error)), (error,))
        except InputError as error:
            return None, None, (error,)

    def _next_readable(self, key: Key, first: ImageError) -> Item:
        """Return the next readable row in place of `key`'s, or nothing if too many images on the way are bad."""
        epoch, draw, row = key
        met = {first.path: first}
        for step in range(1, len(self.dataset)):
            if len(met) > self.allowed:
                break
            try:
                found = self.dataset[epoch, draw, (row + step) % len(self.dataset)]
                return (*found, tuple(met.values()))
            except ImageError as error:
                met.setdefault(error.path, error)
        return None, None, tuple(met.values())
