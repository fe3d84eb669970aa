"""Fingerprint the rows of a split, so that a checkpoint can tell whether its data have changed; 8 bytes a row.

The upper 48 bits of a row's number are a hash of what is asked: image, question, options. Between a million training
rows and a hundred thousand validation rows, a match by chance has a probability of 0.0004. The lower 16 bits are a hash
of the answer, and of the question in other words if it has any. The digest covers everything, ids too, in order. Images
count by their names, not by their pixels.
"""

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit3_vqa.data.index import path_key
from beit3_vqa.data.types import Example

ANSWER_BITS = 16
Numbers = NDArray[np.uint64]


@dataclass(frozen=True)
class Fingerprint:
    """The rows of a split, in order.

    Attributes:
        rows: uint64 (rows,), a number for each row as above.
        digest: hash of all rows; empty if they never were one split.
    """

    rows: Numbers
    digest: str = ""

    @property
    def asked(self) -> Numbers:
        """Return the hash of what is asked in each row, without the answer's bits."""
        asked: Numbers = self.rows >> np.uint64(ANSWER_BITS)
        return asked

    @property
    def order(self) -> str:
        """Return a hash of what is asked, in order; ids and answers don't change it."""
        return hashlib.blake2b(self.asked.tobytes(), digest_size=8).hexdigest()

    def count_in(self, asked: Numbers) -> int:
        """Return how many rows ask what one of the numbers `asked` stands for."""
        return int(np.isin(self.asked, asked).sum())

    def state(self) -> dict[str, Tensor | str]:
        """Return the plain values that a checkpoint keeps: `rows` as int64, which torch can save, and the digest."""
        return {"rows": torch.from_numpy(self.rows.view(np.int64)), "digest": self.digest}

    @classmethod
    def from_state(cls, state: dict[str, Tensor | str]) -> "Fingerprint":
        """Make the fingerprint from what `state` returned."""
        rows, digest = state["rows"], state["digest"]
        assert isinstance(rows, Tensor)
        assert isinstance(digest, str)
        return cls(rows.numpy().view(np.uint64), digest)


EMPTY = Fingerprint(np.zeros(0, np.uint64))


class FingerprintMaker:
    """Makes the fingerprint of a split while its examples pass by."""

    def __init__(self) -> None:
        self._rows = array("Q")
        self._digest = hashlib.blake2b(digest_size=16)

    def watch(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Yield every example, and take it into the fingerprint."""
        for example in examples:
            asked, answer = _get_texts(example)
            number = int.from_bytes(hashlib.blake2b(asked, digest_size=6).digest(), "big") << ANSWER_BITS
            self._rows.append(number | int.from_bytes(hashlib.blake2b(answer, digest_size=2).digest(), "big"))
            # No text holds NUL, so the end of one part can't be taken for the beginning of the next.
            self._digest.update(b"\0\0".join((example.id.encode(), asked, answer, b"")))
            yield example

    def done(self) -> Fingerprint:
        """Return the fingerprint of the examples that have passed by."""
        return Fingerprint(np.array(self._rows, np.uint64), self._digest.hexdigest())


def _get_texts(example: Example) -> tuple[bytes, bytes]:
    """Return what is asked and what is answered, independent of the path of the image folder."""
    images = [path_key(example.image or example.image_path)]
    if example.more_image_paths:
        folder = os.path.dirname(example.image_path)  # noqa: PTH120 - of every row, and Path is slow
        images += [path_key(os.path.relpath(path, folder)) for path in example.more_image_paths]
    tokens = ",".join(map(str, example.token_ids or ()))
    asked = "\0".join([*images, "", example.question, tokens, *example.choices])
    answer = "\0".join([example.answer or "", str(example.weight), *map(str, example.targets + example.teacher)])
    if example.wordings:
        # Not a part of what is asked: a row of val that was trained on is known by its first wording.
        answer = "\0".join([answer, "", *example.wordings])
    return asked.encode(), answer.encode()


@dataclass(frozen=True)
class Changes:
    """How a split has changed, in numbers of rows.

    Attributes:
        added: new rows.
        removed: rows that are gone.
        changed: rows with another answer, another weight or other further wordings.
        moved: rows that were there before and stand in another order now; 0 if that can't be told.
        renamed: True if only ids have changed.
    """

    added: int
    removed: int
    changed: int
    moved: int
    renamed: bool

    @property
    def same_content(self) -> bool:
        """Return True if the rows ask and answer the same as before, in any order."""
        return not (self.added or self.removed or self.changed)

    def text(self) -> str:
        """Describe the changes for a message; empty if there are none."""
        counts = {"added": self.added, "removed": self.removed, "changed": self.changed, "in another place": self.moved}
        told = [f"{count:,} {name}" for name, count in counts.items() if count]
        return ", ".join(told) or ("other ids" if self.renamed else "")


def compare(before: Fingerprint, now: Fingerprint) -> Changes:
    """Return how a split has changed."""
    in_both = _common(before.asked, now.asked)
    unchanged = _common(before.rows, now.rows)
    kept, left = (one.asked[np.isin(one.asked, two.asked)] for one, two in ((before, now), (now, before)))
    moved = int((kept != left).sum()) if len(kept) == len(left) else 0
    added, removed, changed = len(now.rows) - in_both, len(before.rows) - in_both, in_both - unchanged
    same_rows = not (added or removed or changed or moved)
    return Changes(added, removed, changed, moved, same_rows and before.digest != now.digest)


def _common(one: Numbers, two: Numbers) -> int:
    """Return how many numbers both hold, counting repeats: the size of the intersection of two multisets."""
    (values, counts), (others, other_counts) = (np.unique(numbers, return_counts=True) for numbers in (one, two))
    _, here, there = np.intersect1d(values, others, assume_unique=True, return_indices=True)
    return int(np.minimum(counts[here], other_counts[there]).sum())
