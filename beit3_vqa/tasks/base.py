"""What a kind of task supplies: its data, its loss, its metrics and its result files."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from beit3_vqa.config import RunConfig
from beit3_vqa.data.dataset import CustomDataset
from beit3_vqa.errors import InputError
from beit3_vqa.schema import Batch, EvalResult, Example, Prediction, PredictionsInfo


class Task(ABC):
    """A kind of task, set up for one prepared folder (or for one checkpoint, see `from_checkpoint`)."""

    name: str
    #: key of `metrics()` by which the best epoch is chosen; higher is better
    best_metric: str
    num_classes: int

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

    @property
    @abstractmethod
    def answers_are_options(self) -> bool:
        """Whether a question comes with options, one for each of the model's outputs."""

    def with_options(self, number: int) -> "Task":
        """The task for questions of another number of options, which some models answer too."""
        raise InputError(f"the model chooses among {self.num_classes} options; {number} were given.")

    @abstractmethod
    def dataset(self, split: str, processor: Callable, *, training: bool) -> CustomDataset:
        """A split of the data; InputError where it doesn't exist."""

    @abstractmethod
    def splits(self) -> list[str]:
        """The splits that the data have."""

    @abstractmethod
    def folds(self) -> list[int]:
        """The folds of the training rows, empty where there are none."""

    @abstractmethod
    def targets(self, examples: Sequence[Example]) -> Tensor:
        """What the loss compares outputs with, (B, ...); made where the data are loaded."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean loss of a batch with `targets`, a scalar."""

    @abstractmethod
    def predictions(self, outputs: Tensor, batch: Batch) -> list[Prediction]:
        """One prediction for each example."""

    @abstractmethod
    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Metrics of a split; empty where no answer is known."""

    @abstractmethod
    def chance(self) -> float:
        """The best metric of blind guessing."""

    @abstractmethod
    def write_results(self, result: EvalResult, info: PredictionsInfo, folder: Path) -> list[Path]:
        """Writes the task's result files of the split `info.split` and returns their paths."""
