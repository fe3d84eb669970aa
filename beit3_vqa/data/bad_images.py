"""Images that can't be read: counted, named once, and passed over up to a number that the user sets.

What stands in for one depends on nothing but the key of the draw and on which files can be read:

- in training the next row of the index whose image can be read (after the last row comes the first), drawn and
  augmented as the row it replaces would have been: batches keep their size, every other example its place;
- in evaluation the row itself, with a grey image: every row is answered, in its place, and flagged.

Worker processes find bad images, and the main process counts them in the order of the batches: the number of workers
changes neither the count nor the message that ends a run. Where torchrun started several processes, each counts what it
meets, and at the end of an epoch or a split they put their counts together.
"""

import os
from typing import Any

from torch.utils.data import Dataset

from beit3_vqa.data.types import Example
from beit3_vqa.errors import ImageError, InputError
from beit3_vqa.runtime import distributed

# An example and its tensors, None where there is nothing to go on with, and the errors met on the way.
Item = tuple[Example | None, dict[str, Any] | None, tuple[InputError, ...]]


class BadImages:
    """The distinct bad images of a run (of this session, where it is resumed).

    Args:
        allowed: how many may be passed over.
    """

    def __init__(self, allowed: int = 0):
        self.allowed = allowed
        self._paths: dict[str, str] = {}  # and what is wrong with each

    def __contains__(self, path: str) -> bool:
        return os.path.normpath(path) in self._paths

    @property
    def left(self) -> int:
        """How many more may be passed over."""
        return self.allowed - len(self._paths)

    def add(self, error: InputError) -> None:
        """Counts and names an image that hasn't been named yet.

        Raises:
            InputError: it is one more than allowed, or the error is no image's at all.
        """
        # A new error each time: one that a frame of its own traceback holds would keep the loader in a cycle, whose
        # collection waits for workers that can no longer be told to end (5 s for each of them).
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
        print(f"bad image {len(self._paths)} of {self.allowed} allowed: {problem}", flush=True)

    def sync_ranks(self) -> None:
        """Adds what other processes have met; each must call it, and has then counted the same images.

        Raises:
            InputError: together they are more than allowed; in every process.
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


class SkipUnreadable(Dataset):
    """A data set whose examples come with the bad images they stand in for.

    Errors are values here: one raised in a worker would arrive wrapped in the worker's traceback.

    Args:
        dataset: indexed by (epoch, draw, row) -> (example, tensors); with `without_image(row, problem)` and `training`
            where anything is to be passed over.
        allowed: as of `BadImages`; a worker doesn't look for a stand-in beyond that many bad images.
    """

    def __init__(self, dataset: Any, allowed: int):
        self.dataset = dataset
        self.allowed = allowed

    def __getitem__(self, key: tuple[int, int, int]) -> Item:
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

    def _next_readable(self, key: tuple[int, int, int], first: ImageError) -> Item:
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
