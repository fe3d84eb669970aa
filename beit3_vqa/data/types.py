"""The plain data that travels along the pipeline from index row to submission."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from beit3_vqa.errors import InputError

if TYPE_CHECKING:  # `prepare` does without torch, which takes seconds to import
    import torch
    from torch import Tensor

Key = tuple[int, int, int]  # which drawing of an example: epoch, number of the draw in it, row
Tensors = dict[str, Any]  # what a processor makes of an example: tensors, and lists of token ids of any length


@dataclass(frozen=True)
class Inputs:
    """The names of a model's inputs.

    Attributes:
        images: one name for each image of an example, in order.
        text: name of the token ids, which come with a `padding_mask`; empty if there is no text.
        shared: whether the model takes `image_of`, so that an image of several texts comes once.
    """

    images: tuple[str, ...] = ("image",)
    text: str = "question"
    shared: bool = False


@dataclass(frozen=True)
class Example:
    """One question about one image, or what another task makes of a row: a sentence about two images, an image alone.

    Attributes:
        id: the row's own id, as text; unique within its split.
        image_path: a file to open.
        question: the text; empty if `token_ids` replaces it or there is none.
        choices: the options of a multiple-choice question, in the order they are shown; empty if it is open-ended.
        answer: the annotated answer (a letter for multiple choice); None if it isn't known.
        answers: the text of each of the `targets` of an open-ended question.
        targets: (label, score) pairs, scores in [0, 1]; empty if the answer isn't known or has no label.
        teacher: (label, probability) pairs of another model, to learn from; empty if there is none.
        weight: how much the row counts in the weighted accuracy; None if the data have no weights.
        token_ids: XLM-R ids without `<s>` and `</s>`, if the index (upstream's format) holds ids, not text; else None.
        problem: why its image can't be read, if a grey one replaces it; else None.
        image: the image as the index names it, relative to the image root; empty outside a prepared folder.
        more_image_paths: files of the second image and further ones, for tasks that have them.
        wordings: the question in other words. Training draws one of them all, see `data.dataset.reworded`.
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
    teacher: tuple[tuple[int, float], ...] = ()
    wordings: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Return all texts: question and wordings, options, answers."""
        return (self.question, *self.wordings, *self.choices, *self.answers)

    @property
    def image_paths(self) -> tuple[str, ...]:
        """Return every file to open."""
        return (self.image_path, *self.more_image_paths)

    @property
    def text_length(self) -> int:
        """Return the text's length in characters or token ids: a longer one usually has more tokens. For sorting."""
        return len(self.question) + len(self.token_ids or ()) + sum(map(len, self.choices))


@dataclass(frozen=True)
class Batch:
    """B examples as a model takes them.

    Attributes:
        inputs: keyword arguments of the model, as its processor made them for the B examples.
        examples: the B examples in order, options as the model sees them.
        targets: what the loss compares the outputs with, (B, ...), made by the task; None if nothing is learned.
        teacher: another model's probabilities, float32 (B, classes), to learn from beside the targets; None: none.
        bad_images: errors of unreadable images, which some of the examples replace.
        num_valid: in training, how many of the examples count, from the first on. It is 0 for the one example of a
            process for which a short last batch had none.
        global_batch: in training, how many count over all processes.
        step: in training, optimizer steps done since the start of the run.
    """

    inputs: "dict[str, Tensor]"
    examples: tuple[Example, ...]
    targets: "Tensor | None" = None
    teacher: "Tensor | None" = None
    bad_images: tuple[InputError, ...] = ()
    num_valid: int = 0
    global_batch: int = 0
    step: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    def pin_memory(self) -> "Batch":
        """Return a copy in page-locked memory, which a GPU copies without the host waiting; DataLoader calls this."""
        return self._with_each(lambda tensor: tensor.pin_memory())

    def to(self, device: "torch.device") -> "Batch":
        """Return a copy on a device; the host doesn't wait for tensors in page-locked memory."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def _with_each(self, change: "Callable[[Tensor], Tensor]") -> "Batch":
        inputs = {name: change(tensor) for name, tensor in self.inputs.items()}
        targets, teacher = (None if tensor is None else change(tensor) for tensor in (self.targets, self.teacher))
        return replace(self, inputs=inputs, targets=targets, teacher=teacher)


@dataclass(frozen=True)
class Prediction:
    """What the model answered to one question, and what is known of the truth.

    Attributes:
        id: the example's id.
        question: its text.
        answer: the chosen answer: a letter for multiple choice, else text.
        probabilities: answer -> probability, most likely first when open-ended, which keeps the likeliest few.
        truth: the annotated answer; None if it isn't known.
        score: score of the chosen answer in [0, 1]; None if the truth isn't known.
        weight: the row's weight; None if the data have none.
        problem: why the image couldn't be read, if the answer is to the text alone; else None.
        loss: the training loss of the answer; None if the truth isn't known or has no label.
        choices: the texts of the options A, B, ...; empty if open-ended.
        image: the image as the index names it, relative to the image root; empty outside a prepared folder.
        answer_scores: answer -> score of every answer that scores; None if only the truth does, with 1.
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
        task: name of the task.
        model: full name of the model.
        parameters: number of parameters of all that was loaded for the model.
        checkpoint: path of the weights, as it was given.
        split: name of the split.
        data_path: the prepared folder, as it was given.
        image_root: the folder that the images' paths are relative to.
        best_metric: name of the metric that chose the best epoch.
        chance: that metric for blind guessing.
        sha256: SHA-256 of the checkpoint's file, in hexadecimal digits.
        predictions_sha256: SHA-256 of the file of the predictions; empty if 0.1.0 wrote it.
        temperature: by which their logits were divided.
        tta: over which orders and wordings they are averaged, as `--tta` says it; none: over none.
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
    temperature: float = 1.0
    tta: str = "none"


@dataclass(frozen=True)
class AttentionMap:
    """Where a model looked while it answered one question: the attention of its [CLS] token.

    The shares of patches and tokens sum to 1, less those of the special tokens ([CLS] itself, `<s>`, `</s>`), which
    aren't shown. If image and text have a tower each, the patches sum to that, and so does each text.

    Attributes:
        patches: float32 (rows, columns), the share of each patch of the square that the model saw.
        region: left, top, right and bottom of that square as shares of the upright image's width and height.
        texts: for each text (the whole prompt, or one for each option) its tokens in order, as pairs (token as it is
            written, with the space before or after it; share).
    """

    patches: "Tensor"
    region: tuple[float, float, float, float]
    texts: tuple[tuple[tuple[str, float], ...], ...]


@dataclass(frozen=True)
class EvalResult:
    """The result of an evaluation.

    Attributes:
        metrics: name -> value; empty if no answer is known.
        predictions: one for each row, in input order.
        chance: the best metric of blind guessing; 0 unless all metrics were asked for.
        blind: the predictions with every image greyed out; empty unless that was asked for.
    """

    metrics: dict[str, object]
    predictions: list[Prediction]
    chance: float = 0.0
    blind: tuple[Prediction, ...] = ()


def get_number(metrics: Mapping[str, object], name: str) -> float | None:
    """Return the metric of this name; None if there is none or it isn't a number."""
    value = metrics.get(name)
    return float(value) if isinstance(value, (int, float)) else None
