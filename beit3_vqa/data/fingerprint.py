"""What tells the rows of one split from those of another: checkpoints keep it, 8 bytes a row.

The upper 48 bits of a row's number are a hash of what is asked: image, question, options. Among a million rows that
were trained on and a hundred thousand of validation a chance match has a probability of 0.0004. The lower 16 bits are a
hash of the answer. The digest is of everything, ids too, in order. Images count by their names, not by their pixels.
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
        rows: a number for each row, see above.
        digest: of all rows; empty where they never were one split.
    """

    rows: Numbers
    digest: str = ""

    @property
    def asked(self) -> Numbers:
        """What is asked in each row."""
        return self.rows >> np.uint64(ANSWER_BITS)

    @property
    def order(self) -> str:
        """Changes where another row comes at some place, whatever its id and its answer."""
        return hashlib.blake2b(self.asked.tobytes(), digest_size=8).hexdigest()

    def count_in(self, asked: Numbers) -> int:
        """Return how many rows ask what is asked in `asked`."""
        return int(np.isin(self.asked, asked).sum())

    def state(self) -> dict[str, Tensor | str]:
        """Return what a checkpoint keeps."""
        return {"rows": torch.from_numpy(self.rows.view(np.int64)), "digest": self.digest}

    @classmethod
    def from_state(cls, state: dict[str, Tensor | str]) -> "Fingerprint":
        """Read what `state` made."""
        rows, digest = state["rows"], state["digest"]
        assert isinstance(rows, Tensor)
        assert isinstance(digest, str)
        return cls(rows.numpy().view(np.uint64), digest)


EMPTY = Fingerprint(np.zeros(0, np.uint64))


class FingerprintMaker:
    """Looks at the examples of a split as they pass by."""

    def __init__(self) -> None:
        self._rows = array("Q")
        self._digest = hashlib.blake2b(digest_size=16)

    def watch(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Yield every example."""
        for example in examples:
            asked, answer = _get_texts(example)
            number = int.from_bytes(hashlib.blake2b(asked, digest_size=6).digest(), "big") << ANSWER_BITS
            self._rows.append(number | int.from_bytes(hashlib.blake2b(answer, digest_size=2).digest(), "big"))
            # NUL is in no text, so that what ends one part can't begin the next.
            self._digest.update(b"\0\0".join((example.id.encode(), asked, answer, b"")))
            yield example

    def done(self) -> Fingerprint:
        """Return the fingerprint of what has passed by."""
        return Fingerprint(np.array(self._rows, np.uint64), self._digest.hexdigest())


def _get_texts(example: Example) -> tuple[bytes, bytes]:
    """Return what is asked and what is answered, the same wherever the image folder lies."""
    folder = os.path.dirname(example.image_path)  # noqa: PTH120 - of every row, and Path is slow
    images = [path_key(example.image or example.image_path)]
    images += [path_key(os.path.relpath(path, folder)) for path in example.more_image_paths]
    tokens = ",".join(map(str, example.token_ids or ()))
    asked = "\0".join([*images, "", example.question, tokens, *example.choices])
    answer = "\0".join([example.answer or "", str(example.weight), *map(str, example.targets)])
    return asked.encode(), answer.encode()


@dataclass(frozen=True)
class Changes:
    """What became of a split, in rows.

    Attributes:
        added: that weren't there before.
        removed: that aren't there any more.
        changed: that have another answer or another weight.
        moved: that stand in another place among those that were there before; 0 where that can't be said.
        renamed: whether ids are all that changed.
    """

    added: int
    removed: int
    changed: int
    moved: int
    renamed: bool

    @property
    def same_content(self) -> bool:
        """Whether the rows ask and answer the same as before, in whatever order."""
        return not (self.added or self.removed or self.changed)

    def text(self) -> str:
        """Say it; empty where nothing changed."""
        counts = {"added": self.added, "removed": self.removed, "changed": self.changed, "in another place": self.moved}
        told = [f"{count:,} {name}" for name, count in counts.items() if count]
        return ", ".join(told) or ("other ids" if self.renamed else "")


def compare(before: Fingerprint, now: Fingerprint) -> Changes:
    """Return what became of a split."""
    in_both = _common(before.asked, now.asked)
    unchanged = _common(before.rows, now.rows)
    kept, left = (one.asked[np.isin(one.asked, two.asked)] for one, two in ((before, now), (now, before)))
    moved = int((kept != left).sum()) if len(kept) == len(left) else 0
    added, removed, changed = len(now.rows) - in_both, len(before.rows) - in_both, in_both - unchanged
    same_rows = not (added or removed or changed or moved)
    return Changes(added, removed, changed, moved, same_rows and before.digest != now.digest)


def _common(one: Numbers, two: Numbers) -> int:
    """Return how many numbers are in both, each as often as it is in both."""
    (values, counts), (others, other_counts) = (np.unique(numbers, return_counts=True) for numbers in (one, two))
    _, here, there = np.intersect1d(values, others, assume_unique=True, return_indices=True)
    return int(np.minimum(counts[here], other_counts[there]).sum())
