"""What soups are worth on a split: score, loss, and the difference to the best single checkpoint with a paired test."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beit3_vqa.apps.ensemble.compare import Gain, get_groups, paired_bootstrap, paired_p
from beit3_vqa.apps.ensemble.vote import Question
from beit3_vqa.apps.ensemble.weights import Floats
from beit3_vqa.apps.soup.mixer import Mixer
from beit3_vqa.data.loader import BatchLoader
from beit3_vqa.data.types import Batch, Prediction, get_number
from beit3_vqa.engine.components import Components
from beit3_vqa.engine.evaluator import finite, naming, predict_split
from beit3_vqa.errors import InputError, NotFiniteError
from beit3_vqa.metrics.intervals import accuracy_interval

FP16_SCALE = 1024.0  # of the loss, so that its gradients don't vanish in fp16


@dataclass(frozen=True)
class Trial:
    """A mixture of the members and its result on the split.

    Attributes:
        weights: (K,), of the members; they sum to 1.
        score: the metric that chooses the best epoch, in the task's own unit.
        loss: mean loss over the rows whose answer is known; None if the task tells none.
        interval: 95% interval of the score (low, high); None if the task has no score for each row.
        rows: (N,), the score of each row whose answer is known, in [0, 1]; None as above.
    """

    weights: tuple[float, ...]
    score: float
    loss: float | None
    interval: tuple[float, float] | None = None
    rows: Floats | None = field(default=None, repr=False)

    @property
    def rank(self) -> tuple[float, float]:
        """Return what orders trials: the higher, the better. The loss decides between equal scores."""
        return self.score, -(self.loss if self.loss is not None else 0.0)


@dataclass(frozen=True)
class Difference:
    """By how much a trial beats another: points with a 95% interval, and the two-sided p of a paired test."""

    points: Gain
    p: float


class Trials:
    """Tries mixtures on a split, each of them once.

    Args:
        components: of the run whose model is filled.
        mixer: fills it.
        split: name of the split.
        seed: of the paired tests.

    Raises:
        InputError: the split can't be used.
    """

    def __init__(self, components: Components, mixer: Mixer, split: str, seed: int):
        self.components, self.mixer, self.split, self.seed = components, mixer, split, seed
        self.loader: BatchLoader = components.loader(split)
        self._known: dict[tuple[float, ...], Trial] = {}
        self._images: list[str] = []

    def try_out(self, weights: Sequence[float], label: str) -> Trial:
        """Evaluate the mixture with these weights, which needn't sum to 1.

        Raises:
            InputError: no answer of the split is known.
            NotFiniteError: the model's outputs aren't finite.
        """
        shares = tuple(weight / sum(weights) for weight in weights)
        if shares not in self._known:
            self.mixer.fill(weights)
            with naming(label):
                predictions = predict_split(self.components, self.loader, label)
            self._known[shares] = self._judge(shares, predictions)
        return self._known[shares]

    def _judge(self, shares: tuple[float, ...], predictions: list[Any]) -> Trial:
        task = self.components.task
        result = task.aggregate(predictions, self.split, self.components.processor)
        score = get_number(result.metrics, task.spec.best_metric)
        if score is None:
            raise InputError(f"--split {self.split}: no answer is known there; compare soups on a split with answers.")
        trial = Trial(shares, score, get_number(result.metrics, "loss"))
        if not task.spec.per_example:
            return trial
        known: list[Prediction] = [p for p in predictions if p.score is not None]
        if not self._images:
            self._images = get_groups([Question((p,)) for p in known])
        interval = accuracy_interval(known)
        scores = np.array([p.score or 0.0 for p in known])
        return replace(trial, interval=(interval["low"], interval["high"]), rows=scores)

    def difference(self, trial: Trial, other: Trial) -> Difference | None:
        """Return by how much a trial beats another; None if the task has no score for each row."""
        if trial.rows is None or other.rows is None:
            return None
        gains = trial.rows - other.rows
        return Difference(paired_bootstrap(gains, self._images, self.seed), paired_p(gains, self._images, self.seed))

    def slope(self, weights: list[float]) -> tuple[float, list[float]]:
        """Return the mean loss of a mixture over the rows with known answers, and its derivative by each weight.

        The model is in evaluation mode: no dropout, no drop path.

        Raises:
            InputError: no answer is known, or memory is too small for gradients.
            NotFiniteError: outputs or gradients aren't finite.
        """
        self.mixer.fill(weights)
        components, model = self.components, self.components.model
        scale = FP16_SCALE if components.precision.dtype == torch.float16 else 1.0
        model.eval()
        model.zero_grad(set_to_none=True)
        total, counted = 0.0, 0
        infer = partial(components.task.infer, processor=components.processor)
        try:
            for batch in self.loader.epoch(0):
                rows = [row for row, example in enumerate(batch.examples) if example.targets]
                if not rows:
                    continue
                there = batch.to(components.precision.device)
                with components.precision.autocast():
                    outputs = infer(model, there)
                loss = self._loss(finite(outputs, "a mixture of the checkpoints"), batch, rows) * len(rows)
                torch.autograd.backward(loss * scale)
                total, counted = total + float(loss.detach()), counted + len(rows)
        except torch.OutOfMemoryError as error:
            raise InputError("--method learned: memory is too small for gradients; lower --eval_batch_size.") from error
        if not counted:
            raise InputError(f"--split {self.split}: no answer is known there; compare soups on a split with answers.")
        slopes = [slope / (scale * counted) for slope in self.mixer.slopes()]
        model.zero_grad(set_to_none=True)
        if not np.isfinite([total, *slopes]).all():
            raise NotFiniteError("--method learned: the gradient isn't finite; try --precision bf16 or fp32.")
        return total / counted, slopes

    def _loss(self, outputs: Tensor, batch: Batch, rows: list[int]) -> Tensor:
        """Return the mean loss of some rows of a batch."""
        task = self.components.task
        examples = tuple(batch.examples[row] for row in rows)
        some = task.attach_targets(Batch({}, examples, num_valid=len(rows), global_batch=len(rows)), ())
        passes = task.forwards_per_example
        places = [row * passes + option for row in rows for option in range(passes)]
        return task.loss(outputs[places], some.to(self.components.precision.device))
