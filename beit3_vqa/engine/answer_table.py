"""Answer all questions of a table as an evaluation does: with its data set, its loader, its batches."""

import multiprocessing
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from beit3_vqa.data.bad_images import BadImages
from beit3_vqa.data.dataset import IndexDataset
from beit3_vqa.data.images import open_image
from beit3_vqa.data.loader import BatchLoader, evaluation_order, noting_rows
from beit3_vqa.data.rows import LETTERS
from beit3_vqa.data.types import Prediction
from beit3_vqa.engine.components import Components
from beit3_vqa.engine.evaluator import evaluate_batches
from beit3_vqa.errors import ImageError, InputError
from beit3_vqa.metrics.summary import full_metrics
from beit3_vqa.preparation.questions import Questions
from beit3_vqa.runtime.bar import progress_bar
from beit3_vqa.tasks.base import KEPT_ANSWERS, Task

Columns: TypeAlias = str | Mapping[str, str | Sequence[str]]


def answer_rows(
    components: Components,
    task: Task,
    questions: Questions,
    temperature: float,
    batch_size: int | None = None,
    num_workers: int | None = None,
    skip_bad_images: int = 0,
) -> list[Prediction]:
    """Answer questions that were checked, in order.

    Args:
        components: of the model.
        task: for the widest of the questions.
        questions: of a table.
        temperature: see `Task.predictions`.
        batch_size: questions in a forward pass; None: as in evaluation.
        num_workers: processes that read images; None: as in evaluation, or none if there are a few rows only or
            processes start slowly.
        skip_bad_images: how many images may be unreadable.

    Raises:
        InputError: images can't be read, or options are too long: all such rows are listed.
        NotFiniteError: the model's outputs aren't finite.
    """
    processor = components.processor
    dataset = IndexDataset(
        questions.rows, task.example, questions.image_root, partial(task.tensors, processor=processor)
    )
    noted = array("q")
    examples = noting_rows(map(dataset.example, range(len(dataset))), noted)
    texts = (text for example in examples for text in task.texts_to_measure(example))
    processor.measure(texts, components.config.model.vocab_size)  # for its error, which lists every row
    batch_size = batch_size or components.eval_batch_size
    loader = BatchLoader(
        dataset,
        partial(task.collate, processor=processor),
        batch_size,
        order=evaluation_order(noted),
        num_workers=_num_workers(components, len(dataset) <= 2 * batch_size) if num_workers is None else num_workers,
        pin_memory=components.config.data.pin_mem and components.precision.device.type == "cuda",
        bad_images=BadImages(skip_bad_images),
    )
    predict = partial(task.predictions, temperature=temperature)
    answered: list[Prediction] = []
    with progress_bar(total=len(dataset), desc="answering", unit="question", leave=False) as bar:
        batches = evaluate_batches(replace(components, task=task), loader.epoch(0), predict)
        try:
            for found in batches:
                answered += found
                bar.update(len(found))
        except ImageError as error:
            problems = _unreadable(dataset, questions.origins)
            if not problems:  # it can be read by now
                raise
            raise InputError.of_problems(f"{questions.where}: images that can't be read:", problems) from error
    return loader.in_input_order(answered)


def _num_workers(components: Components, few: bool) -> int:
    """Return the number of a loader's processes: none for a `few` rows, or if a process would import all anew.

    Such a process also runs the user's script once more, which fails unless the script guards its main part.
    """
    method = multiprocessing.get_start_method(allow_none=True)
    # Linux forks by default; since Python 3.14 it doesn't.
    forks = method == "fork" or (method is None and sys.platform == "linux" and sys.version_info < (3, 14))
    if few or not forks:
        return 0
    return components.config.num_workers(beside_model=components.precision.device.type == "cpu")


def _unreadable(dataset: IndexDataset, origins: Sequence[str]) -> list[str]:
    """Return a problem for each row whose image can't be decoded."""
    known: dict[str, str] = {}
    for number in range(len(dataset)):
        path = dataset.example(number).image_path
        if path not in known:
            try:
                open_image(path)
                known[path] = ""
            except ImageError as error:
                known[path] = str(error)
    paths = (dataset.example(number).image_path for number in range(len(dataset)))
    return [f"{origin}: {known[path]}" for origin, path in zip(origins, paths, strict=True) if known[path]]


def evaluate_rows(predictions: Sequence[Prediction], temperature: float) -> dict[str, object]:
    """Return the metrics of `--eval` for answers that are known, computed from the predictions alone."""
    metrics = full_metrics(predictions)
    return {**metrics} if temperature == 1.0 else {**metrics, "temperature": {"temperature": temperature}}


def answer_columns(predictions: Sequence[Prediction], task: Task, *, with_problems: bool) -> dict[str, list[object]]:
    """Return name -> values, a value for each prediction, as `Predictor.predict_frame` describes them."""
    columns: dict[str, list[object]] = {
        "answer": [p.answer for p in predictions],
        "probability": [p.probabilities[p.answer] for p in predictions],
    }
    if task.answers_are_options:
        width = max((len(p.choices) for p in predictions), default=task.num_classes)
        for letter in LETTERS[:width]:
            columns[f"p_{letter}"] = [p.probabilities.get(letter, float("nan")) for p in predictions]
    else:
        ranked = [list(p.probabilities.items()) for p in predictions]
        for place in range(1, min(KEPT_ANSWERS, task.num_classes)):
            columns[f"answer_{place + 1}"] = [one[place][0] for one in ranked]
            columns[f"probability_{place + 1}"] = [one[place][1] for one in ranked]
    if with_problems:
        columns["problem"] = [p.problem or "" for p in predictions]
    return columns
