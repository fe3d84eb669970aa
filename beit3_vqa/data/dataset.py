"""Index rows -> examples -> tensors."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.images import resolve_image_path
from beit3_vqa.data.loader import Key
from beit3_vqa.data.orders import Order, reordered
from beit3_vqa.data.rows import Row, row_id
from beit3_vqa.errors import ImageError, InputError, one_line
from beit3_vqa.schema import Example


class CustomDataset(Dataset):
    """Questions of one split of a prepared folder.

    Indexed by (epoch, draw, row), it gives the example, as the model is to see it, and what the processor made of it.
    All that is random about it depends on seed and key alone, not on workers or on where a run was resumed.

    Args:
        rows: index rows (see `data.index`).
        answers: answer table; for multiple choice its labels are the positions of the options.
        image_root: folder that the rows' image paths start from.
        processor: `processor(example, rng)` -> tensors; `rng` is None in evaluation.
        training: whether to augment, and to permute the options with `shuffle_choices`.
        seed: of everything random.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        answers: AnswerTable,
        image_root: Path,
        processor: Callable[[Example, random.Random | None], dict[str, Any]],
        *,
        training: bool = False,
        shuffle_choices: bool = False,
        seed: int = 0,
    ):
        self.rows = rows
        self.answers = answers
        self.image_root = image_root
        self.processor = processor
        self.training = training
        self.shuffle_choices = shuffle_choices
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> tuple[Example, dict[str, Any]]:
        epoch, draw, index = key
        example = self.example(index)
        rng = random.Random(f"{self.seed}/{epoch}/{draw}") if self.training else None
        if rng is not None and self.shuffle_choices:
            example = permute_choices(example, rng)
        return self._processed(example, rng)

    def _processed(self, example: Example, rng: random.Random | None) -> tuple[Example, dict[str, Any]]:
        try:
            return example, self.processor(example, rng)
        except ImageError as error:
            raise ImageError(f"row {one_line(example.id)}: {error}", example.image_path) from error
        except InputError as error:
            raise InputError(f"row {one_line(example.id)}: {error}") from error

    def without_image(self, index: int, problem: str) -> tuple[Example, dict[str, Any]]:
        """A row whose image can't be read, as evaluation sees it: flagged with the `problem`, its image grey."""
        return self.evaluated(index, None, problem)

    def evaluated(self, index: int, order: Order | None, problem: str | None) -> tuple[Example, dict[str, Any]]:
        """A row as evaluation sees it, its options in an order; with a `problem`, flagged, and its image grey."""
        return self._processed(dataclasses.replace(self.example(index, order), problem=problem), None)

    def balancing_weights(self, power: float) -> Tensor:
        """For each row, (rows with the same answer) ^ -power: 0 leaves rows equal, 1 makes answers equally likely."""
        code_of: dict[str, int] = {}
        codes = [code_of.setdefault(str(row.get("answer", row.get("labels"))), len(code_of)) for row in self.rows]
        answers = torch.tensor(codes)
        return answers.bincount().double().pow(-power)[answers]

    def example(self, index: int, order: Order | None = None) -> Example:
        """The example of a row, options in the index's order or another; InputError if its image leaves the root."""
        row = self.rows[index]
        answer, targets = truth_of(row, self.answers)
        try:
            image_path = str(resolve_image_path(self.image_root, row["image_path"]))
        except InputError as error:
            raise InputError(f"row {one_line(row_id(row))}: {error}") from error
        text = row["question"] if "question" in row else row["text_segment"]
        example = Example(
            id=row_id(row),
            image_path=image_path,
            question=text if isinstance(text, str) else "",
            choices=tuple(row.get("choices", ())) if "question" in row else (),
            answer=answer,
            targets=targets,
            weight=row.get("weight"),
            token_ids=None if isinstance(text, str) else tuple(text),
            image=row["image_path"],
        )
        return reordered(example, order) if order and example.choices else example


def truth_of(row: Row, table: AnswerTable) -> tuple[str | None, tuple[tuple[int, float], ...]]:
    """The annotated answer of a row, None where it isn't known, and its (label, score) pairs."""
    if "question" in row:
        answer = row.get("answer")
        label = None if answer is None else table.label(answer)
        return answer, () if label is None else ((label, 1.0),)
    scored = zip(row.get("labels") or (), row.get("scores") or (), strict=True)
    targets = tuple((label, score) for label, score in scored if score > 0)
    outside = [label for label, _ in targets if label >= len(table)]
    if outside:
        raise InputError(f"row {one_line(row_id(row))}: label {outside[0]} isn't in the answer table.")
    best = max(targets, key=lambda target: target[1], default=None)
    return None if best is None else table.answers[best[0]], targets


def permute_choices(example: Example, rng: random.Random) -> Example:
    """The same question with its options, and the answer with them, in a random order; open-ended: unchanged."""
    if not example.choices:
        return example
    order = list(range(len(example.choices)))
    rng.shuffle(order)
    return reordered(example, tuple(order))
