"""Ask a trained model: `load` a checkpoint, then `Predictor.predict` one question, or `predict_frame` a whole table."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from beit3_vqa.config.config import GROUP_OF
from beit3_vqa.config.resolve import GivenOptions
from beit3_vqa.data.decoding import memory_for
from beit3_vqa.data.given_images import GivenImage, read_given_image
from beit3_vqa.data.images import image_size
from beit3_vqa.data.rows import LETTERS
from beit3_vqa.data.table_files import read_frame
from beit3_vqa.data.types import AttentionMap, Batch, Example, Prediction
from beit3_vqa.engine.answer_table import Columns, answer_columns, answer_rows, evaluate_rows
from beit3_vqa.engine.build import build, load_for_inference, resolve_checkpoint_config
from beit3_vqa.engine.checkpoint.folder import BEST, checkpoints, deepspeed_weights
from beit3_vqa.engine.checkpoint.io import get_options, read_checkpoint
from beit3_vqa.engine.checkpoint.manifest import read_temperature
from beit3_vqa.engine.checkpoint.portable import checkpoint_file
from beit3_vqa.engine.checkpoint.resume import check_same_fingerprints
from beit3_vqa.engine.checkpoint.validate import validate_content
from beit3_vqa.engine.components import Components
from beit3_vqa.engine.evaluator import finite, naming
from beit3_vqa.engine.one_question import as_choices, as_text, check_question, number_problem
from beit3_vqa.errors import InputError, plural, short
from beit3_vqa.models.int8 import round_linear_layers
from beit3_vqa.preparation.questions import Questions, read_questions
from beit3_vqa.runtime.files import is_folder
from beit3_vqa.runtime.spinning import watch_spinning
from beit3_vqa.tasks import find_task
from beit3_vqa.tasks.base import Task, as_beit3

if TYPE_CHECKING:
    import pandas as pd

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
    inputs: dict[str, object]
    size: tuple[int, int]


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
    """A trained model, ready for questions; made by `load` from `checkpoint`. `print` shows what it is."""

    def __init__(self, components: Components, checkpoint: str, temperature: float = 1.0):
        self.components = components
        self.checkpoint = checkpoint
        self.temperature = temperature

    def __repr__(self) -> str:
        """Return model, answers, checkpoint and device in four lines."""
        components, counts = self.components, self.option_counts
        if counts:
            most = f" to {counts[-1]}" if len(counts) > 1 else ""
            answers = f"{counts[0]}{most} options, answered by a letter"
        else:
            answers = f"open-ended, {plural(components.task.num_classes, 'answer')}"
        if not components.task.spec.supports_questions:
            answers = "no single questions"
        parameters = sum(parameter.numel() for parameter in components.model.parameters())
        device = f"{components.precision.device}, {components.precision.name}"
        lines = {
            "model": f"{components.config.model.model}, {parameters:,} parameters",
            "answers": f"{answers} (task {components.task.spec.name})",
            "checkpoint": self.checkpoint,
            "device": device + (f", temperature {self.temperature:g}" if self.temperature != 1 else ""),
        }
        return "\n".join(["Predictor", *(f"  {name:<12}{text}" for name, text in lines.items())])

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

    def predict(self, image: GivenImage, question: str, choices: Sequence[object] = ()) -> Prediction:
        """Answer one question about one image.

        Args:
            image: a path; a Pillow image; a uint8 array (height, width, 3) of RGB or (height, width) of grey; or the
                bytes of an image file. All have the limits that files have.
            question: as text.
            choices: the options, as many as `option_counts` allows, as a list, a tuple or a pandas Series; numbers
                become text, two may be equal; empty for an open-ended model.

        Returns:
            its `answer` is a letter if there are options, else text; `probabilities` are in [0, 1].

        Raises:
            InputError: the image can't be read, an option is missing or no text, the number of options is wrong, or
                the task has no questions.
            NotFiniteError: the model's outputs aren't finite.
        """
        self.components.processor.images.clear()  # a file may hold another image than at the last question
        return self.predict_many([self.prepare(image, question, choices)])[0]

    def prepare(self, image: GivenImage, question: str, choices: Sequence[object] = ()) -> PreparedQuestion:
        """Check a question and read its image: the part of `predict` that needs no model. Not thread-safe.

        A path that was read since the last `predict` isn't read again, even if its file has changed.

        Raises:
            InputError: as `predict`.
        """
        task, processor = self.components.task, self.components.processor
        self._require_questions()
        question, texts = as_text(question, "the question"), as_choices(choices)
        check_question(question, texts, self.option_counts)
        is_path = isinstance(image, (str, Path))
        given = None if is_path else read_given_image(image)
        name = str(image) if given is None else "(given)"
        example = Example(id="0", image_path=name, question=question, choices=texts)
        with memory_for(name), processor.images.holding(name, given) if given is not None else nullcontext():
            tensors = task.tensors(example, None, processor)
            return PreparedQuestion(example, tensors, image_size(name) if given is None else given.size)

    def _require_questions(self) -> None:
        spec = self.components.task.spec
        if not spec.supports_questions:
            raise InputError(f"the model was trained on {spec.name}, which has no single questions. {EVALUATE}")

    def predict_frame(
        self,
        frame: "pd.DataFrame",
        image_root: str | Path = ".",
        *,
        columns: Columns = "",
        batch_size: int | None = None,
        num_workers: int | None = None,
        skip_bad_images: int = 0,
    ) -> "pd.DataFrame":
        """Answer the question in each row of a pandas DataFrame.

        Args:
            frame: questions; columns are recognised by their names as `beit3-vqa prepare table` does. Answers that it
                may have aren't looked at. It isn't changed.
            image_root: the folder that image paths start from.
            columns: what columns mean if their names don't say it, such as `{"image": "file", "question": "text",
                "options": ("opt1", "opt5")}`, or the text of `--columns`.
            batch_size: questions in a forward pass; None: as in evaluation.
            num_workers: processes that read images; None: none for a few rows, else as many as in evaluation.
            skip_bad_images: how many images may be unreadable; their rows are answered from the text alone.

        Returns:
            A copy with the same index in the same order, and more columns: `answer` (a letter if there are options,
            else text), `probability` (of that answer, in [0, 1]), then for options `p_A`, `p_B`, ... (NaN if a row
            has no such option), for open-ended questions the next likeliest as `answer_2`, `probability_2`, to 5. With
            `skip_bad_images` also `problem`, empty if there is none. A column of such a name is replaced.

        Raises:
            InputError: a column isn't recognised, or rows can't be answered: all of them are listed, by index.
            NotFiniteError: the model's outputs aren't finite.
        """
        questions = self._read_frame(frame, image_root, columns)
        predictions = self.answer(questions, batch_size, num_workers, skip_bad_images)
        answered = frame.copy()
        for name, values in self.columns(predictions, with_problems=skip_bad_images > 0).items():
            answered[name] = values
        return answered

    def evaluate_frame(
        self,
        frame: "pd.DataFrame",
        image_root: str | Path = ".",
        *,
        columns: Columns = "",
        answer_from: str = "auto",
        batch_size: int | None = None,
        num_workers: int | None = None,
        skip_bad_images: int = 0,
    ) -> dict[str, object]:
        """Answer the question in each row of a DataFrame, and return how good the answers are.

        Args:
            frame: questions with their answers: letters, options' texts or numbers.
            image_root, columns, batch_size, num_workers, skip_bad_images: as for `predict_frame`.
            answer_from: what a number in the answer column is: auto, text (of an option), 0 or 1 (its place from
                there).

        Returns:
            The metrics that `--eval` writes to metrics.json: `accuracy` in percent, `accuracy_interval`, `loss`,
            `calibration` and so on. The baselines count these answers, since a frame has no training rows.

        Raises:
            InputError: as `predict_frame`, or a row has no answer, or one that is none of its options.
            NotFiniteError: the model's outputs aren't finite.
        """
        questions = self._read_frame(frame, image_root, columns, answer_from, answers=True)
        if not questions.rows:
            raise InputError("the DataFrame has no rows to evaluate.")
        predictions = self.answer(questions, batch_size, num_workers, skip_bad_images)
        return evaluate_rows(predictions, self.temperature)

    def _read_frame(
        self,
        frame: "pd.DataFrame",
        image_root: str | Path,
        columns: Columns,
        answer_from: str = "auto",
        *,
        answers: bool = False,
    ) -> Questions:
        if not hasattr(frame, "iloc") or not hasattr(frame, "columns"):
            hint = " pandas.read_csv reads a file." if isinstance(frame, (str, Path)) else ""
            raise InputError(f"a pandas DataFrame is needed, this is {short(frame)}.{hint}")
        where = "the DataFrame"
        if not len(frame):
            return Questions(where, tuple(map(str, frame.columns)))
        questions = read_questions(read_frame(frame, where), where, image_root, columns, answer_from, answers=answers)
        # Tables are read without their empty rows, but here each row is to get an answer.
        if len(questions.cells) < len(frame):
            empty = frame.index[(frame.isna() | (frame == "")).all(axis=1)]
            questions.problems += [f"{where}, row {short(label)}: has no value at all" for label in empty]
        return questions

    def answer(
        self,
        questions: Questions,
        batch_size: int | None = None,
        num_workers: int | None = None,
        skip_bad_images: int = 0,
    ) -> list[Prediction]:
        """Answer the questions of a table in batches; see `predict_frame` for arguments and errors."""
        self._require_questions()
        counts = [len(row.get("choices", ())) for row in questions.rows]
        if len(counts) == len(questions.origins):  # else rows are missing, and the problems say why
            asked = [number_problem(count, self.option_counts) for count in counts]
            told = zip(asked, questions.origins, strict=True)
            questions.problems += [f"{origin}: the model {problem}" for problem, origin in told if problem]
        questions.check(skip_bad_images)
        if not questions.rows:
            return []
        self.components.processor.images.clear()  # as in `predict`
        task, limits = self._task_for(max(counts)), (batch_size, num_workers, skip_bad_images)
        with naming(self.checkpoint):
            return answer_rows(self.components, task, questions, self.temperature, *limits)

    def columns(self, predictions: Sequence[Prediction], *, with_problems: bool = False) -> dict[str, list[object]]:
        """Return name -> values of the columns that `predict_frame` adds, a value for each prediction."""
        return answer_columns(predictions, self.components.task, with_problems=with_problems)

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
        # There are `passes` maps for each question, in the order of its options.
        chosen = [LETTERS.index(p.answer) if passes > 1 else 0 for p in predictions]
        return predictions, [maps[place * passes + option] for place, option in enumerate(chosen)]

    def _batch(self, asked: Sequence[PreparedQuestion]) -> tuple[Task, Batch]:
        """Return the task for the questions, all of one number of options, and them as a batch on the device."""
        task = self._task_for(len(asked[0].example.choices))
        inputs = task.collate([one.inputs for one in asked], self.components.processor)
        batch = Batch(inputs, tuple(one.example for one in asked))
        return task, batch.to(self.components.precision.device)

    def _task_for(self, options: int) -> Task:
        """Return the task for questions with at most so many options."""
        task = self.components.task
        if not options or options == task.num_classes or not self._any_number:
            return task
        # The weights are the same for any number of options; only the table of letters is another.
        return task.from_checkpoint(self.components.config, {"answers": list(LETTERS[:options])}, self.checkpoint)


def load(
    checkpoint: str | Path,
    device: str = "auto",
    sentencepiece_model: str = "",
    pretrained: str = "",
    precision: str = "auto",
) -> Predictor:
    """Load a trained model from one of your checkpoints, with everything else that it needs.

    Args:
        checkpoint: `checkpoint-best.pth` or `checkpoint-N.pth`; the folder of a run, of which the best checkpoint is
            taken, else the newest; or a folder that `export` made.
        device: auto, cpu, cuda, cuda:N or mps.
        sentencepiece_model: the tokenizer, if tokenizer.spm is no longer beside the checkpoint.
        pretrained: CLIP: folder of the model that was fine-tuned, if it has moved since.
        precision: auto, fp32, bf16, fp16 or int8. In fp32 an answer's probabilities don't depend, up to 1e-5, on the
            questions that are in the batch with it.

    Raises:
        InputError: not a checkpoint of this package, or its tokenizer or pretrained model can't be found.
    """
    watch_spinning()
    places = {"sentencepiece_model": sentencepiece_model, "pretrained": pretrained}
    given = {"device": device, "precision": precision} | {name: place for name, place in places.items() if place}
    path = find_checkpoint(Path(checkpoint))
    components = load_components(path, given)
    components.model.to(components.precision.device).eval().requires_grad_(False)
    components.precision.cast_frozen(components.model)
    name = path if path.suffix == ".pth" else checkpoint  # an export is its folder
    return Predictor(components, str(name), read_temperature(path) or 1.0)


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path means: a file, or the best, else the newest, of a folder."""
    file = checkpoint_file(path)
    if not is_folder(file):
        return file
    if (file / BEST).is_file():
        return file / BEST
    found = checkpoints(file)
    if not found:
        theirs = deepspeed_weights(file)
        hint = f" It holds {theirs[-1]}, of a run with DeepSpeed." if theirs else ""
        raise InputError(f"--checkpoint {path}: is a folder without a checkpoint.{hint}")
    return found[-1]


def load_components(path: Path, given: dict[str, str]) -> Components:
    """Build the components of a checkpoint's run and load its weights.

    Args:
        path: the checkpoint.
        given: options that replace the checkpoint's own.
    """
    where = f"--checkpoint {path}"
    # Nobody's options are handed on, so the file isn't trusted: no code in it ever runs.
    content = read_checkpoint(path, "--checkpoint", mapped=True)
    validate_content(content, where)
    task_name = get_options(content).get("task")
    # Upstream's checkpoints have no task_state, so they don't say what their outputs mean.
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
    if components.precision.int8:
        round_linear_layers(components.model)
    return components
