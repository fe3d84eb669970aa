"""Tasks whose rows have one label each, one of a few classes: what NLVR2 and ImageNet share."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from beit3_vqa.config.config import RunConfig
from beit3_vqa.data.dataset import IndexDataset
from beit3_vqa.data.rows import Row, is_count
from beit3_vqa.data.types import Batch, EvalResult, Example, Prediction, Tensors
from beit3_vqa.errors import InputError
from beit3_vqa.metrics.accuracy import accuracy_metrics
from beit3_vqa.metrics.intervals import accuracy_interval
from beit3_vqa.models.base import Processor
from beit3_vqa.tasks.base import Task
from beit3_vqa.tasks.folder import PreparedFolder

KEPT_CLASSES = 5  # in predictions.json, the likeliest


class ClassTask(Task):
    """A task with one label for each row, learned by cross entropy; `label` is the place of a class.

    Args:
        classes: their names; the model has one output for each.
        config: the run's options.
        folder: the data; None for a task that only answers questions.
    """

    def __init__(self, classes: Sequence[str], config: RunConfig, folder: PreparedFolder | None = None):
        super().__init__(config, folder, num_classes=len(classes))
        self.classes = tuple(classes)
        wanted = config.model.num_classes
        if wanted not in (None, self.num_classes):
            raise InputError(f"--num_classes {wanted}: the data have {self.num_classes} classes. Leave the option out.")

    def state(self) -> dict[str, object]:
        """Return the classes, in order."""
        return {"task": self.spec.name, "classes": list(self.classes)}

    @property
    def smoothing(self) -> float:
        """Return the label smoothing of training and of the loss that evaluation reports."""
        return self.config.optim.label_smoothing

    def dataset(self, split: str, processor: Processor, *, training: bool) -> IndexDataset:
        """Return a split of the data; InputError if it doesn't exist, or a row of training has no label."""
        rows = self.folder.rows(split)
        must_have_one = enumerate(rows if training else ())
        problems = [f"row {self.example(row, place).id}" for place, row in must_have_one if "label" not in row]
        if problems:
            raise InputError.of_problems("training rows without a label:", problems, "Training needs one in each.")
        return self.build_dataset(rows, processor, training=training)

    def labelled(self, example: Example, row: Row) -> Example:
        """Return the example with its row's label, if that has one; InputError if no class has it."""
        label = row.get("label")
        if label is None:
            return example
        if label >= self.num_classes:
            raise InputError(
                f"row {example.id}: label {label}, but there are {self.num_classes} classes, 0 to "
                f"{self.num_classes - 1}. Is --num_classes right?"
            )
        return replace(example, answer=self.classes[label], targets=((label, 1.0),))

    def attach_targets(self, batch: Batch, items: Sequence[Tensors]) -> Batch:
        """Return the batch with its labels, int64 (B,)."""
        return replace(batch, targets=self.targets(batch.examples))

    def targets(self, examples: Sequence[Example]) -> Tensor:
        """Return the label of each example, int64 (B,)."""
        return torch.tensor([example.targets[0][0] for example in examples])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross entropy of `outputs` (B, classes) against labels (B,) or probabilities (B, classes)."""
        assert batch.targets is not None
        # Mixing has smoothed the probabilities already.
        smoothing = 0.0 if batch.targets.is_floating_point() else self.smoothing
        return F.cross_entropy(outputs, batch.targets, label_smoothing=smoothing)

    def predictions(self, outputs: Tensor, batch: Batch, temperature: float = 1.0) -> list[Prediction]:
        """Predict the likeliest class of each example, with the probabilities of the likeliest `KEPT_CLASSES`."""
        logits = outputs.cpu()
        return [self._prediction(*of) for of in zip(logits, logits.softmax(dim=1), batch.examples, strict=True)]

    def _prediction(self, logits: Tensor, probabilities: Tensor, example: Example) -> Prediction:
        best = probabilities.argsort(descending=True, stable=True)[:KEPT_CLASSES].tolist()
        known = example.answer is not None
        loss = F.cross_entropy(logits, self.targets((example,))[0], label_smoothing=self.smoothing) if known else None
        return Prediction(
            id=example.id,
            question=example.question,
            answer=self.classes[best[0]],
            probabilities={self.classes[label]: float(probabilities[label]) for label in best},
            truth=example.answer,
            score=float(self.classes[best[0]] == example.answer) if known else None,
            problem=example.problem,
            loss=None if loss is None else float(loss),
            image=example.image,
        )

    def aggregate(
        self, predictions: list[Prediction], split: str, processor: Processor, *, full: bool = False
    ) -> EvalResult:
        """Return the predictions with `accuracy_metrics`, in percent, and if `full` the accuracy's 95% interval."""
        metrics = accuracy_metrics(predictions)
        if not full:
            return EvalResult({**metrics}, predictions)
        if metrics:
            metrics["accuracy_interval"] = accuracy_interval([p for p in predictions if p.score is not None])
        return EvalResult({**metrics}, predictions, self._chance())

    def _chance(self) -> float:
        """Return the percent right when always naming the most frequent class of the training rows."""
        if not self.folder.files("train"):
            return 100.0 / self.num_classes
        labels = Counter(row.get("label") for row in self.folder.rows("train"))
        return 100.0 * max(labels.values()) / labels.total()


def label_problem(row: Row) -> str:
    """Say what is wrong with the label of a row, which it may lack, or return an empty string."""
    return "" if is_count(row.get("label", 0)) else "label must be a whole number, 0 or more"
