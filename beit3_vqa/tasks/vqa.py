"""Visual question answering on one's own data: multiple choice, or open-ended over a vocabulary of answers."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from beit3_vqa.config.config import RunConfig
from beit3_vqa.data.answers import AnswerTable, answer_key
from beit3_vqa.data.dataset import IndexDataset, build_question, get_truth
from beit3_vqa.data.index import ANSWERS_FILE, VQACUSTOM, DatasetInfo
from beit3_vqa.data.predictions import write_submission, write_upstream_results
from beit3_vqa.data.rows import LETTERS, Row, Rows, row_id
from beit3_vqa.data.submission import read_sample
from beit3_vqa.data.teacher import Shares, read_teacher
from beit3_vqa.data.types import Batch, EvalResult, Example, Inputs, Prediction, PredictionsInfo, Tensors
from beit3_vqa.errors import InputError, plural
from beit3_vqa.metrics.accuracy import accuracy_metrics
from beit3_vqa.metrics.baselines import count_answers
from beit3_vqa.metrics.calibration import temper
from beit3_vqa.metrics.summary import full_metrics
from beit3_vqa.models.base import Processor
from beit3_vqa.runtime.files import is_text
from beit3_vqa.tasks.base import KEPT_ANSWERS, Task, TaskSpec
from beit3_vqa.tasks.folder import PreparedFolder

logger = logging.getLogger(__name__)


class VQACustom(Task):
    """Answer questions in the SCPC format (options A, B, C, D), or open-ended ones.

    Args:
        answers: answer table; the model has one output for each.
        config: the run's options.
        folder: the data; None for a task that only answers questions.
    """

    spec = TaskSpec(
        name="vqacustom",
        head="vqacustom",
        files=VQACUSTOM,
        inputs=Inputs(shared=True),
        supports_questions=True,
        has_options=True,
        takes_temperature=True,
        takes_vqa_loss=True,
        own_options=frozenset({"teacher", "teacher_weight", "teacher_temperature"}),
    )

    def __init__(self, answers: AnswerTable, config: RunConfig, folder: PreparedFolder | None = None):
        letters = tuple(LETTERS[: len(answers)])
        answers_are_options = self.spec.has_options and answers.answers == letters
        super().__init__(config, folder, num_classes=len(answers), answers_are_options=answers_are_options)
        self.answers = answers

    @classmethod
    def from_folder(cls, config: RunConfig) -> "VQACustom":
        """Set the task up on a prepared folder; InputError if --num_classes contradicts its answer table."""
        folder = cls.prepared_folder(config)
        answers = AnswerTable.read(config.data.answer2label or folder.path / ANSWERS_FILE)
        wanted = config.model.num_classes
        if wanted not in (None, len(answers)):
            raise InputError(
                f"--num_classes {wanted}: the answer table has {plural(len(answers), 'answer')} "
                f"({', '.join(answers.answers[:5])}{', ...' if len(answers) > 5 else ''}). Leave the option out, or "
                "prepare the data again."
            )
        return cls(answers, config, folder)

    @classmethod
    def from_checkpoint(cls, config: RunConfig, saved: dict[str, object], where: str) -> "VQACustom":
        """Set the task up with the answer table that the checkpoint `where` keeps."""
        answers = saved.get("answers")
        if not isinstance(answers, list) or not all(map(is_text, answers)):
            raise InputError(f"{where}: its task_state holds no answer table; the file is damaged.")
        return cls(AnswerTable(answers), config)

    def state(self) -> dict[str, object]:
        """Return the answer table."""
        return {"answers": list(self.answers.answers)}

    def joined(self, tasks: Sequence[Task]) -> Task:
        """Return the task with the longest of the tables if all are of letters: a question may have fewer options."""
        tables = [task.answers for task in tasks if isinstance(task, VQACustom) and task.answers_are_options]
        if len(tables) < len(tasks):
            return self
        return type(self)(max(tables, key=len), self.config, self._folder)

    def vouch(self, where: str) -> None:
        """Print which table names the outputs of a checkpoint that keeps none.

        That is the one of `--answer2label`, or the folder's. A folder's table that `prepare` didn't write came with
        the checkpoint, as far as anybody can know.

        Raises:
            InputError: `prepare` wrote the folder's table in an order of its own.
        """
        table = self.folder.path / ANSWERS_FILE
        if self.config.data.answer2label:
            logger.warning(f"{where} has no answer table of its own; using {self.config.data.answer2label}")
        elif self.outputs == self.num_classes:  # else no output stands for one answer
            info = DatasetInfo.read(self.folder.path)
            if info.wrote(table) and info.format not in self.spec.upstreams_order:
                raise InputError(
                    f"{where} has no answer table, like all checkpoints of upstream and its forks. {table} was written "
                    "by `beit3-vqa prepare` and may have another order, so answers could be mixed up. Give the table "
                    "that it was trained with: --answer2label FILE."
                )
            logger.warning(f"{where} has no answer table of its own; using {table}")

    def example(self, row: Row, place: int) -> Example:
        """Return a question with the labels that the table gives its answer."""
        return build_question(row, self.answers)

    def dataset(self, split: str, processor: Processor, *, training: bool) -> IndexDataset:
        """Return a split, checked against the answer table.

        Raises:
            InputError: no such split; rows of another number of options; training rows without an answer.
        """
        rows = self.folder.rows(split)
        self._check_choices(rows, split)
        self._check_labels(rows, split)
        run = self.config.run
        if run.submission_like and split == run.split:  # before hours of evaluation
            read_sample(Path(run.submission_like)).check(list(map(row_id, rows)))
        if not training:
            return self.build_dataset(rows, processor, training=False)
        rows = self._answered(rows)
        taught = self._taught(rows) if self.config.of_task.teacher else None
        return self.build_dataset(rows, processor, training=True, example_of=taught)

    def _taught(self, rows: Rows) -> Callable[[Row, int], Example]:
        """Return what `example` does, with the probabilities of `--teacher` added; see `read_teacher`.

        Raises:
            InputError: `--vqa_loss` is bce.
        """
        if self.config.model.vqa_loss == "bce":
            raise InputError("--teacher needs --vqa_loss ce, whose probabilities sum to 1 as a teacher's do.")
        examples = (replace(self.example(row, place), image=row["image_path"]) for place, row in enumerate(rows))
        taught = read_teacher(Path(self.config.of_task.teacher), examples, self.answers)
        return partial(_with_teacher, self.example, taught)

    def _check_choices(self, rows: Rows, split: str) -> None:
        options = self.num_classes if self.answers_are_options else 0
        wrong = [
            f"row {row_id(row)}: {plural(len(row.get('choices', ())), 'option')}"
            for row in rows
            if "question" in row and not min(options, 2) <= len(row.get("choices", ())) <= options
        ]
        if wrong:
            listed, table = ", ".join(self.answers.answers[:5]), self.config.data.answer2label or ANSWERS_FILE
            wanted = f"at most {options} options in a row" if options else "open-ended questions, without options"
            raise InputError.of_problems(
                f"{split} rows that don't fit {table}, whose answers ({listed}) are for {wanted}:",
                wrong,
            )

    def _check_labels(self, rows: Rows, split: str) -> None:
        """Raise InputError for rows that name answers by number (upstream's) if the numbers are another table's."""
        table = self.folder.path / ANSWERS_FILE
        named = self.config.data.answer2label
        if not named or not table.is_file() or AnswerTable.read(table).answers == self.answers.answers:
            return
        if any(row.get("labels") for row in rows):
            raise InputError(
                f"--answer2label {named}: has other answers, or another order, than {table}, whose numbers the "
                f"{split} rows hold. Give --data_path the folder that the checkpoint was trained on, or rows with "
                "answers as text."
            )

    def _answered(self, rows: Rows) -> Rows:
        """Return the rows with a label; print how many are left out since their answer isn't in the table.

        Raises:
            InputError: a row without an answer, or no row with a label.
        """
        unanswered, has_label = [], []
        for row in rows:
            answer, targets = get_truth(row, self.answers)
            has_label.append(bool(targets))
            if answer is None:
                unanswered.append(f"row {row_id(row)}")
        if unanswered:
            raise InputError.of_problems("training rows without an answer:", unanswered, "Training needs one in each.")
        kept = sum(has_label)
        if kept < len(has_label):
            what = f"{len(has_label) - kept} of {len(has_label)} training rows"
            logger.warning(f"{what} aren't trained on: their answer isn't in {ANSWERS_FILE}.")
        if not kept:
            raise InputError(f"no training row has an answer of {ANSWERS_FILE}.")
        return rows.where(has_label)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of `outputs` (B, classes).

        That is cross entropy against the scores as a distribution or, with `--vqa_loss bce`, upstream's binary cross
        entropy times the number of classes. With a `--teacher` a share of it is the Kullback-Leibler divergence from
        the teacher's probabilities, both at `--teacher_temperature`.

        Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015.
        """
        assert batch.targets is not None
        present = self._present(batch.examples, outputs.device)
        outputs = _without_absent(outputs, present)
        loss = self._losses(outputs, batch.targets, present, "mean")
        if batch.teacher is None:
            return loss
        options = self.config.of_task
        temperature, weight = options.teacher_temperature, options.teacher_weight
        # The divergence's gradient shrinks with the square of the temperature, which the factor undoes.
        taught = F.kl_div((outputs / temperature).log_softmax(dim=1), batch.teacher, reduction="batchmean")
        return (1 - weight) * loss + weight * temperature**2 * taught

    def _present(self, examples: Sequence[Example], device: torch.device) -> Tensor | None:
        """Return which options each question has, (B, classes); None if each has as many as the widest."""
        counts = [len(example.choices) or self.num_classes for example in examples]
        if not self.answers_are_options or min(counts, default=self.num_classes) == self.num_classes:
            return None
        return (torch.arange(self.num_classes) < torch.tensor(counts).unsqueeze(1)).to(device)

    def _losses(self, outputs: Tensor, targets: Tensor, present: Tensor | None, reduction: str) -> Tensor:
        """Return the losses: a scalar for "mean", (B,) for "none". No row of `targets` (B, classes) is all zero.

        `outputs` are those of `_without_absent`: options that a question doesn't have add nothing to its loss.
        """
        if self.config.model.vqa_loss == "bce":
            losses = F.binary_cross_entropy_with_logits(outputs, targets, reduction=reduction) * self.num_classes
            return losses if reduction == "mean" else losses.mean(dim=1)
        distribution = targets / targets.sum(dim=1, keepdim=True)
        smoothing = self.config.optim.label_smoothing
        if present is not None and smoothing:  # cross_entropy would spread it over options that aren't there
            spread = present / present.sum(dim=1, keepdim=True)
            distribution, smoothing = distribution * (1 - smoothing) + spread * smoothing, 0.0
        return F.cross_entropy(outputs, distribution, label_smoothing=smoothing, reduction=reduction)

    def attach_targets(self, batch: Batch, items: Sequence[Tensors]) -> Batch:
        """Return the batch with the score of each class, float32 (B, classes), and the teacher's probabilities."""
        teacher = None
        if all(example.teacher for example in batch.examples):
            shares = self._table([example.teacher for example in batch.examples])
            shares = shares.pow(1 / self.config.of_task.teacher_temperature)
            teacher = shares / shares.sum(dim=1, keepdim=True)
        return replace(batch, targets=self.targets(batch.examples), teacher=teacher)

    def targets(self, examples: Sequence[Example]) -> Tensor:
        """Return the score of each class, float32 (B, classes)."""
        return self._table([example.targets for example in examples])

    def _table(self, rows: Sequence[tuple[tuple[int, float], ...]]) -> Tensor:
        """Return (label, value) pairs as a table, float32 (B, classes), 0 if a label isn't named."""
        table = torch.zeros(len(rows), self.num_classes)
        for row, pairs in enumerate(rows):
            for label, value in pairs:
                table[row, label] = value
        return table

    def predictions(self, outputs: Tensor, batch: Batch, temperature: float = 1.0) -> list[Prediction]:
        """Predict the likeliest answer of each example of `outputs` (B, classes)."""
        present = self._present(batch.examples, torch.device("cpu"))
        outputs = _without_absent(outputs.cpu(), present)  # once: each copy waits for the device
        probabilities = self.probabilities(outputs)
        labels = probabilities.argmax(dim=1).tolist()
        if temperature != 1.0:
            probabilities = torch.from_numpy(temper(probabilities.numpy(), temperature))
            if present is not None:  # a high temperature would give options that aren't there a share
                probabilities = probabilities * present
                probabilities /= probabilities.sum(dim=1, keepdim=True)
        losses: list[float | None] = [None] * len(batch)
        if any(example.targets for example in batch.examples):
            losses = self._losses(outputs, self.targets(batch.examples), present, "none").tolist()
        return [self._prediction(*of) for of in zip(probabilities, labels, batch.examples, losses, strict=True)]

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Turn logits (B, classes) into probabilities that sum to 1: softmax, or for bce sigmoids over their sum."""
        if self.config.model.vqa_loss == "bce":
            outputs = F.logsigmoid(outputs)  # sigmoids that are all too small for a float would be 0 / 0
        return outputs.softmax(dim=1)

    def _prediction(self, probabilities: Tensor, label: int, example: Example, loss: float | None) -> Prediction:
        kept = (
            range(len(example.choices))
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
        """Return the score of each answer that scores; None if the truth alone does, with 1."""
        label = None if example.answer is None else self.answers.label(example.answer)
        if example.targets == (() if label is None else ((label, 1.0),)):
            return None
        return {self.answers.answers[label]: score for label, score in example.targets}

    def aggregate(
        self, predictions: list[Prediction], split: str, processor: Processor, *, full: bool = False
    ) -> EvalResult:
        """Return the predictions with `accuracy_metrics`, in percent, or with `metrics.full_metrics`.

        Their baselines count the training answers, if there is a training split.
        """
        if not full:
            return EvalResult({**accuracy_metrics(predictions)}, predictions)
        counts = None
        if self.folder.files("train") and any(p.truth is not None for p in predictions):
            counts = count_answers(filter(None, map(self._answer_text, self.folder.rows("train"))))
        return EvalResult({**full_metrics(predictions, counts)}, predictions, self._chance(split))

    def _answer_text(self, row: Row) -> str:
        answer, _ = get_truth(row, self.answers)
        return row["choices"][LETTERS.index(answer)] if answer and row.get("choices") else answer or ""

    def _chance(self, split: str) -> float:
        """Return the accuracy in percent of guessing among options, or of the most frequent training answer."""
        if self.answers_are_options:
            counts = Counter(len(row.get("choices", ())) or self.num_classes for row in self.folder.rows(split))
            return 100.0 * sum(rows / options for options, rows in counts.items()) / counts.total()
        if not self.folder.files("train"):
            return 100.0 / self.num_classes
        rows = self.folder.rows("train")
        # Upstream's rows name answers by number.
        answers = Counter(answer_key(row["answer"]) if "answer" in row else str(row.get("labels")) for row in rows)
        return 100.0 * max(answers.values()) / len(rows)

    def own_results(self, result: EvalResult, info: PredictionsInfo, folder: Path, suffix: str) -> list[Path]:
        """Write upstream's JSON and submission.csv, the latter as the sample of `--submission_like` has it."""
        sample, submission = self.config.run.submission_like, folder / f"submission{suffix}.csv"
        return [
            write_upstream_results(result.predictions, folder / f"submit_{self.spec.name}_{info.split}.json"),
            read_sample(Path(sample)).write(result.predictions, submission)
            if sample
            else write_submission(result.predictions, submission),
        ]


def _with_teacher(
    example_of: Callable[[Row, int], Example], taught: dict[str, Shares], row: Row, place: int
) -> Example:
    return replace(example_of(row, place), teacher=taught[row_id(row)])


def _without_absent(outputs: Tensor, present: Tensor | None) -> Tensor:
    """Return `outputs` (B, classes) with options that a question doesn't have as unlikely as can be.

    CLIP has no more columns than the widest question of a batch has options; the others are added.
    """
    if present is None:
        return outputs
    # Not -inf: 0 * -inf, a target times such a log-probability, isn't a number.
    lowest = torch.finfo(outputs.dtype).min / 2
    return F.pad(outputs, (0, present.size(1) - outputs.size(1))).masked_fill(~present, lowest)
