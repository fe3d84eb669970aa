"""The base of every kind of task: a spec, and methods that lead from a row of its index to its metrics.

A task is a file here with a subclass of `Task`, and a line in `tasks.TASKS`. It says its `spec` and writes `example`,
`loss`, `predictions` and `aggregate`; the rest has a default, which it replaces if it differs there. A task is made
once and never changed: whatever varies (split, processor, temperature) is handed to its methods.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, final

from torch import Tensor

from beit3_vqa.config.config import RunConfig
from beit3_vqa.data.dataset import IndexDataset
from beit3_vqa.data.index import IndexFiles
from beit3_vqa.data.predictions import get_suffix, predictions_file, publish_results, write_metrics, write_predictions
from beit3_vqa.data.rows import QUESTIONS, Row, RowFormat, Rows
from beit3_vqa.data.types import Batch, EvalResult, Example, Inputs, PredictionsInfo, Tensors
from beit3_vqa.errors import NotFiniteError, one_line
from beit3_vqa.models.base import Processor
from beit3_vqa.models.beit3.processor import BEiT3Processor
from beit3_vqa.runtime.files import staged
from beit3_vqa.tasks.folder import PreparedFolder

# Open-ended predictions keep the likeliest few: predictions.json would otherwise hold rows times vocabulary.
KEPT_ANSWERS = 5


@dataclass(frozen=True)
class TaskSpec:
    """Facts about a kind of task that hold for all data and all options of a run."""

    #: what `--task` calls it, and what its result files are named after
    name: str
    #: kind of the model's head: a key of `models.names.HEADS`
    head: str
    #: names of its index files
    files: IndexFiles
    #: what a row of them is
    row_format: RowFormat = QUESTIONS
    #: names of the model's inputs
    inputs: Inputs = field(default_factory=Inputs)
    #: which of the metrics of `aggregate` chooses the best epoch; higher is better
    best_metric: str = "accuracy"
    #: what it counts, for messages
    unit: str = "questions"
    #: whether it predicts a `Prediction` for each example, which no other example influences
    per_example: bool = True
    #: whether the loss compares the rows of a forward pass with each other, so that it depends on the batch size
    in_batch_negatives: bool = False
    #: whether a single question about an image can be asked
    supports_questions: bool = False
    #: whether answers that are the letters A, B, ... stand for the options of a question
    has_options: bool = False
    #: whether each option goes through the model in a pass of its own, which gives one score
    option_by_option: bool = False
    #: whether `--temperature` has an effect
    takes_temperature: bool = False
    #: whether `--vqa_loss` chooses its loss
    takes_vqa_loss: bool = False
    #: options whose default isn't the one of options.py
    defaults: Mapping[str, object] = field(default_factory=dict)
    #: options of `options.TaskConfig` that have an effect
    own_options: frozenset[str] = frozenset()
    #: those of them that an evaluation takes from its checkpoint, unless they are given
    evaluation_options: frozenset[str] = frozenset()
    #: formats of `prepare` that put answers in the order of upstream's own checkpoints
    upstreams_order: tuple[str, ...] = ()
    #: name of a split's file of reference captions, in COCO's format; `{split}` stands for the split
    reference_file: str = ""


class Task(ABC):
    """A kind of task, set up on a prepared folder, or on a checkpoint alone to answer questions.

    Args:
        config: the run's options.
        folder: the data; None for a task that only answers questions.
        num_classes: the answers or classes that it knows; 0 if there is no such number.
        answers_are_options: whether a question comes with options, one for each class.
    """

    spec: ClassVar[TaskSpec]

    def __init__(
        self,
        config: RunConfig,
        folder: PreparedFolder | None = None,
        *,
        num_classes: int = 0,
        answers_are_options: bool = False,
    ):
        self.config = config
        self.num_classes = num_classes
        self.answers_are_options = answers_are_options
        self._folder = folder

    # What a task must write: from a row to its metrics

    @abstractmethod
    def example(self, row: Row, place: int) -> Example:
        """Return the example of a row, images relative to the image root; `place` counts the split's rows from 0."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of a batch of training, a scalar.

        Every process calls it at the same time with its part of the batch, so it may gather the others' outputs;
        only the first `batch.num_valid` examples of a process are its own.
        """

    @abstractmethod
    def predictions(self, outputs: Any, batch: Batch, temperature: float = 1.0) -> list[Any]:
        """Predict each example of a batch.

        Args:
            outputs: what `infer` returned for the batch, as float32.
            batch: the examples.
            temperature: divides the logits before they become probabilities, if the spec `takes_temperature`; it
                changes no answer and no loss.

        Returns:
            for each example a `Prediction`, or what `aggregate` makes one from; it can be pickled.
        """

    @abstractmethod
    def aggregate(self, predictions: list[Any], split: str, processor: Processor, *, full: bool = False) -> EvalResult:
        """Return the predictions of a whole split with its metrics; none if no answer is known.

        Every process calls it with the same predictions, in input order, each example once.

        Args:
            predictions: what `predictions` returned.
            split: their name.
            processor: the model's.
            full: whether this is the end of an evaluation, which has all metrics, and that of blind guessing; else
                few that are cheap, for the end of an epoch.
        """

    # What it may write: how it is set up, for tasks with a table of answers or classes

    @classmethod
    def from_folder(cls, config: RunConfig) -> "Task":
        """Set the task up on the data of `--data_path`; InputError if they don't fit it."""
        return cls(config, cls.prepared_folder(config))

    @classmethod
    def from_checkpoint(cls, config: RunConfig, saved: dict[str, object], where: str) -> "Task":
        """Set the task up as `state` saved it, without data: enough to answer a question."""
        return cls(config)

    def state(self) -> dict[str, object]:
        """Return plain data for the checkpoint that tells what the outputs mean, such as the table of answers.

        A checkpoint fits other data if the task set up on them has an equal state.
        """
        return {"task": self.spec.name}

    def joined(self, tasks: Sequence["Task"]) -> "Task":
        """Return this task for a run that trains on the data of all `tasks`, itself among them."""
        return self

    def vouch(self, where: str) -> None:  # noqa: B027 - most tasks' outputs have one order
        """Refuse a checkpoint without `state()` if its outputs may mean something else than this task's.

        Args:
            where: flag and file of the checkpoint, for messages.

        Raises:
            InputError: nothing tells what the outputs mean.
        """

    # What it may write: data, batches, outputs and results that are out of the ordinary

    def dataset(self, split: str, processor: Processor, *, training: bool) -> IndexDataset:
        """Return a split of the data; InputError if it doesn't exist or can't be used."""
        return self.build_dataset(self.folder.rows(split), processor, training=training)

    def tensors(self, example: Example, rng: random.Random | None, processor: Processor) -> Tensors:
        """Return what `collate` needs of one example; an `rng` asks for augmentation and is its only randomness.

        This, `collate` and `attach_targets` run in the processes that load the data.
        """
        return processor(example, rng)

    def collate(self, items: Sequence[Tensors], processor: Processor) -> dict[str, Tensor]:
        """Return the model's keyword arguments for the `tensors` of B examples."""
        return processor.collate(items)

    def attach_targets(self, batch: Batch, items: Sequence[Tensors]) -> Batch:
        """Return a batch of training with its targets; `items` are the `tensors` of its examples."""
        return batch

    def texts_to_measure(self, example: Example) -> Iterable[Example]:
        """Return an example for each text that the model reads; their tokens are counted before training."""
        return (example,)

    def infer(self, model: Any, batch: Batch, processor: Processor) -> Any:
        """Return the outputs that `predictions` reads, by default those of a forward pass."""
        return model(**batch.inputs)

    def own_results(self, result: EvalResult, info: PredictionsInfo, folder: Path, suffix: str) -> list[Path]:
        """Write files to hand in beside the predictions and return them; `suffix` names the split in file names."""
        return []

    # What all tasks share

    @property
    def folder(self) -> PreparedFolder:
        """Return the data; only a task that was set up with some has them."""
        assert self._folder is not None
        return self._folder

    @property
    def forwards_per_example(self) -> int:
        """Return how many rows of a forward pass one example takes."""
        return self.num_classes if self.spec.option_by_option else 1

    @property
    def outputs(self) -> int:
        """Return the number of outputs of the model's head; 0 for a head that has no such number."""
        return 1 if self.spec.option_by_option else self.num_classes

    @final
    @classmethod
    def prepared_folder(cls, config: RunConfig) -> PreparedFolder:
        """Return the data of `--data_path`; InputError if there is no such folder."""
        return PreparedFolder(config.data, cls.spec.files, cls.spec.row_format)

    @final
    def build_dataset(
        self,
        rows: Rows,
        processor: Processor,
        *,
        training: bool,
        example_of: Callable[[Row, int], Example] | None = None,
    ) -> IndexDataset:
        """Return a data set of some rows; `example_of` makes their examples, by default `example`."""
        return IndexDataset(
            rows,
            example_of or self.example,
            self.folder.image_root(),
            partial(self.tensors, processor=processor),
            training=training,
            shuffle_choices=self.config.data.shuffle_choices,
            seed=self.config.run.seed,
        )

    @final
    def write_results(self, result: EvalResult, info: PredictionsInfo, folder: Path) -> list[Path]:
        """Write predictions.json, what it comes from, the task's own files and, if answers are known, metrics.json."""
        suffix = get_suffix(info.split)
        blind, metrics = f"predictions{suffix}_blind.json", f"metrics{suffix}.json"
        with staged(folder) as place:
            predictions = write_predictions(result.predictions, predictions_file(place, info.split))
            others = self.own_results(result, info, place, suffix)
            if result.blind:
                others.append(write_predictions(result.blind, place / blind))
            if result.metrics:
                others.append(write_metrics(result.metrics, place / metrics))
            return publish_results(info, predictions, others, folder, [blind, metrics])


def as_beit3(processor: Processor) -> BEiT3Processor:
    """Return the processor as BEiT-3's, for tasks that take its steps one by one; only BEiT-3 has their heads."""
    assert isinstance(processor, BEiT3Processor)
    return processor


def not_finite(batch: Batch) -> NotFiniteError:
    """Return the error for a batch whose outputs, or what was computed from them, aren't finite."""
    ids = ", ".join(one_line(example.id) for example in batch.examples[:3])
    return NotFiniteError(
        f"the model's outputs aren't finite numbers (rows {ids}, ...). In fp16 they may have grown too large: try "
        "--precision bf16 or fp32. Else the checkpoint is damaged."
    )
