"""Batches in an order that depends on nothing but seed and epoch."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from beit3_vqa.data.bad_images import BadImages, Item, SkipUnreadable
from beit3_vqa.data.types import Batch
from beit3_vqa.errors import InputError
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.distributed import shard_range
from beit3_vqa.runtime.signals import leave_signals_to_the_parent

# Which pass over the data, which draw of it, which row.
Key = tuple[int, int, int]
Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]]
# A batch of training and what its examples' tensors were -> the batch with what is learned.
Finish = Callable[[Batch, Sequence[dict[str, Any]]], Batch]


class EpochBatches(Sampler):
    """Batches of (epoch, draw, row) keys, as many as rows, the last batch whatever is left.

    Args:
        rows: number of rows.
        batch_size: keys in a batch.
        shuffle: a new order each epoch, a function of (seed, epoch); every row once.
        weights: with `shuffle`, draw rows in proportion to these instead, one more than once and another not at all.
        of_rank: number of this process among `of_size`, which share every batch of `of_size * batch_size` keys evenly;
            where a last batch has none for it, it gets the first one, which is not to be counted.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        weights: Tensor | None = None,
        of_rank: int = 0,
        of_size: int = 1,
    ):
        self.rows = rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.weights = weights
        self.of_rank, self.of_size = of_rank, of_size
        self.epoch = 0
        self.first = 0  # draws of the epoch that are done

    def __len__(self) -> int:
        return -(-(self.rows - self.first) // (self.batch_size * self.of_size))

    def __iter__(self) -> Iterator[list[Key]]:
        order = self._order()
        for start in range(self.first, self.rows, self.batch_size * self.of_size):
            count = min(self.batch_size * self.of_size, self.rows - start)
            begin, end = shard_range(count, self.of_rank, self.of_size)
            if begin == end:
                begin, end = 0, 1
            rows = order[start + begin : start + end].tolist()
            yield [(self.epoch, start + begin + place, row) for place, row in enumerate(rows)]

    def _order(self) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.rows)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.weights is not None:
            return torch.multinomial(self.weights, self.rows, replacement=True, generator=generator)
        return torch.randperm(self.rows, generator=generator)


class BatchLoader:
    """A DataLoader over `EpochBatches` whose workers live as long as it does.

    Args:
        dataset: indexed by (epoch, draw, row) -> (example, tensors).
        collate: the processor's: tensors of examples -> inputs of the model.
        finish: the task's: puts into a batch what its loss compares with; None: nothing is learned.
        num_workers: processes; 0 loads in this one.
        bad_images: counts the images that can't be read; None: the first one is an error.
    """

    def __init__(
        self,
        dataset: Dataset,
        collate: Collate,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        weights: Tensor | None = None,
        attach_targets: Finish | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        bad_images: BadImages | None = None,
    ):
        self.dataset = dataset
        self.bad_images = bad_images or BadImages()
        rows = len(dataset)  # type: ignore[arg-type]
        self.batches = EpochBatches(
            rows,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            weights=weights,
            of_rank=distributed.rank(),
            of_size=distributed.world_size(),
        )
        self.loader: DataLoader = DataLoader(
            SkipUnreadable(dataset, self.bad_images.allowed),
            batch_sampler=self.batches,
            collate_fn=_Collator(collate, attach_targets),
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=leave_signals_to_the_parent,
            # Its own generator: a loader that drew from the global one would move the model's drop path.
            generator=torch.Generator().manual_seed(seed),
        )

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one pass over the data, or of what is left of it after its `first` draws.

        Raises:
            InputError: an example can't be read, and nothing may stand in for it.
        """
        self.batches.epoch, self.batches.first = epoch, first
        for batch in self.loader:
            for error in batch.bad_images if isinstance(batch, Batch) else batch:
                self.bad_images.add(error)
            if not isinstance(batch, Batch):
                raise InputError("not one row has an image that can be read. Is --image_root right?")
            yield batch


class _Collator:
    """Items -> Batch, or the errors that leave none; a class, so that it reaches workers that are spawned."""

    def __init__(self, collate: Collate, attach_targets: Finish | None):
        self.collate = collate
        self.attach_targets = attach_targets

    def __call__(self, items: Sequence[Item]) -> Batch | list[InputError]:
        errors = [error for *_, met in items for error in met]
        examples = tuple(example for example, *_ in items if example is not None)
        if len(examples) < len(items):
            return errors
        own = [tensors for _, tensors, _ in items if tensors is not None]
        batch = Batch(self.collate(own), examples, bad_images=tuple(errors))
        return self.attach_targets(batch, own) if self.attach_targets else batch
