"""Visual question answering on one's own data: multiple choice, or open-ended over a vocabulary of answers."""

import copy
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from beit3_vqa.config.config import RunConfig
from beit3_vqa.data.answers import AnswerTable, answer_key
from beit3_vqa.data.dataset import CustomDataset, truth_of
from beit3_vqa.data.index import ANSWERS_FILE, VQACUSTOM, DatasetInfo
from beit3_vqa.data.predictions import write_submission, write_upstream_results
from beit3_vqa.data.rows import LETTERS, Row, Rows, row_id
from beit3_vqa.data.types import Batch, EvalResult, Example, Prediction, PredictionsInfo
from beit3_vqa.errors import InputError
from beit3_vqa.metrics import accuracy_metrics, full_metrics
from beit3_vqa.metrics.baselines import count_answers
from beit3_vqa.metrics.calibration import temper
from beit3_vqa.runtime.files import is_text
from beit3_vqa.tasks.index_task import IndexTask, data_folder

# Open-ended predictions keep the likeliest few: predictions.json would otherwise hold rows times vocabulary.
KEPT_ANSWERS = 5


class VQACustom(IndexTask):
    """Questions in the SCPC format (options A, B, C, D), or open-ended ones.

    Args:
        answers: answer table; the model has one output for each.
        config: the run's options.
        data_path: prepared folder; None for a task that only answers questions.
    """

    name = "vqacustom"
    head = "vqacustom"
    files = VQACUSTOM
    asks = True
    takes_temperature = True
    takes_vqa_loss = True
    #: formats of `prepare` that put answers in the order of upstream's own checkpoints
    upstreams_order: ClassVar[tuple[str, ...]] = ()

    def __init__(self, answers: AnswerTable, config: RunConfig, data_path: Path | None = None):
        super().__init__(config, data_path)
        self.answers = answers
        self.num_classes = len(answers)
        wanted = config.model.num_classes
        if wanted not in (None, self.num_classes):
            raise InputError(
                f"--num_classes {wanted}: the answer table has {self.num_classes} answers "
                f"({', '.join(answers.answers[:5])}{', ...' if len(answers) > 5 else ''}). Leave the option out, or "
                "prepare the data again."
            )

    @classmethod
    def from_folder(cls, config: RunConfig) -> "VQACustom":
        """The task on a prepared folder."""
        folder = data_folder(config)
        return cls(AnswerTable.read(config.data.answer2label or folder / ANSWERS_FILE), config, folder)

    @classmethod
    def from_checkpoint(cls, config: RunConfig, saved: dict[str, Any], where: str) -> "VQACustom":
        """The task with the answer table that the checkpoint `where` keeps."""
        answers = saved.get("answers")
        if not isinstance(answers, list) or not all(map(is_text, answers)):
            raise InputError(f"{where}: its task_state holds no answer table; the file is damaged.")
        return cls(AnswerTable(answers), config)

    def state(self) -> dict[str, Any]:
        """The answer table."""
        return {"answers": list(self.answers.answers)}

    def vouch(self, where: str) -> None:
        """Vouched for is what `--answer2label` names, and a table that `prepare` found no order for.

        A folder's table that `prepare` didn't write came with the checkpoint, as far as anybody can know.
        """
        assert self.data_path is not None
        table = self.data_path / ANSWERS_FILE
        if self.config.data.answer2label:
            print(f"{where}: keeps no answer table; its outputs are read by {self.config.data.answer2label}")
        elif self.outputs == self.num_classes:  # else no output stands for an answer of its own
            info = DatasetInfo.read(self.data_path)
            if info.wrote(table) and info.format not in self.upstreams_order:
                raise InputError(
                    f"{where}: keeps no answer table, as checkpoints of upstream and its forks, and {table} was "
                    "written by `beit3-vqa prepare`, whose order of answers need not be the one that it was trained "
                    "with: its outputs would be read as other answers. Give the answer2label.txt of the folder that "
                    "it was trained on: --answer2label FILE."
                )
            print(f"{where}: keeps no answer table; its outputs are read by {table}")

    @property
    def answers_are_options(self) -> bool:
        """Whether the answers are the letters of options."""
        return self.answers.answers == tuple(LETTERS[: self.num_classes])

    def with_options(self, number: int) -> "VQACustom":
        """The same, with the letters of another number of options for answers."""
        other = copy.copy(self)  # whatever else it was set to
        other.answers, other.num_classes = AnswerTable(LETTERS[:number]), number
        return other

    def dataset(self, split: str, processor: Any, *, training: bool) -> CustomDataset:
        """A split, checked against the answer table.

        Raises:
            InputError: no such split; rows of another number of options; training rows without an answer.
        """
        rows = self.rows(split)
        self._check_choices(rows, split)
        self._check_labels(rows, split)
        dataset = CustomDataset(
            rows,
            self.answers,
            self.image_root(),
            partial(self._tensors, processor),
            training=training,
            shuffle_choices=training and self.config.data.shuffle_choices,
            seed=self.config.run.seed,
        )
        if training:
            dataset.rows = self._answered(dataset, rows)
        return dataset

    def _check_choices(self, rows: Rows, split: str) -> None:
        options = self.num_classes if self.answers_are_options else 0
        wrong = [
            f"row {row_id(row)}: {len(row.get('choices', ()))} options"
            for row in rows
            if "question" in row and len(row.get("choices", ())) != options
        ]
        if wrong:
            listed, table = ", ".join(self.answers.answers[:5]), self.config.data.answer2label or ANSWERS_FILE
            wanted = f"{options} options in each row" if options else "open-ended questions, without options"
            raise InputError.of_problems(
                f"{split} rows that don't fit {table}, whose answers ({listed}) are for {wanted}:",
                wrong,
            )

    def _check_labels(self, rows: Rows, split: str) -> None:
        """InputError where rows name answers by number (upstream's), and the numbers are of another table."""
        assert self.data_path is not None
        table = self.data_path / ANSWERS_FILE
        named = self.config.data.answer2label
        if not named or not table.is_file() or AnswerTable.read(table).answers == self.answers.answers:
            return
        if any(row.get("labels") for row in rows):
            raise InputError(
                f"--answer2label {named}: has other answers, or another order, than {table}, whose numbers the "
                f"{split} rows hold. Give --data_path the folder that the checkpoint was trained on, or rows with "
                "answers as text."
            )

    def _answered(self, dataset: CustomDataset, rows: Rows) -> Rows:
        """The rows with a label; those whose answer isn't in the table can't be learned, and that is said."""
        unanswered, has_label = [], []
        for row in rows:
            answer, targets = truth_of(row, self.answers)
            has_label.append(bool(targets))
            if answer is None:
                unanswered.append(f"row {row_id(row)}")
        if unanswered:
            raise InputError.of_problems("training rows without an answer:", unanswered, "Training needs one in each.")
        kept = sum(has_label)
        if kept < len(has_label):
            what = f"{len(has_label) - kept} of {len(has_label)} training rows"
            print(f"{what} aren't trained on: their answer isn't in {ANSWERS_FILE}.")
        if not kept:
            raise InputError(f"no training row has an answer of {ANSWERS_FILE}.")
        return rows.where(has_label)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross entropy against the scores as a distribution, or upstream's binary cross entropy times classes."""
        assert batch.targets is not None
        return self._losses(outputs, batch.targets, "mean")

    def _losses(self, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """`reduction` "mean": a scalar; "none": (B,). The rows of `targets` (B, classes) aren't all zero."""
        if self.config.model.vqa_loss == "bce":
            losses = F.binary_cross_entropy_with_logits(outputs, targets, reduction=reduction) * self.num_classes
            return losses if reduction == "mean" else losses.mean(dim=1)
        distribution = targets / targets.sum(dim=1, keepdim=True)
        smoothing = self.config.optim.label_smoothing
        return F.cross_entropy(outputs, distribution, label_smoothing=smoothing, reduction=reduction)

    def targets(self, examples: Sequence[Example]) -> Tensor:
        """Score of each class, float32 (B, classes)."""
        targets = torch.zeros(len(examples), self.num_classes)
        for row, example in enumerate(examples):
            for label, score in example.targets:
                targets[row, label] = score
        return targets

    def predictions(self, outputs: Tensor, batch: Batch) -> list[Prediction]:
        """The likeliest answer of each example, with probabilities at the task's temperature."""
        probabilities = self.probabilities(outputs).cpu()
        labels = probabilities.argmax(dim=1).tolist()
        if self.temperature != 1.0:
            probabilities = torch.from_numpy(temper(probabilities.numpy(), self.temperature))
        losses: list[float | None] = [None] * len(batch)
        if any(example.targets for example in batch.examples):
            losses = self._losses(outputs.cpu(), self.targets(batch.examples), "none").tolist()
        return [self._prediction(*of) for of in zip(probabilities, labels, batch.examples, losses, strict=True)]

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Logits (B, classes) -> probabilities that sum to 1: softmax, or for bce the sigmoids over their sum."""
        if self.config.model.vqa_loss == "bce":
            outputs = F.logsigmoid(outputs)  # sigmoids that are all too small for a float would be 0 / 0
        return outputs.softmax(dim=1)

    def _prediction(self, probabilities: Tensor, label: int, example: Example, loss: float | None) -> Prediction:
        kept = (
            range(self.num_classes)
            if example.choices
            else probabilities.argsort(descending=True, stable=True)[:KEPT_ANSWERS]
        )
        return Prediction(
            id=example.id,
            question=example.question,
            answer=self.answers.answers[label],
            probabilities={self.answers.answers[int(i)]: float(probabilities[int(i)]) for i in kept},
            truth=example.answer,
            score=None if example.answer is None else dict(example.targets).get(label, 0.0),
            weight=example.weight,
            problem=example.problem,
            loss=loss if example.targets else None,  # 0 / 0 without one
            choices=example.choices,
            image=example.image,
            answer_scores=self._answer_scores(example),
        )

    def _answer_scores(self, example: Example) -> dict[str, float] | None:
        """What answers score, where it isn't just the truth that scores 1."""
        label = None if example.answer is None else self.answers.label(example.answer)
        if example.targets == (() if label is None else ((label, 1.0),)):
            return None
        return {self.answers.answers[label]: score for label, score in example.targets}

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Accuracy in percent, in parts, with the histograms of answers and truths."""
        return accuracy_metrics(predictions)

    def full_metrics(self, result: EvalResult) -> dict[str, Any]:
        """`metrics` and intervals, calibration, positions, and the baselines that the training answers make."""
        if not self._files("train") or all(p.truth is None for p in result.predictions):
            return full_metrics(result.predictions)
        texts = map(self._answer_text, self.rows("train"))
        return full_metrics(result.predictions, count_answers(text for text in texts if text))

    def _answer_text(self, row: Row) -> str:
        answer, _ = truth_of(row, self.answers)
        return row["choices"][LETTERS.index(answer)] if answer and row.get("choices") else answer or ""

    def chance(self) -> float:
        """Percent right when guessing: one of the options, or always the most frequent training answer."""
        if self.answers_are_options or not self._files("train"):
            return 100.0 / self.num_classes
        rows = self.rows("train")
        answers = Counter(answer_key(row["answer"]) if "answer" in row else str(row.get("labels")) for row in rows)
        return 100.0 * max(answers.values()) / len(rows)

    def own_results(self, result: EvalResult, info: PredictionsInfo, folder: Path, suffix: str) -> list[Path]:
        """Upstream's JSON and submission.csv."""
        return [
            write_upstream_results(result.predictions, folder / f"submit_{self.name}_{info.split}.json"),
            write_submission(result.predictions, folder / f"submission{suffix}.csv"),
        ]
