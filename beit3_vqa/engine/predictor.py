"""Ask a trained model single questions: `load` a checkpoint, then `Predictor.predict`."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from beit3_vqa.config.config import GROUP_OF
from beit3_vqa.config.resolve import GivenOptions
from beit3_vqa.data.decoding import memory_for
from beit3_vqa.data.images import image_size
from beit3_vqa.data.rows import LETTERS
from beit3_vqa.data.types import AttentionMap, Batch, Example, Prediction
from beit3_vqa.engine.build import Components, build, load_for_inference, resolve_checkpoint_config
from beit3_vqa.engine.checkpoint.io import get_options, read_checkpoint
from beit3_vqa.engine.checkpoint.manifest import read_temperature
from beit3_vqa.engine.checkpoint.portable import checkpoint_file
from beit3_vqa.engine.checkpoint.resume import check_same_fingerprints
from beit3_vqa.engine.checkpoint.validate import validate_content
from beit3_vqa.engine.evaluator import finite
from beit3_vqa.errors import InputError
from beit3_vqa.runtime.spinning import watch_spinning
from beit3_vqa.tasks import find_task
from beit3_vqa.tasks.base import Task, as_beit3

MOST_OPTIONS = 10  # limit for models that take any number of options
EVALUATE = "`beit3-vqa finetune --eval --resume FILE` evaluates it on a split."
# The options that `load` takes: where the checkpoint's files are now, and where and how to compute.
_PLACES = frozenset({"sentencepiece_model", "pretrained", "device", "precision"})


@dataclass(frozen=True)
class PreparedQuestion:
    """A question and its image, checked and ready for the model; see `Predictor.prepare`.

    Attributes:
        example: the question.
        inputs: what the model's processor made of it, on the CPU.
        size: width and height of the upright image in pixels.
    """

    example: Example
    inputs: dict[str, Any]
    size: tuple[int, int]


def check_question(question: str, choices: Sequence[str], option_counts: range) -> None:
    """Raise InputError if the question or an option is empty, two options are equal, or their number is wrong.

    Args:
        question: as text.
        choices: its options.
        option_counts: numbers of options that the model takes; empty for an open-ended model.
    """
    if not question.strip():
        raise InputError("the question is empty.")
    if any(not choice.strip() for choice in choices) or len(set(choices)) < len(choices):
        raise InputError(f"the options must differ, and none may be empty: {', '.join(map(repr, choices))}.")
    if not option_counts:
        if choices:
            raise InputError("the model answers open-ended questions: leave the choices out.")
        return
    fewest, most = option_counts[0], option_counts[-1]
    wanted = f"{fewest} to {most}" if most > fewest else f"{fewest}"
    if not choices:
        raise InputError(f"the model answers multiple-choice questions: give {wanted} choices.")
    if len(choices) not in option_counts:
        raise InputError(f"the model chooses among {wanted} options; {len(choices)} were given.")


@contextmanager
def naming_saved_options(where: str) -> Iterator[None]:
    """Reword errors about options that the checkpoint `where` was saved with: the caller can't give them as flags.

    `--vocab_size 1` becomes `its vocab_size 1`; the options that `load` takes keep their dashes.
    """

    def named(flag: re.Match[str]) -> str:
        return f"its {flag[1]}" if flag[1] in GROUP_OF and flag[1] not in _PLACES else flag[0]

    try:
        yield
    except InputError as error:
        said = re.sub(r"--(\w+)", named, str(error))
        if said == str(error):
            raise
        raise InputError(said if said.startswith(where) else f"{where}: {said}") from error


class Predictor:
    """A trained model, ready for questions; made by `load` from `checkpoint`."""

    def __init__(self, components: Components, checkpoint: str, temperature: float = 1.0):
        self.components = components
        self.checkpoint = checkpoint
        self.temperature = temperature

    @property
    def option_counts(self) -> range:
        """Return how many options a question may have; an empty range for an open-ended model.

        A model whose head has one output per option takes as many as that, or fewer if its prompt has a place for any
        number. A model that scores each option by itself takes any number, here limited to `MOST_OPTIONS`.
        """
        task = self.components.task
        if not task.answers_are_options:
            return range(0)
        if self._any_number:
            return range(2, max(MOST_OPTIONS, task.num_classes) + 1)
        fewest = 2 if as_beit3(self.components.processor).prompt.any_number else task.num_classes
        return range(fewest, task.num_classes + 1)

    @property
    def _any_number(self) -> bool:
        """Return whether the model scores each option by itself."""
        return self.components.family.any_number_of_options or self.components.task.forwards_per_example > 1

    def predict(self, image: str | Path, question: str, choices: Sequence[str] = ()) -> Prediction:
        """Answer one question about one image.

        Args:
            image: a file.
            question: as text.
            choices: the options, as many as `option_counts` allows; empty for an open-ended model.

        Raises:
            InputError: the image can't be read, the number of options is wrong, or the task has no questions.
            NotFiniteError: the model's outputs aren't finite.
        """
        return self.predict_many([self.prepare(image, question, choices)])[0]

    def prepare(self, image: str | Path, question: str, choices: Sequence[str] = ()) -> PreparedQuestion:
        """Check a question and read its image: the part of `predict` that needs no model. Not thread-safe.

        Raises:
            InputError: as `predict`.
        """
        task = self.components.task
        if not task.spec.supports_questions:
            raise InputError(f"the model was trained on {task.spec.name}, which has no single questions. {EVALUATE}")
        check_question(question, choices, self.option_counts)
        example = Example(id="0", image_path=str(image), question=question, choices=tuple(choices))
        with memory_for(str(image)):
            return PreparedQuestion(example, task.tensors(example, None, self.components.processor), image_size(image))

    def predict_many(self, asked: Sequence[PreparedQuestion]) -> list[Prediction]:
        """Answer B questions, which have the same number of options, in one forward pass.

        Raises:
            NotFiniteError: the model's outputs aren't finite.
        """
        task, batch = self._batch(asked)
        with torch.no_grad(), self.components.precision.autocast():
            outputs = task.infer(self.components.model, batch, self.components.processor)
        return task.predictions(finite(outputs, self.checkpoint), batch, self.temperature)

    def predict_with_attention(self, asked: Sequence[PreparedQuestion]) -> tuple[list[Prediction], list[AttentionMap]]:
        """Answer as `predict_many` does, and return where the model looked at each image; takes a little longer.

        If each option has a forward pass of its own, the map is that of the option that was chosen.

        Raises:
            NotFiniteError: the model's outputs or maps aren't finite.
        """
        task, batch = self._batch(asked)
        components, passes = self.components, task.forwards_per_example
        sizes = [one.size for one in asked for _ in range(passes)]
        with torch.no_grad(), components.precision.autocast():
            outputs, maps = components.family.attention(components.model, components.processor, batch.inputs, sizes)
        finite([one.patches for one in maps], self.checkpoint)
        predictions = task.predictions(finite(outputs, self.checkpoint), batch, self.temperature)
        chosen = [LETTERS.index(p.answer) if passes > 1 else 0 for p in predictions]
        return predictions, [maps[place * passes + option] for place, option in enumerate(chosen)]

    def _batch(self, asked: Sequence[PreparedQuestion]) -> tuple[Task, Batch]:
        """Return the task for the questions, all of one number of options, and them as a batch on the device."""
        task = self.components.task
        options = len(asked[0].example.choices)
        if options and options != task.num_classes and self._any_number:
            answers = {"answers": list(LETTERS[:options])}
            task = task.from_checkpoint(self.components.config, answers, self.checkpoint)
        inputs = task.collate([one.inputs for one in asked], self.components.processor)
        batch = Batch(inputs, tuple(one.example for one in asked))
        return task, batch.to(self.components.precision.device)


def load(
    checkpoint: str | Path,
    device: str = "auto",
    sentencepiece_model: str = "",
    pretrained: str = "",
    precision: str = "auto",
) -> Predictor:
    """Load a trained model from one of your checkpoints, with everything else that it needs.

    Args:
        checkpoint: `checkpoint-best.pth` or `checkpoint-N.pth`, or a folder that `export` made of one.
        device: auto, cpu, cuda, cuda:N or mps.
        sentencepiece_model: the tokenizer, if tokenizer.spm is no longer beside the checkpoint.
        pretrained: CLIP: folder of the model that was fine-tuned, if it has moved since.
        precision: auto, fp32, bf16 or fp16. In fp32 an answer's probabilities don't depend, up to 1e-5, on the
            questions that are in the batch with it.

    Raises:
        InputError: not a checkpoint of this package, or its tokenizer or pretrained model can't be found.
    """
    watch_spinning()
    places = {"sentencepiece_model": sentencepiece_model, "pretrained": pretrained}
    given = {"device": device, "precision": precision} | {name: place for name, place in places.items() if place}
    path = checkpoint_file(Path(checkpoint))
    components = load_components(path, given)
    components.model.to(components.precision.device).eval()
    return Predictor(components, str(checkpoint), read_temperature(path) or 1.0)


def load_components(path: Path, given: dict[str, str]) -> Components:
    """Build the components of a checkpoint's run and load its weights.

    Args:
        path: the checkpoint.
        given: options that replace the checkpoint's own.
    """
    where = f"--checkpoint {path}"
    content = read_checkpoint(path, "--checkpoint", mapped=True)
    validate_content(content, where)
    task_name = get_options(content).get("task")
    if "task_state" not in content or not isinstance(task_name, str):
        raise InputError(f"{where}: isn't a checkpoint of this package's training. {EVALUATE}")
    with naming_saved_options(where):
        find_task(task_name)  # an unknown one is an error of its own
        options = GivenOptions({**given, "task": task_name}, typed_flags=frozenset(given))
        config = resolve_checkpoint_config(options, content, where)
        task = find_task(task_name).from_checkpoint(config, content["task_state"], where)
        components = build(config, task, path)
        check_same_fingerprints(components, content)
    load_for_inference(components, content, where)
    return components
