"""A split seen otherwise: every question in several orders of its options, or without its image."""

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from beit3_vqa.data.dataset import CustomDataset
from beit3_vqa.data.loader import Key
from beit3_vqa.data.orders import Order, orders
from beit3_vqa.schema import Example

BLIND = "the image was greyed out (--blind)"


class InOrders(Dataset):
    """The questions of a split for evaluation, each as often as its options have orders.

    The orders of a question stand side by side, so that its image is decoded once where they share a batch.

    Args:
        dataset: the split, in evaluation.
        mode: see `data.orders.orders`.
        blind: with a grey image in the place of each.
    """

    training = False

    def __init__(self, dataset: CustomDataset, mode: str = "none", *, blind: bool = False):
        self.dataset = dataset
        self.blind = blind
        self.orders: list[tuple[Order, ...]] = [orders(row.get("choices", ()), mode) for row in dataset.rows]
        self._ends = list(accumulate(map(len, self.orders)))

    @property
    def image_root(self) -> Path:
        """Folder that the rows' image paths start from."""
        return self.dataset.image_root

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, key: Key) -> tuple[Example, dict[str, Any]]:
        row, order = self._place(key[2])
        return self.dataset.evaluated(row, order, BLIND if self.blind else None)

    def without_image(self, index: int, problem: str) -> tuple[Example, dict[str, Any]]:
        """See `CustomDataset.without_image`."""
        row, order = self._place(index)
        return self.dataset.evaluated(row, order, problem)

    def example(self, index: int) -> Example:
        """See `CustomDataset.example`; options in the order in which they are shown."""
        row, order = self._place(index)
        return self.dataset.example(row, order)

    def _place(self, index: int) -> tuple[int, Order]:
        row = bisect_right(self._ends, index)
        return row, self.orders[row][index - (self._ends[row - 1] if row else 0)]
