"""The plain data that travels along the pipeline from index row to submission. No logic here."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from beit3_vqa.errors import InputError


@dataclass(frozen=True)
class Inputs:
    """The names of a model's inputs.

    Attributes:
        images: one for each image of an example, in their order.
        text: of the token ids, beside which goes `padding_mask`; empty where there is no text.
    """

    images: tuple[str, ...] = ("image",)
    text: str = "question"


@dataclass(frozen=True)
class Example:
    """One question about one image, or whatever else a task makes of a row: a sentence about two, an image alone.

    Attributes:
        id: the row's own id, as text; unique within its split.
        image_path: a file to open.
        question: the text, empty where `token_ids` stands for it or there is none.
        choices: the options of a multiple-choice question, in the order they are shown; empty when open-ended.
        answer: the annotated answer (a letter for multiple choice); None where it isn't known.
        targets: (label, score) pairs, scores in [0, 1]; empty where the answer isn't known or has no label.
        weight: how much the row counts in the weighted accuracy; None where the data have no weights.
        token_ids: XLM-R ids without `<s>` and `</s>`, where the index (upstream's format) holds ids, not text.
        problem: why its image can't be read, where a grey one stands for it; else None.
        image: the image as the index names it, relative to the image root; empty outside a prepared folder.
        more_image_paths: files of the second image and further ones, for tasks that have them.
    """

    id: str
    image_path: str
    question: str
    choices: tuple[str, ...] = ()
    answer: str | None = None
    targets: tuple[tuple[int, float], ...] = ()
    weight: float | None = None
    token_ids: tuple[int, ...] | None = None
    problem: str | None = None
    image: str = ""
    more_image_paths: tuple[str, ...] = ()

    @property
    def image_paths(self) -> tuple[str, ...]:
        """Every file to open."""
        return (self.image_path, *self.more_image_paths)


@dataclass(frozen=True)
class Batch:
    """B examples as a model takes them.

    Attributes:
        inputs: keyword arguments of the model, as its processor made them for the B examples.
        examples: the B examples in order, options as the model sees them.
        targets: what the loss compares the outputs with, (B, ...), made by the task; None where nothing is learned.
        bad_images: errors of images that couldn't be read, which some of the examples stand in for.
        num_valid: in training, how many of them count, the first ones: 0 for the one example of a process for which a
            short last batch had none.
        global_batch: in training, how many count over all processes.
        step: in training, optimizer steps done since the start of the run.
    """

    inputs: dict[str, Tensor]
    examples: tuple[Example, ...]
    targets: Tensor | None = None
    bad_images: tuple[InputError, ...] = ()
    num_valid: int = 0
    global_batch: int = 0
    step: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    def pin_memory(self) -> "Batch":
        """A copy in page-locked memory, from which a GPU can fetch without the host waiting; DataLoader calls it."""
        return self._with_each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """A copy on a device; the host doesn't wait for tensors in page-locked memory."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        inputs = {name: change(tensor) for name, tensor in self.inputs.items()}
        return replace(self, inputs=inputs, targets=None if self.targets is None else change(self.targets))


@dataclass(frozen=True)
class Prediction:
    """What the model answered to one question, and what is known of the truth.

    Attributes:
        id: the example's id.
        question: its text.
        answer: the chosen answer: a letter for multiple choice, else text.
        probabilities: answer -> probability, most likely first when open-ended, which keeps the likeliest few.
        truth: the annotated answer, None where it isn't known.
        score: what the chosen answer scores in [0, 1]; None where the truth isn't known.
        weight: the row's weight, None where the data have none.
        problem: why the image couldn't be read, where the answer is to the text alone; else None.
        loss: what training would have made of the answer; None where the truth isn't known or has no label.
        choices: the texts of the options A, B, ...; empty when open-ended.
        image: the image as the index names it, relative to the image root; empty outside a prepared folder.
        answer_scores: answer -> score of those that score, where these aren't 1 for the truth alone; else None.
    """

    id: str
    question: str
    answer: str
    probabilities: dict[str, float]
    truth: str | None = None
    score: float | None = None
    weight: float | None = None
    problem: str | None = None
    loss: float | None = None
    choices: tuple[str, ...] = ()
    image: str = ""
    answer_scores: dict[str, float] | None = None


@dataclass(frozen=True)
class PredictionsInfo:
    """Where predictions come from: the file beside them, for ensembles and reports.

    Attributes:
        task: its name.
        model: full name of the model.
        parameters: of the model, all that was loaded for it.
        checkpoint: path of the weights, as it was given.
        split: what was evaluated.
        data_path: the prepared folder, as it was given.
        image_root: the folder that images are named from.
        best_metric: which of the metrics the run was chosen by.
        chance: that metric for blind guessing.
        sha256: of the checkpoint's file, in hexadecimal digits: what tells its weights from others.
        predictions_sha256: of the file of the predictions, which none but that file may claim; 0.1.0 didn't write it.
    """

    task: str
    model: str
    parameters: int
    checkpoint: str = ""
    split: str = ""
    data_path: str = ""
    image_root: str = ""
    best_metric: str = ""
    chance: float | None = None
    sha256: str = ""
    predictions_sha256: str = ""


@dataclass(frozen=True)
class AttentionMap:
    """Where a model looked while it answered one question: the attention of its [CLS] token.

    Shares of patches and tokens sum to 1 less what went to the special tokens ([CLS] itself, `<s>`, `</s>`), which say
    nothing of where; where image and text have a tower each, that holds of the patches, and of each text.

    Attributes:
        patches: float32 (rows, columns), the share of each patch of the square that the model saw.
        region: left, top, right and bottom of that square as shares of the upright image's width and height.
        texts: what was read, (token as it is written, with the space before or after it; share) in order: the whole
            prompt as one text, or a text for each option.
    """

    patches: Tensor
    region: tuple[float, float, float, float]
    texts: tuple[tuple[tuple[str, float], ...], ...]


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found.

    Attributes:
        metrics: empty where no answer is known.
        predictions: one for each row, in input order.
        blind: the same with every image greyed out; empty where that wasn't asked for.
    """

    metrics: dict[str, Any]
    predictions: list[Prediction]
    blind: tuple[Prediction, ...] = ()
