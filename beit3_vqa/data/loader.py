"""Load batches in an order that depends on seed and epoch alone."""

import atexit
import signal
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import TypeVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from beit3_vqa.data.bad_images import BadImages, Examples, Item, SkipUnreadable
from beit3_vqa.data.mixture import Group, mixed
from beit3_vqa.data.types import Batch, Example, Key, Tensors
from beit3_vqa.errors import InputError
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.distributed import shard_range
from beit3_vqa.runtime.signals import leave_signals_to_the_parent

Collate = Callable[[Sequence[Tensors]], dict[str, Tensor]]
T = TypeVar("T")
# A training batch and the tensors of its examples -> the batch with its targets.
Finish = Callable[[Batch, Sequence[Tensors]], Batch]


_workers: "WeakSet[BaseProcess]" = WeakSet()


@atexit.register
def _kill_workers() -> None:
    """End the workers that are still there when the interpreter ends: an error's traceback may hold their loader.

    multiprocessing sends each one SIGTERM, which it ignores (`leave_signals_to_the_parent`), and then waits for ever.
    """
    if _workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would call their end an error
    for worker in _workers:
        worker.kill()


class EpochBatches(Sampler[list[Key]]):
    """Batches of (epoch, draw, row) keys: as many draws as rows in an epoch; the last batch may be smaller.

    The attribute `rows` is the number of draws in an epoch.

    Args:
        rows: number of rows; with `groups` it doesn't matter.
        batch_size: keys in a batch.
        shuffle: True for a new order each epoch, a function of (seed, epoch), with every row once.
        weights: with `shuffle`, float (rows,): draw rows with replacement, in proportion to these.
        groups: with `shuffle`: an epoch has each group's draws, mixed, in place of every row once.
        order: without `shuffle`: int64 (rows,), the rows in the order of the epoch; None: as they are.
        of_rank: number of this process among `of_size`, which share every batch of `of_size * batch_size` keys evenly.
            If a last batch has no key for it, it gets the first one, which must not be counted.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        weights: Tensor | None = None,
        groups: Sequence[Group] = (),
        order: Tensor | None = None,
        of_rank: int = 0,
        of_size: int = 1,
    ):
        self.rows = sum(group.draws for group in groups) if groups else rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.weights = weights
        self.groups = tuple(groups)
        self.order = order
        self.of_rank, self.of_size = of_rank, of_size
        self.epoch = 0
        self.first = 0  # draws of the epoch that were done before

    def __len__(self) -> int:
        return -(-(self.rows - self.first) // (self.batch_size * self.of_size))

    def __iter__(self) -> Iterator[list[Key]]:
        order = self._order()
        for start in range(self.first, self.rows, self.batch_size * self.of_size):
            count = min(self.batch_size * self.of_size, self.rows - start)
            begin, end = shard_range(count, self.of_rank, self.of_size)
            if begin == end:  # every process must take part in each step
                begin, end = 0, 1
            rows = order[start + begin : start + end].tolist()
            # A draw is counted over all processes, so its random numbers are the same however many of them share a
            # batch.
            yield [(self.epoch, start + begin + place, row) for place, row in enumerate(rows)]

    def _order(self) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.rows) if self.order is None else self.order
        # Far apart, so that no epoch of one seed has the order of another seed's.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.weights is not None:
            return torch.multinomial(self.weights, self.rows, replacement=True, generator=generator)
        if self.groups:
            return mixed(self.groups, self.seed, self.epoch, generator)
        return torch.randperm(self.rows, generator=generator)


class BatchLoader:
    """A DataLoader over `EpochBatches` whose workers live as long as it does.

    Args:
        dataset: the examples.
        collate: the processor's: tensors of examples -> inputs of the model.
        attach_targets: the task's: puts the targets of its loss into a batch; None: nothing is learned.
        num_workers: number of worker processes; 0 loads in this one.
        pin_memory: True to load into page-locked memory, see `Batch.pin_memory`.
        bad_images: counts the images that can't be read; None: the first one is an error.
    """

    def __init__(
        self,
        dataset: Examples,
        collate: Collate,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        weights: Tensor | None = None,
        groups: Sequence[Group] = (),
        order: Tensor | None = None,
        attach_targets: Finish | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        bad_images: BadImages | None = None,
    ):
        self.dataset = dataset
        self.bad_images = bad_images or BadImages()
        rows = len(dataset)
        self.batches = EpochBatches(
            rows,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            weights=weights,
            groups=groups,
            order=order,
            of_rank=distributed.rank(),
            of_size=distributed.world_size(),
        )
        # Typed by its batches, not by its items, as `collate_fn` makes them.
        self.loader: Iterable[Batch | list[InputError]] = DataLoader(
            SkipUnreadable(dataset, self.bad_images.allowed),
            batch_sampler=self.batches,
            collate_fn=_Collator(collate, attach_targets),
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=leave_signals_to_the_parent,
            # Its own generator: drawing from the global one would change the model's drop path.
            generator=torch.Generator().manual_seed(seed),
        )

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of one pass over the data, without its `first` draws.

        If several processes share the data, they must go through the pass together.

        Raises:
            InputError: an example can't be read, and nothing may replace it; raised in every process before any of
                them has the batch.
        """
        # The sampler is in this process, and its keys name the epoch: workers that live on needn't be told of a new
        # one.
        self.batches.epoch, self.batches.first = epoch, first
        before = set(active_children())
        try:
            batches = iter(self.loader)
        finally:  # those too that started before another one couldn't
            _workers.update(set(active_children()) - before)
        for loaded in batches:
            batch = self._count_bad_images(loaded)
            distributed.raise_together(batch if isinstance(batch, InputError) else None)
            assert isinstance(batch, Batch)
            yield batch

    def in_input_order(self, of_rows: Sequence[T]) -> list[T]:
        """Return what was made of the rows, in the order of the epoch, in that of the data set."""
        order = self.batches.order
        places = range(len(of_rows)) if order is None else torch.argsort(order).tolist()
        return [of_rows[place] for place in places]

    def _count_bad_images(self, loaded: Batch | list[InputError]) -> Batch | InputError:
        """Return the batch, or the error that ends the pass."""
        try:
            for error in loaded.bad_images if isinstance(loaded, Batch) else loaded:
                self.bad_images.add(error)
        except InputError as error:
            # Its traceback would hold this frame, and so the loader.
            return error.with_traceback(None)
        if isinstance(loaded, Batch):
            return loaded
        return InputError("none of the images can be read. Is --image_root right?")


def noting_rows(examples: Iterable[Example], noted: "array[int]") -> Iterator[Example]:
    """Yield examples, and note two numbers of each: that of its images, as they first come, and its text's length."""
    numbers: dict[tuple[str, ...], int] = {}
    for example in examples:
        noted.extend((numbers.setdefault(example.image_paths, len(numbers)), example.text_length))
        yield example


def evaluation_order(noted: "array[int]") -> Tensor | None:
    """Return the order in which rows are evaluated, so that little is computed twice or for padding.

    Rows of an image come one after another: while a cache keeps it, it is decoded once, and embedded once for those in
    a batch. Images come by the length of their longest text, so that texts of a batch are alike; the longest first, so
    that memory that doesn't suffice is usually known at once.

    Args:
        noted: what `noting_rows` noted.

    Returns:
        int64 (rows,); None if the rows come so already.
    """
    images, lengths = torch.from_numpy(np.array(noted, dtype=np.int64)).view(-1, 2).unbind(dim=1)
    longest = torch.zeros_like(images).scatter_reduce_(0, images, lengths, "amax")  # of each image, by its number
    by_image = torch.argsort(images, stable=True)
    # Stable too, so that the rows of images whose longest texts are equally long don't mix.
    order = by_image[torch.argsort(longest[images[by_image]], stable=True, descending=True)]
    return None if torch.equal(order, torch.arange(len(order))) else order


class _Collator:
    """Makes a batch of items, or returns their errors; a class, because spawned workers can't unpickle a closure."""

    def __init__(self, collate: Collate, attach_targets: Finish | None):
        self.collate = collate
        self.attach_targets = attach_targets

    def __call__(self, items: Sequence[Item]) -> Batch | list[InputError]:
        errors = [error for *_, met in items for error in met]
        examples = tuple(example for example, *_ in items if example is not None)
        # An item without an example: its image can't be read, nor that of any row in its place.
        if len(examples) < len(items):
            return errors
        own = [tensors for _, tensors, _ in items if tensors is not None]
        batch = Batch(self.collate(own), examples, bad_images=tuple(errors))
        return self.attach_targets(batch, own) if self.attach_targets else batch
