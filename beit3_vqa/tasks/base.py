"""What a kind of task supplies: its data, its loss, its metrics and its result files.

A task that reads index files begins with `tasks.indexed.IndexTask` and has little left to say."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from beit3_vqa.config.config import RunConfig
from beit3_vqa.data.dataset import IndexDataset
from beit3_vqa.data.index import IndexFiles
from beit3_vqa.data.types import Batch, EvalResult, Example, Inputs, Prediction, PredictionsInfo
from beit3_vqa.errors import InputError, NotFiniteError, one_line


class Task(ABC):
    """A kind of task, set up for one prepared folder (or for one checkpoint, see `from_checkpoint`)."""

    name: ClassVar[str]
    #: kind of the model's head: a key of `models.registry.HEADS`
    head: ClassVar[str]
    #: names of the model's inputs
    inputs: ClassVar[Inputs] = Inputs()
    #: names of its index files
    files: ClassVar[IndexFiles]
    #: key of `metrics()` by which the best epoch is chosen; higher is better
    best_metric: ClassVar[str] = "accuracy"
    #: what it counts, for messages
    unit: ClassVar[str] = "questions"
    #: whether what it predicts of an example is a `Prediction` that hangs on no other example
    row_by_row: ClassVar[bool] = True
    #: whether the loss compares the rows of a forward pass, so that smaller batches are another loss
    compares_rows: ClassVar[bool] = False
    #: whether a single question about an image can be asked
    asks: ClassVar[bool] = False
    #: whether `temperature` means something to it
    takes_temperature: ClassVar[bool] = False
    #: whether `--vqa_loss` chooses its loss
    takes_vqa_loss: ClassVar[bool] = False
    #: options whose default isn't the one of options.py
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    #: options of `options.TaskConfig` that mean something to it
    own_options: ClassVar[frozenset[str]] = frozenset()
    #: the answers or classes that it knows; 0 where there is no such number
    num_classes: int = 0
    #: what logits are divided by before they become probabilities; changes no answer and no loss
    temperature: float = 1.0

    # Its data

    @classmethod
    @abstractmethod
    def from_folder(cls, config: RunConfig) -> "Task":
        """The task on the data of `config.data.data_path`; InputError where they don't fit the task."""

    @classmethod
    @abstractmethod
    def from_checkpoint(cls, config: RunConfig, saved: dict[str, Any], where: str) -> "Task":
        """The task as `state()` saved it, without its data: enough to answer a question."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep to make sense of the model's outputs; plain data."""

    def vouch(self, where: str) -> None:  # noqa: B027 - most tasks' outputs have one order
        """Say what vouches that the outputs of a checkpoint that keeps no `state()` mean what this task's do.

        Args:
            where: flag and file of the checkpoint, for messages.

        Raises:
            InputError: nothing does.
        """

    @property
    def answers_are_options(self) -> bool:
        """Whether a question comes with options, one for each class."""
        return False

    @property
    def outputs(self) -> int:
        """Outputs of the model's head; 0 for a head that has no such number."""
        return self.num_classes

    @property
    def passes(self) -> int:
        """Rows of the model's inputs for an example: more than one where options pass through it one by one."""
        return 1

    def with_options(self, number: int) -> "Task":
        """The task for questions of another number of options, which some models answer too."""
        raise InputError(f"the model chooses among {self.num_classes} options; {number} were given.")

    @abstractmethod
    def dataset(self, split: str, processor: Any, *, training: bool) -> IndexDataset:
        """A split of the data; InputError where it doesn't exist."""

    @abstractmethod
    def image_root(self) -> Path:
        """The folder that rows name their images from; InputError where it isn't there."""

    @abstractmethod
    def splits(self) -> list[str]:
        """The splits that the data have."""

    def folds(self) -> list[int]:
        """The folds of the training rows, empty where there are none."""
        return []

    # From examples to batches; where the data are loaded, which may be another process

    def tensors(self, example: Example, processor: Any, rng: random.Random | None) -> dict[str, Any]:
        """What the model's inputs are made of; with an `rng`, the only source of randomness, as in training."""
        return processor(example, rng)

    def collate(self, items: Sequence[dict[str, Any]], processor: Any) -> dict[str, Tensor]:
        """`tensors` of B examples -> the model's keyword arguments."""
        return processor.collate(items)

    def finish(self, batch: Batch, items: Sequence[dict[str, Any]]) -> Batch:
        """A batch of training with what is learned; `items` are the `tensors` of its examples."""
        return replace(batch, targets=self.targets(batch.examples))

    def targets(self, examples: Sequence[Example]) -> Tensor | None:
        """What the loss compares outputs with, (B, ...)."""
        return None

    def measured(self, example: Example) -> Iterable[Example]:
        """What of an example is one text each for the model, to be counted before training."""
        return (example,)

    # From batches to numbers

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Mean loss of a batch of training, a scalar.

        Every process calls it at the same time with its part of the batch, so it may gather the others' outputs;
        only the first `batch.counted` examples of a process are its own.
        """

    def infer(self, model: Any, batch: Batch) -> Any:
        """The outputs that `predictions` reads, by default those of a forward pass."""
        return model(**batch.inputs)

    @abstractmethod
    def predictions(self, outputs: Any, batch: Batch) -> list[Any]:
        """One for each example: a `Prediction`, or whatever `conclude` makes one of; it can be pickled."""

    def conclude(self, predictions: list[Any]) -> EvalResult:
        """Of a whole split, in input order, each example once; every process calls it with the same."""
        return EvalResult(self.metrics(predictions), predictions)

    @abstractmethod
    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Metrics of a split, cheap and few; empty where no answer is known."""

    def full_metrics(self, result: EvalResult) -> dict[str, Any]:
        """Everything there is to say of a split; empty where no answer is known."""
        return result.metrics

    @abstractmethod
    def chance(self) -> float:
        """The best metric of blind guessing."""

    @abstractmethod
    def write_results(self, result: EvalResult, info: PredictionsInfo, folder: Path) -> list[Path]:
        """Writes the task's result files of the split `info.split` and returns their paths."""


def not_finite(batch: Batch) -> NotFiniteError:
    """Say that a model's outputs aren't finite, or what was made of them on the way."""
    ids = ", ".join(one_line(example.id) for example in batch.examples[:3])
    return NotFiniteError(
        f"the model's outputs aren't finite numbers (rows {ids}, ...). In fp16 they may have grown too large: try "
        "--precision bf16 or fp32. Else the checkpoint is damaged."
    )
