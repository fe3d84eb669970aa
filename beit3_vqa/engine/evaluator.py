"""Evaluate a model on a split: from its first row to its metrics.

`evaluate_batches` is the loop over batches. `predict_split` runs it in every process and gathers the predictions.
`evaluate_split` is training's short validation; `evaluate_fully` is `--eval`, with `--tta`, `--blind`, `--temperature`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch

from beit3_vqa.data.choice_order import QUESTIONS, check_orders, rotations, split_mode, unpermute
from beit3_vqa.data.loader import BatchLoader
from beit3_vqa.data.types import Batch, EvalResult, Prediction
from beit3_vqa.engine.components import Components
from beit3_vqa.engine.logging import Progress
from beit3_vqa.errors import ImageError, InputError, NotFiniteError, plural
from beit3_vqa.metrics.calibration import HIGHEST, LOWEST, fit_temperature, mean_nll, tempered
from beit3_vqa.metrics.robustness import averaged, blind_metrics, order_metrics
from beit3_vqa.metrics.summary import metrics_table
from beit3_vqa.metrics.types import TemperatureFit
from beit3_vqa.models.int8 import round_linear_layers
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.distributed import local_size
from beit3_vqa.runtime.precision import in_float32, outputs_are_finite
from beit3_vqa.runtime.signals import Stopped
from beit3_vqa.tasks.base import not_finite

logger = logging.getLogger(__name__)

CHECKED = 32  # questions that are answered before and after rounding

T = TypeVar("T")


@contextmanager
def naming(checkpoint: str) -> Iterator[None]:
    """Name the checkpoint in the message of a NotFiniteError that comes out of the context."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(f"{checkpoint}: {error}") from None


@torch.no_grad()
def evaluate_batches(
    components: Components, batches: Iterable[Batch], predict: Callable[[Any, Batch], list[T]]
) -> Iterator[list[T]]:
    """Yield the predictions of each batch, one per example and in their order.

    Args:
        components: the model, which is put into evaluation mode and back at the end, its task and precision.
        batches: the split, in order.
        predict: (outputs as float32, batch) -> predictions.

    Raises:
        NotFiniteError: outputs aren't finite.
    """
    model, precision = components.model, components.precision
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            there = batch.to(precision.device)
            with precision.autocast():
                outputs = components.task.infer(model, there, components.processor)
            outputs = in_float32(outputs)
            if not outputs_are_finite(outputs):
                raise not_finite(batch)
            yield predict(outputs, batch)
    finally:
        model.train(was_training)


def finite(outputs: Any, checkpoint: str) -> Any:
    """Return a model's outputs as float32.

    Raises:
        NotFiniteError: they aren't finite; it names the checkpoint.
    """
    outputs = in_float32(outputs)
    if not outputs_are_finite(outputs):
        raise NotFiniteError(
            f"{checkpoint}: the model's outputs aren't finite numbers, so there is no answer. Its weights have grown "
            "too large, for fp16 or at all, or the file is damaged: take another checkpoint."
        )
    return outputs


def round_to_int8(components: Components) -> None:
    """Round the model, and say how many of the first answers of `--split` that changes."""
    task, processor = components.task, components.processor
    dataset = task.dataset(components.config.run.split, processor, training=False)
    samples = []
    for row in range(min(CHECKED, len(dataset)) if task.spec.per_example else 0):
        with suppress(ImageError):  # the loader reports it
            samples.append(dataset[(0, 0, row)])
    size = components.eval_batch_size
    batches = [
        Batch(task.collate([tensors for _, tensors in some], processor), tuple(example for example, _ in some))
        for some in (samples[begin : begin + size] for begin in range(0, len(samples), size))
    ]

    def answers() -> list[str]:
        told = evaluate_batches(components, batches, task.predictions)
        return [prediction.answer for batch in told for prediction in batch]

    before = answers()
    round_linear_layers(components.model)
    changed = sum(one != other for one, other in zip(before, answers(), strict=True))
    if before and distributed.is_main():
        logger.info(f"int8: rounding changes {changed} of the first {plural(len(before), 'answer')}")


Answers = list[list[Prediction]]  # predictions: for each question, one per order of its options


def evaluate_split(
    components: Components, loader: BatchLoader, label: str, stop: Callable[[], int] | None = None
) -> EvalResult:
    """Return the predictions and the short metrics of the validation split; see `predict_split` for the arguments."""
    return components.task.aggregate(predict_split(components, loader, label, stop), "val", components.processor)


def compare_sources(
    components: Components,
    metrics: Mapping[str, object],
    beside: Mapping[int, tuple[Components, BatchLoader]],
    label: str,
    split: str,
    stop: Callable[[], int] | None = None,
) -> dict[str, object]:
    """Evaluate a split of the other sources, print the score of each beside `task`'s, and return them.

    Args:
        components: of the source that was evaluated.
        metrics: of its split.
        beside: what `Components.loaders_beside` returned.
        label: for the progress display.
        split: name of the split.
        stop: see `predict_split`.

    Returns:
        `{"accuracy_by_source": {name: {"questions": ..., "accuracy": ...}}}`, named after the task's own metric, in
        the order of the sources; empty if there is no other.

    Raises:
        Stopped: a signal came.
        NotFiniteError: outputs aren't finite.
    """
    sources, metric = components.config.sources, components.task.spec.best_metric
    found = {sources.main: metrics}
    for number, (other, loader) in beside.items():
        predictions = predict_split(other, loader, f"{label} of {sources.names[number]}", stop)
        found[number] = other.task.aggregate(predictions, split, other.processor).metrics
    scored = {sources.names[number]: found[number] for number in sorted(found) if metric in found[number]}
    if not beside or not scored:
        return {}
    print(f"{split} {metric} by source: " + ", ".join(f"{name} {of[metric]:.2f}" for name, of in scored.items()))
    keys = ("questions", metric)
    return {f"{metric}_by_source": {name: {k: of[k] for k in keys if k in of} for name, of in scored.items()}}


def predict_split(
    components: Components,
    loader: BatchLoader,
    label: str,
    stop: Callable[[], int] | None = None,
    temperature: float = 1.0,
) -> list[Any]:
    """Return the task's prediction for each row of a split, in input order, the same in every process.

    Args:
        components: task, model and precision.
        loader: of the split; this process's part of each batch.
        label: for the progress display.
        stop: called after each batch; returns the number of a signal that came, or 0.
        temperature: see `Task.predictions`.

    Raises:
        Stopped: a signal came.
        NotFiniteError: outputs aren't finite.
    """
    rows, global_batch = loader.batches.rows, loader.batches.batch_size * distributed.world_size()
    own: list[list[object]] = []
    progress = Progress(label, rows, components.config.run.log_interval)
    predict = partial(components.task.predictions, temperature=temperature)
    for batch in evaluate_batches(components, loader.epoch(0), predict):
        in_batch = min(global_batch, rows - len(own) * global_batch)
        # If a short last batch has nothing for this process, the loader gives it one example that doesn't count.
        own.append(batch[: local_size(in_batch)])
        progress.update(in_batch, dict)
        number = stop() if stop else 0
        if number:
            raise Stopped(number)
    progress.close()
    # Each process has met other images; from here on all know the same bad ones.
    components.bad_images.sync_ranks()
    # Every process had a part of each batch, in order of rank: put the parts of a batch back together, batch by batch.
    by_batch = zip(*distributed.all_gather(own), strict=True)
    return loader.in_input_order([prediction for shares in by_batch for share in shares for prediction in share])


def evaluate_fully(components: Components, temperature: float | None) -> tuple[EvalResult, TemperatureFit | None]:
    """Evaluate `--split` with all metrics, in all ways of `--tta`, and once more without images if `--blind`.

    Args:
        components: task, model and precision.
        temperature: what logits are divided by before they become probabilities; None: fit the one under which the
            true answers are likeliest, and use it.

    Returns:
        The result; and how a fitted temperature was found: its value, the number of questions, and the mean negative
        log-likelihood of the true answers before and after (None if the temperature was given).

    Raises:
        InputError: options that don't fit the task or the data.
        NotFiniteError: outputs aren't finite.
    """
    run, task = components.config.run, components.task
    _check(components, fit=temperature is None)
    answers, rotated, wordings = _ask(components, temperature or 1.0, blind=False)
    fitted = None
    if temperature is None:
        # Fit on each question as it stands in the index: averaging changes how certain the answers are.
        fitted = _fit([group[0] for group in answers])
        temperature = fitted["temperature"]
        answers = [[tempered(answer, temperature) for answer in group] for group in answers]
    seeing = [averaged(group) for group in answers]
    blind = [averaged(group) for group in _ask(components, temperature, blind=True)[0]] if run.blind else []
    beside: dict[str, object] = {}
    if temperature != 1.0:
        beside["temperature"] = fitted or {"temperature": temperature}
    if run.tta != "none":
        beside["tta"] = order_metrics(answers, rotated, run.tta, wordings)
    if blind:
        beside["blind"] = blind_metrics(seeing, blind)
    result = task.aggregate(seeing, run.split, components.processor, full=True)
    if task.spec.per_example:
        print(metrics_table(result.metrics | beside))
    # Empty if no answer is known: then no metrics.json is written.
    metrics = result.metrics | beside if result.metrics else {}
    return replace(result, metrics=metrics, blind=tuple(blind)), fitted


def _check(components: Components, *, fit: bool) -> None:
    """Raise InputError if an option of the evaluation was given that has no meaning for the task."""
    mode, task = components.config.run.tta, components.task
    if components.config.run.blind and not task.spec.per_example:
        raise InputError(f"--blind makes no sense for {task.spec.name}: without images there is nothing to answer.")
    if components.config.run.temperature and not task.spec.takes_temperature:
        raise InputError(f"--temperature: has no effect on {task.spec.name}; leave it out.")
    of_options, in_wordings = split_mode(mode)
    if in_wordings and not (task.spec.per_example and task.spec.supports_questions):
        raise InputError(f"--tta {mode}: {task.spec.name} has no questions, so there is nothing to say in other words.")
    if not task.answers_are_options:
        for flag, given in ((f"--tta {mode}", of_options != "none"), ("--temperature fit", fit)):
            if given:
                raise InputError(f"{flag}: is for multiple choice; these questions are open-ended.")
    check_orders(task.num_classes, of_options)


def _ask(components: Components, temperature: float, *, blind: bool) -> tuple[Answers, list[int], list[int]]:
    """Return the predictions for each question in every way, how many of the first are rotations, and its wordings.

    The letters A, B, ... stand for the options as the index has them, in whatever order they were shown.
    """
    mode, split = components.config.run.tta, components.config.run.split
    label = f"evaluating {split}{', blind' if blind else ''}"
    if mode == "none" and not blind:
        predictions = predict_split(components, components.loader(split), label, temperature=temperature)
        return [[prediction] for prediction in predictions], [1] * len(predictions), [1] * len(predictions)
    loader, dataset = components.loader_in_orders(split, mode, blind=blind)
    told = iter(predict_split(components, loader, label, temperature=temperature))
    # The loader has asked each question in all of its ways, one after another.
    asked = [[unpermute(p, order) for p, order in zip(islice(told, len(o)), o, strict=True)] for o in dataset.orders]
    of_options, in_wordings = split_mode(mode)
    if in_wordings and max(dataset.wordings, default=1) == 1:
        logger.warning(f"--tta {QUESTIONS}: no question of {split} has a second wording")
    # A question that isn't asked in other orders has one.
    rotated = [rotations(group[0].choices) if of_options != "none" else 1 for group in asked]
    return asked, rotated, dataset.wordings


def _fit(plain: Sequence[Prediction]) -> TemperatureFit:
    temperature = fit_temperature(plain)
    if temperature is None:
        raise InputError("--temperature fit: no answer of the val split is known. Evaluate one with answers.")
    if temperature == HIGHEST:
        logger.warning(
            f"temperature {temperature:g} is the end of the search range: the model's certainty says nothing about "
            "whether it is right"
        )
    if temperature == LOWEST:
        logger.warning("the temperature stays 1: (nearly) all answers are right, so any lower value would look better")
        temperature = 1.0
    return {
        "temperature": temperature,
        "questions": sum(p.truth is not None for p in plain),
        "nll_before": mean_nll(plain),
        "nll_after": mean_nll(plain, temperature),
    }
