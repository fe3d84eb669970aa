"""Describe a run before it starts, and try a few of its steps: sizes, tokens, memory, time."""

import itertools
import time

import torch

from beit3_vqa.data.mixture import JoinedDataset
from beit3_vqa.engine.checkpoint.save import InsideEpoch
from beit3_vqa.engine.evaluator import evaluate_batches
from beit3_vqa.engine.logging import format_seconds, peak_memory
from beit3_vqa.engine.loop import StepReport, train_epoch
from beit3_vqa.engine.training import Training
from beit3_vqa.errors import plural
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.spinning import spinning_in_words

TIMED_STEPS = 2  # the first pays for warming up; the second is the one that is timed


def describe(run: Training) -> None:
    """Print the model, the size of the training, the device and the attention kernel."""
    components, config = run.components, run.components.config
    parameters = sum(p.numel() for p in components.model.parameters())
    trainable = sum(p.numel() for p in components.model.parameters() if p.requires_grad)
    step_size = components.step_size
    kernel = components.model.attention_kernel(
        components.precision.device, components.precision.dtype, step_size.batch_size, components.processor.max_tokens
    )
    global_batch = step_size.batch_size * step_size.update_freq * distributed.world_size()
    spread = (
        f" in {distributed.world_size()} processes ({config.compute.strategy})" if distributed.world_size() > 1 else ""
    )
    counts = f"{parameters:,} parameters, {trainable:,} trained"
    classes = f", {plural(components.task.num_classes, 'answer')}" if components.task.num_classes else ""
    print(f"model: {config.model.model}, {counts}{classes}")
    where = f"{components.precision.device} in {components.precision.name}{spread}"
    print(
        f"training: {run.examples} {components.task.spec.unit}, "
        f"{plural(run.steps_per_epoch, 'step')} of {global_batch} an "
        f"epoch, {plural(config.optim.epochs, 'epoch')}, on {where}, attention: {kernel}"
    )
    if len(config.sources.folders) > 1:
        print(f"an epoch: {_sources_in_words(run)}")
    if components.precision.device.type == "cpu":
        print(f"threads: {torch.get_num_threads()}; idle ones spin: {spinning_in_words()}")


def _sources_in_words(run: Training) -> str:
    """Return how many examples of each source an epoch has, of how many."""
    sources, unit, dataset = run.components.config.sources, run.components.task.spec.unit, run.train.dataset
    sizes = list(map(len, dataset.parts)) if isinstance(dataset, JoinedDataset) else [len(dataset)]
    names = [sources.names[number] for number in sources.trained]
    size_of = dict(zip(names, sizes, strict=True))
    groups = run.train.batches.groups
    draws_of = {name: sum(group.draws for group in groups if group.name == name) for name in names}
    told = [
        (folder, (draws_of if groups else size_of).get(name, 0), size_of.get(name, 0))
        for folder, name in zip(sources.folders, sources.names, strict=True)
    ]
    return ", ".join(f"{n:,} of {size:,} {unit} of {folder}" if n else f"none of {folder}" for folder, n, size in told)


def dry_run(run: Training) -> None:
    """Run two training and two evaluation steps, and print their time and memory; write nothing."""
    components = run.components
    times = [time.monotonic()]
    examples = 0

    def after_step(report: StepReport) -> None:
        nonlocal examples
        loss = report.loss.item()  # waits for the device, so that the step is over
        times.append(time.monotonic())
        examples = report.examples
        print(f"step {report.step}: loss {loss:.4f}, {times[-1] - times[-2]:.2f} s")

    inside = run.state.inside
    if inside.examples >= run.examples:  # it was stopped after the last step of its epoch, in validation
        inside = InsideEpoch()
    first_batches = itertools.islice(run.train.epoch(0, inside.examples), TIMED_STEPS * run.update_freq)
    train_epoch(run, first_batches, run.schedule, after_step, first_example=inside.examples, first_step=inside.steps)
    # The last step's: in the first one AdamW also makes its moments.
    step_seconds = times[-1] - times[-2]

    loader = run.val or run.train
    started = time.monotonic()
    # From the middle, since the longest texts come first. Inside the measured time, as in a validation.
    group = loader.batches.batch_size * distributed.world_size()
    first = max(0, (loader.batches.rows - TIMED_STEPS * group) // 2)
    batches = list(itertools.islice(loader.epoch(0, first), TIMED_STEPS))
    task = components.task
    for predictions in evaluate_batches(components, batches, task.predictions):
        print(f"evaluated {len(predictions)} {task.spec.unit}, {time.monotonic() - started:.2f} s")
    per_question = (time.monotonic() - started) / max(1, sum(len(batch) for batch in batches))
    tokens = max(components.model.tokens(batch.inputs) for batch in batches)
    validation_seconds = per_question * run.validation_rows
    epoch_seconds = step_seconds * run.steps_per_epoch + validation_seconds * run.work.validations
    print(f"tokens per example: {tokens} at most (image and text) in these batches")
    print(f"memory: {peak_memory(components.precision.device)} at most, with batches of {examples}")
    print(
        f"an epoch with validation takes about {format_seconds(epoch_seconds)}, {components.config.optim.epochs} of "
        f"them {format_seconds(epoch_seconds * components.config.optim.epochs)}"
    )
    if (budget := run.state.time) is not None:
        budget.kept.step, budget.kept.validation = step_seconds, validation_seconds
        last = budget.plan(run.step, run.work)
        print(
            f"--max_hours {budget.hours:g} goes as far as about {last / run.steps_per_epoch:.1f} of "
            f"{plural(components.config.optim.epochs, 'epoch')} (step {last} of {run.work.total})"
        )
