"""Turn index rows into examples, and examples into tensors."""

import dataclasses
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from beit3_vqa.data.answers import AnswerTable, answer_key
from beit3_vqa.data.choice_order import Order, movable, orders, reordered, split_mode
from beit3_vqa.data.decoding import memory_for
from beit3_vqa.data.images import image_file
from beit3_vqa.data.rows import LETTERS, Row, row_id
from beit3_vqa.data.types import Example, Key, Tensors
from beit3_vqa.errors import ImageError, InputError, one_line

TensorsOf = Callable[[Example, random.Random | None], Tensors]


class IndexDataset(Dataset[tuple[Example, Tensors]]):
    """The examples of one split.

    Indexed by (epoch, draw, row), it gives the example as the model sees it, and the processor's tensors. Everything
    random depends on seed and key alone, not on workers or on where a run was resumed.

    Args:
        rows: index rows (see `data.rows`).
        example_of: (row, its place) -> example, with relative image paths.
        image_root: folder that the examples' image paths start from.
        processor: (example, rng) -> tensors; `rng` is None in evaluation.
        training: True to augment.
        shuffle_choices: True if training shows a question's options in another order each time.
        seed: seed of everything random.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        example_of: Callable[[Row, int], Example],
        image_root: Path,
        processor: TensorsOf,
        *,
        training: bool = False,
        shuffle_choices: bool = False,
        seed: int = 0,
    ):
        self.rows = rows
        self.example_of = example_of
        self.image_root = image_root
        self.processor = processor
        self.training = training
        self.shuffle_choices = shuffle_choices
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> tuple[Example, Tensors]:
        epoch, draw, index = key
        example = self.example(index)
        rng = random.Random(f"{self.seed}/{epoch}/{draw}") if self.training else None
        if self.training and example.wordings:
            # A generator of its own, so that rows of one wording are what they would be without the others.
            words = random.Random(f"{self.seed}/{epoch}/{example.id}/wording")
            example = reworded(example, words.randrange(1 + len(example.wordings)))
        if rng is not None and self.shuffle_choices:
            example = permute_choices(example, rng)
        return self._processed(example, rng)

    def _processed(self, example: Example, rng: random.Random | None) -> tuple[Example, Tensors]:
        """Return the example and its tensors; an error of the processor gets the row's id."""
        try:
            with memory_for(example.image_path):
                return example, self.processor(example, rng)
        except ImageError as error:
            raise ImageError(f"row {one_line(example.id)}: {error}", error.path or example.image_path) from error
        except InputError as error:
            raise InputError(f"row {one_line(example.id)}: {error}") from error

    def without_image(self, index: int, problem: str) -> tuple[Example, Tensors]:
        """Return a row whose image can't be read as evaluation sees it: flagged with the `problem`, its image grey."""
        return self.evaluated(index, None, problem)

    def evaluated(
        self, index: int, order: Order | None, problem: str | None, wording: int = 0
    ) -> tuple[Example, Tensors]:
        """Return a row as evaluation sees it; a `problem` flags it and makes its image grey; see `example`."""
        return self._processed(dataclasses.replace(self.example(index, order, wording), problem=problem), None)

    def balancing_weights(self, power: float, within: str = "all") -> Tensor:
        """Return what `get_balancing_weights` does for these rows."""
        return get_balancing_weights(self.rows, power, within)

    def example(self, index: int, order: Order | None = None, wording: int = 0) -> Example:
        """Return a row's example; InputError if an image leaves the root.

        Args:
            index: place of the row.
            order: of its options; None: the index's.
            wording: number of the wording in which it is asked, see `reworded`.
        """
        example = self.example_of(self.rows[index], index)
        try:
            first, *more = (image_file(self.image_root, path) for path in example.image_paths)
        except InputError as error:
            raise InputError(f"row {one_line(example.id)}: {error}") from error
        image = example.image_path
        example = dataclasses.replace(example, image_path=first, more_image_paths=tuple(more), image=image)
        example = reworded(example, wording)
        return reordered(example, order) if order and example.choices else example


def get_balancing_weights(rows: Iterable[Row], power: float, within: str = "all") -> Tensor:
    """Return float64 (rows,): how often a row is drawn.

    Args:
        rows: rows of an index.
        power: 0 makes all rows equally likely, 1 all answers.
        within: `all`: (number of rows with the same answer) ^ -power. `question`: the same among the rows with the
            same question, each question in sum as often as it is in the data. An answer by letter means its option;
            rows without a text all have the same question.

    Raises:
        InputError: no row has an answer.
    """
    rows = _with_an_answer(rows)
    if within == "all":
        answers = _coded(map(_annotated, rows))
        return answers.bincount().double().pow(-power)[answers]
    pairs = [(row.get("question", row.get("text_segment")), _said(row)) for row in rows]
    questions, answers = _coded(question for question, _ in pairs), _coded(pairs)
    weights = answers.bincount().double().pow(-power)[answers]
    return weights * (questions.bincount() / questions.bincount(weights))[questions]


def _with_an_answer(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the rows; InputError at their end if none has an answer."""
    found = False
    for row in rows:
        found = found or _annotated(row) is not None
        yield row
    if not found:
        raise InputError("--balance_answers: the rows of this task have no answers to balance; leave it out.")


def _coded(values: Iterable[object]) -> Tensor:
    """Return a number for each value, equal values alike: int64 (values,)."""
    code_of: dict[str, int] = {}
    return torch.tensor([code_of.setdefault(str(value), len(code_of)) for value in values])


def _annotated(row: Row) -> object:
    """Return a row's answer, its labels or its label, whichever it has; None if it has none.

    All spellings of an open-ended answer are one, as its label is.
    """
    answer = row.get("answer", row.get("labels", row.get("label")))
    return answer_key(answer) if isinstance(answer, str) and not row.get("choices") else answer


def _said(row: Row) -> object:
    """Return a row's answer in words, so that it means the same wherever an option stands."""
    answer, choices = _annotated(row), row.get("choices", ())
    place = LETTERS.find(answer) if isinstance(answer, str) and len(answer) == 1 else -1
    return choices[place] if 0 <= place < len(choices) else answer


def reworded(example: Example, wording: int) -> Example:
    """Return the example with another wording as its question: 0 is its own, 1 the first of `wordings`."""
    if not wording:
        return example
    texts = [example.question, *example.wordings]
    question = texts.pop(wording)
    return dataclasses.replace(example, question=question, wordings=tuple(texts))


def build_question(row: Row, answers: AnswerTable) -> Example:
    """Return the question of a row; `answers` gives its label: for multiple choice it is a table of letters."""
    answer, targets = get_truth(row, answers)
    text, token_ids = get_text(row)
    choices = tuple(row.get("choices", ())) if "question" in row else ()
    return Example(
        id=row_id(row),
        image_path=row["image_path"],
        question=text,
        choices=choices,
        answer=answer,
        targets=targets,
        weight=row.get("weight"),
        token_ids=token_ids,
        wordings=tuple(row.get("wordings", ())) if "question" in row else (),
        answers=() if choices else tuple(answers.answers[label] for label, _ in targets),
    )


def get_text(row: Row) -> tuple[str, tuple[int, ...] | None]:
    """Return the text of a row and None, or an empty text and the token ids of upstream's index files."""
    return text_or_ids(row["question"] if "question" in row else row["text_segment"])


def text_or_ids(segment: str | Sequence[int]) -> tuple[str, tuple[int, ...] | None]:
    """Return a segment as a text and None, or as an empty text and its token ids."""
    return (segment, None) if isinstance(segment, str) else ("", tuple(segment))


def get_truth(row: Row, table: AnswerTable) -> tuple[str | None, tuple[tuple[int, float], ...]]:
    """Return the annotated answer of a row (None if it isn't known) and its (label, score) pairs.

    Labels and scores of the row (VQAv2's, of ten annotators) count if it has them; else its answer scores 1.

    Raises:
        InputError: a label isn't in the table.
    """
    if "labels" not in row and "question" in row:
        answer = row.get("answer")
        label = None if answer is None else table.label(answer)
        return answer, () if label is None else ((label, 1.0),)
    scored = zip(row.get("labels") or (), row.get("scores") or (), strict=True)
    targets = tuple((label, score) for label, score in scored if score > 0)
    outside = [label for label, _ in targets if label >= len(table)]
    if outside:
        raise InputError(f"row {one_line(row_id(row))}: label {outside[0]} isn't in the answer table.")
    best = max(targets, key=lambda target: target[1], default=None)
    found = None if best is None else table.answers[best[0]]
    return row.get("answer", found), targets


def permute_choices(example: Example, rng: random.Random) -> Example:
    """Return the example with its options in a random order, and its answer to match; open-ended: unchanged.

    Options that speak of others ("none of the above") keep their place, as in `data.choice_order`.
    """
    if not example.choices:
        return example
    places = movable(example.choices)
    order, moved = list(range(len(example.choices))), places.copy()
    rng.shuffle(moved)
    for place, option in zip(places, moved, strict=True):
        order[place] = option
    return reordered(example, tuple(order))


# A split for evaluation: every question in several orders of its options or several wordings, or without its image.

BLIND = "the image was greyed out (--blind)"


class PermutedChoices(Dataset[tuple[Example, Tensors]]):
    """The questions of a split for evaluation, each as often as its options have orders, times its wordings.

    They stand side by side, the orders of the first wording first, so that an image is decoded once if they share a
    batch. `orders` holds for each row the orders in which it is asked, and `wordings` in how many wordings.

    Args:
        dataset: the split, not in training.
        mode: of `--tta`, see `data.choice_order.split_mode`.
        blind: True to replace every image by a grey one.
    """

    training = False

    def __init__(self, dataset: IndexDataset, mode: str = "none", *, blind: bool = False):
        self.dataset = dataset
        self.blind = blind
        of_options, in_wordings = split_mode(mode)
        self.wordings = [1 + len(row.get("wordings", ())) * in_wordings for row in dataset.rows]
        self.orders: list[tuple[Order, ...]] = [
            orders(row.get("choices", ()), of_options) * count
            for row, count in zip(dataset.rows, self.wordings, strict=True)
        ]
        self._ends = list(accumulate(map(len, self.orders)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, key: Key) -> tuple[Example, Tensors]:
        row, order, wording = self._place(key[2])
        return self.dataset.evaluated(row, order, BLIND if self.blind else None, wording)

    def without_image(self, index: int, problem: str) -> tuple[Example, Tensors]:
        """Return `IndexDataset.without_image`, in the order and the wording in which it is asked."""
        row, order, wording = self._place(index)
        return self.dataset.evaluated(row, order, problem, wording)

    def example(self, index: int) -> Example:
        """Return `IndexDataset.example`, in the order and the wording in which it is asked."""
        row, order, wording = self._place(index)
        return self.dataset.example(row, order, wording)

    def _place(self, index: int) -> tuple[int, Order, int]:
        """Return the row of an item, the order of its options, and the number of its wording."""
        row = bisect_right(self._ends, index)
        place = index - (self._ends[row - 1] if row else 0)
        return row, self.orders[row][place], place * self.wordings[row] // len(self.orders[row])
