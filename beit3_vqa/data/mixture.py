"""Train on several sources at once: their examples as one data set, and groups of rows drawn in fixed proportions.

A group's rows come in one random order after another, and each order is used up before the next begins. So every row of
a group comes before any of them comes again, over the borders of epochs too. The order of an epoch is a function of
seed and epoch alone, and a run may go on anywhere in it.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from torch import Tensor
from torch.utils.data import Dataset

from beit3_vqa.data.dataset import IndexDataset, get_balancing_weights
from beit3_vqa.data.types import Example, Key, Tensors
from beit3_vqa.errors import InputError

MAX_DRAWS = 10**9  # in an epoch; their order is held in memory


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of a training set, of which an epoch draws a fixed number.

    Attributes:
        name: of the source that they are from.
        rows: int64 (rows,), numbers of the rows.
        draws: how many of them an epoch has; may be more than there are, or fewer.
    """

    name: str
    rows: Tensor
    draws: int

    def drawn(self, seed: int, number: int, epoch: int) -> Tensor:
        """Return the rows that an epoch draws, int64 (draws,), in order; `number` tells groups of a run apart."""
        size = len(self.rows)
        first, last = epoch * self.draws, (epoch + 1) * self.draws
        begun = first // size  # the first of the orders that the epoch uses
        orders = [self._order(f"{seed}/{number}/{turn}") for turn in range(begun, -(-last // size))]
        return self.rows[torch.cat(orders)[first - begun * size : last - begun * size]]

    def _order(self, key: str) -> Tensor:
        """Return a random order of the group's places, which depends on the key alone."""
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        return torch.randperm(len(self.rows), generator=generator)


def mixed(groups: Sequence[Group], seed: int, epoch: int, generator: torch.Generator) -> Tensor:
    """Return the rows of an epoch, int64 (draws of all groups,), in order.

    The `generator` shuffles which group comes next; the rows of each keep their order, so that none comes again before
    all have come.
    """
    draws = torch.tensor([group.draws for group in groups])
    group_of = torch.arange(len(groups)).repeat_interleave(draws)[torch.randperm(int(draws.sum()), generator=generator)]
    order = torch.empty(len(group_of), dtype=torch.int64)
    for number, group in enumerate(groups):
        order[group_of == number] = group.drawn(seed, number, epoch)
    return order


def get_digest(groups: Sequence[Group]) -> str:
    """Return a hash of which rows are in which group."""
    parts = (group.rows.numpy().tobytes() + b"/" for group in groups)
    return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()


def count_draws(sizes: Sequence[int], shares: Sequence[float], once: int) -> list[int]:
    """Return how many examples of each source make an epoch in which each row of source `once` comes once.

    Args:
        sizes: rows of each source.
        shares: of each source in an epoch, to be compared with each other; more than 0.
        once: number of the source that is seen once.

    Returns:
        Numbers of examples, each at least 1.

    Raises:
        InputError: they are too many.
    """
    draws = [max(1.0, sizes[once] * (share / shares[once])) for share in shares]
    if sum(draws) > MAX_DRAWS:
        raise InputError(
            f"--mix: {sum(draws):,.0f} examples would make an epoch, in which each of the {sizes[once]:,} of one "
            f"source comes once; {MAX_DRAWS:,} are the most. Give that source a larger share."
        )
    return [round(count) for count in draws]


class JoinedDataset(Dataset[tuple[Example, Tensors]]):
    """The training rows of several sources as one data set: the rows of one after those of another.

    Args:
        parts: a data set for each source.
    """

    training = True

    def __init__(self, parts: Sequence[IndexDataset]):
        self.parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, key: Key) -> tuple[Example, Tensors]:
        epoch, draw, index = key
        part, row = self._place(index)
        return part[epoch, draw, row]

    def without_image(self, index: int, problem: str) -> tuple[Example, Tensors]:
        """Return what `IndexDataset.without_image` does."""
        part, row = self._place(index)
        return part.without_image(row, problem)

    def example(self, index: int) -> Example:
        """Return what `IndexDataset.example` does."""
        part, row = self._place(index)
        return part.example(row)

    def balancing_weights(self, power: float, within: str = "all") -> Tensor:
        """Return what `IndexDataset.balancing_weights` does, for the answers of all sources together."""
        return get_balancing_weights(chain.from_iterable(part.rows for part in self.parts), power, within)

    def _place(self, index: int) -> tuple[IndexDataset, int]:
        """Return the data set that a row is of, and its number there."""
        number = bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)
