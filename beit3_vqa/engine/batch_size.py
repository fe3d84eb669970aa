"""Choose how many examples a forward pass and an optimizer step have.

That is for `--batch_size auto`, `--eval_batch_size auto` and `--effective_batch_size`.

`auto` tries batches of 1, 2 and 4 examples, draws a straight line through the memory that they took, and takes the
largest batch that fits by that line.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from beit3_vqa.config.options import AUTO, BATCH_SIZE
from beit3_vqa.data.dataset import IndexDataset
from beit3_vqa.data.mixture import JoinedDataset
from beit3_vqa.data.types import Batch, Example, Tensors
from beit3_vqa.engine.components import Components, StepSize
from beit3_vqa.engine.evaluator import evaluate_batches
from beit3_vqa.errors import ImageError, InputError
from beit3_vqa.runtime import distributed, memory
from beit3_vqa.runtime.memory import NotEnoughMemory
from beit3_vqa.runtime.precision import in_float32

logger = logging.getLogger(__name__)

Sample = tuple[Example, Tensors]
Rows = Callable[[], IndexDataset | JoinedDataset]  # a function, since opening an index may take a while

SHARE = 0.85  # of the free memory may be used; the rest is for what varies between batches, and for other programs
DRY_RUN_SHARE = 0.95  # the same if the user chose the batch size
TRIED = (1, 2, 4)  # examples; the first includes what is allocated once, the others show what one more takes
LOOKED_AT = 2000  # rows among which the longest texts are looked for
MOMENTS = 2  # AdamW keeps two, each as large as the weights that are trained


def with_batch_size(components: Components) -> Components:
    """Return the components with their `step_size` settled, and print what was chosen.

    Memory decides only how many forward passes a step takes: the step is a mean over as many examples as were asked
    for, whatever fits.

    Raises:
        InputError: the effective batch isn't a multiple of the batch, or not one example fits into memory; in a dry
            run, also if the batch that the user chose doesn't fit.
    """
    rows = components.training_rows
    components = replace(components, step_size=_step_size(components, rows))
    components = _with_eval_batch_size(components, rows)
    if components.config.optim.batch_size != AUTO and components.config.run.dry_run:
        _require_fitting(components, rows)
    return components


def with_eval_batch_size(components: Components) -> Components:
    """Return the components of `--eval` with the batch size of their evaluation settled.

    Raises:
        InputError: not one example fits into memory.
    """
    task, split = components.task, components.config.run.split
    return _with_eval_batch_size(components, lambda: task.dataset(split, components.processor, training=False))


def _with_eval_batch_size(components: Components, rows: Rows) -> Components:
    if components.config.optim.eval_batch_size != AUTO:
        return components
    fitting = _fitting(components, rows, BATCH_SIZE, "--eval_batch_size", gradients=False)
    logger.info(f"--eval_batch_size auto: batches of {fitting}")
    return replace(components, step_size=replace(components.step_size, eval_batch_size=fitting))


def _step_size(components: Components, rows: Rows) -> StepSize:
    options = components.config.optim
    per_process = _examples_per_process(components)
    if options.batch_size != AUTO:
        if options.effective_batch_size is None:
            return components.step_size
        if per_process % options.batch_size:
            raise InputError(
                f"--effective_batch_size {options.effective_batch_size}: {per_process} examples in each process can't "
                f"be made of batches of {options.batch_size}; choose a divisor for --batch_size, or write auto."
            )
        return replace(components.step_size, update_freq=per_process // options.batch_size)
    if components.task.spec.in_batch_negatives:
        raise InputError(
            f"--batch_size auto: the loss of {components.task.spec.name} compares the rows of a forward pass with each "
            "other, so it depends on the batch size; choose it yourself."
        )
    fitting = _fitting(components, rows, per_process, "--batch_size", gradients=True)
    # The largest divisor that fits, so that every step has equal forward passes.
    batch_size = next(size for size in range(fitting, 0, -1) if per_process % size == 0)
    logger.info(f"--batch_size auto: {fitting} fit; batches of {batch_size}, {per_process // batch_size} a step")
    return replace(components.step_size, batch_size=batch_size, update_freq=per_process // batch_size)


def _fitting(components: Components, rows: Rows, most: int, flag: str, *, gradients: bool) -> int:
    """Return the largest number of examples, up to `most`, that fits in every process; InputError if none does."""
    device = components.precision.device
    if not memory.can_measure(device):
        raise InputError(f"{flag} auto: memory can't be measured on {device}; give a number.")
    # All processes take equal batches, so the one with the least memory decides.
    fitting = min(distributed.all_gather(_largest_that_fits(components, rows, most, gradients=gradients)))
    if not fitting:
        less = "--checkpoint_activations, --precision bf16, or" if gradients else "--precision bf16, or"
        raise InputError(f"{flag} auto: not one example fits into memory. Try {less} a smaller model.")
    return fitting


def _examples_per_process(components: Components) -> int:
    options, processes = components.config.optim, distributed.world_size()
    wanted = options.effective_batch_size
    if wanted is None:
        return (BATCH_SIZE if options.batch_size == AUTO else options.batch_size) * options.update_freq
    if "update_freq" in components.config.typed_flags:  # config.json has both: there it is what was found
        raise InputError("--effective_batch_size and --update_freq set the same thing; give one of them.")
    if wanted % processes:
        raise InputError(f"--effective_batch_size {wanted}: can't be shared evenly by {processes} processes.")
    return wanted // processes


def _largest_that_fits(components: Components, rows: Rows, most: int, *, gradients: bool) -> int:
    """Return the largest number of examples, up to `most`, whose pass fits; 0 if none does.

    On a GPU the number that the line gives is tried too: if it doesn't fit, that is an error to catch. On a CPU trying
    it could end the process.
    """
    with _tried(components, rows, most, SHARE, gradients=gradients) as tried:
        fitting, largest = tried.fitting(most), max(tried.peaks, default=0)
        on_gpu = components.precision.device.type == "cuda"
        while on_gpu and fitting > largest and tried.try_out(fitting) > tried.room:
            fitting = max(largest, int(fitting * 0.9))
        return fitting


def _require_fitting(components: Components, rows: Rows) -> None:
    """Raise InputError if a step of the batch that the user chose would take more memory than there is.

    Without this, a system that runs out of memory kills the process without a message, and perhaps another one too.
    """
    count, device = components.step_size.batch_size, components.precision.device
    if distributed.world_size() > 1 or not memory.can_measure(device):
        return
    with _tried(components, rows, count, DRY_RUN_SHARE, gradients=True) as tried:
        fitting = tried.fitting(count)
        if device.type == "cuda" and fitting == count and tried.try_out(count) > tried.room:
            fitting = count - 1
    if fitting < count:
        raise InputError(
            f"--dry_run: batches of {count} would take about {(tried.peak(count) + tried.later) / 2**30:,.1f} GiB of "
            f"memory, of which {max(0, tried.room + tried.later) / 2**30:,.1f} GiB can be taken. "
            f"{f'Batches of {fitting} fit' if fitting else 'Not one example fits'}. Try --batch_size auto, "
            "--checkpoint_activations, --precision bf16, or a smaller model."
        )


@dataclass
class _Tried:
    """The memory that a few examples took, and the memory that there is, in bytes.

    Attributes:
        try_out: computes so many examples, and returns the memory at the most; inf: no room.
        room: memory for a pass, weights and gradients included.
        later: memory that optimizer and moving average will take beside it.
        start: memory of weights and gradients alone.
        peaks: number of examples -> memory at the most.
        limit: largest number of examples that may fit; with more, memory ran out.
    """

    try_out: Callable[[int], float]
    room: float
    later: float
    start: float
    peaks: dict[int, float]
    limit: float = math.inf

    def peak(self, count: int) -> float:
        """Return the memory that `count` examples take, by a straight line through the two largest batches tried."""
        most, peak, slope = self._line()
        return peak + (count - most) * slope

    def fitting(self, most: int) -> int:
        """Return the largest number of examples, up to `most`, that fits by that line."""
        count, peak, slope = self._line()
        return int(max(0, min(most, self.limit, count + (self.room - peak) / slope)))

    def _line(self) -> tuple[int, float, float]:
        points = [(0, self.start), *sorted(self.peaks.items())][-2:]
        (less, before), (more, after) = points[0], points[-1]
        # At least a byte an example: `fitting` divides by it.
        return more, after, max(1.0, (after - before) / max(1, more - less))


@contextmanager
def _tried(components: Components, rows: Rows, most: int, share: float, *, gradients: bool) -> Iterator[_Tried]:
    """Try batches of a few examples and yield what they took; at the end of the context gradients are freed.

    Args:
        components: whose model is moved to its device.
        rows: of which batches are made.
        most: examples in a batch.
        share: of the free memory that may be used.
        gradients: whether a pass is one of training, forward and backward.
    """
    device, options = components.precision.device, components.config
    components.model.to(device)
    try_out = partial(_peak, components, _longest(rows(), most), gradients=gradients)
    trained = sum(p.numel() * p.element_size() for p in components.model.parameters() if p.requires_grad)
    in_use = memory.in_use(device)
    # The moments and the moving average come after the pass that is tried. Its gradients are part of its peak, unless
    # it is an evaluation between steps of training, which keep theirs.
    kept = 0 if options.run.eval else MOMENTS + int(options.optim.model_ema) + int(not gradients)
    start = in_use + (trained if gradients else 0)
    tried = _Tried(try_out, share * (memory.free(device) + in_use) - trained * kept, trained * kept, start, {})
    try:
        for count in (n for n in TRIED if n <= most):
            if device.type != "cuda" and tried.peak(count) > tried.room:  # trying it could end the process
                break
            peak = try_out(count)
            if peak == math.inf:
                tried.limit = max(tried.peaks, default=0)
                break
            tried.peaks[count] = peak
        yield tried
    finally:
        components.model.zero_grad(set_to_none=True)


def _longest(dataset: IndexDataset | JoinedDataset, count: int) -> list[Sample]:
    """Return up to `count` rows as the processor makes them: those with the longest texts, each of another image.

    They mustn't be copies of one row, since a family may compute what is the same only once.

    Raises:
        InputError: none of their images can be read.
    """
    places = range(0, len(dataset), -(-len(dataset) // LOOKED_AT))
    length = {place: dataset.example(place).text_length for place in places}
    samples: list[Sample] = []
    images: set[str] = set()
    for place in sorted(places, key=length.__getitem__, reverse=True):
        image = dataset.example(place).image_path
        if image in images:
            continue
        images.add(image)
        with suppress(ImageError):  # the loader reports it, if the row's turn comes
            samples.append(dataset[(0, 0, place)])
        if len(samples) == count:
            break
    if not samples:
        raise InputError("none of the images that were tried for the batch size can be read.")
    return samples


def _peak(components: Components, samples: list[Sample], count: int, *, gradients: bool) -> float:
    """Return the largest memory in use, in bytes, while `count` examples are computed; inf: no room."""
    # From the first row again, if fewer than `count` are known.
    examples, tensors = zip(*itertools.islice(itertools.cycle(samples), count), strict=True)
    if gradients:
        # In training each row is augmented by itself, so that none is another's image.
        tensors = tuple({n: v.clone() if isinstance(v, Tensor) else v for n, v in item.items()} for item in tensors)
    task = components.task
    batch = Batch(task.collate(tensors, components.processor), examples, num_valid=count)
    if gradients:
        batch = task.attach_targets(batch, tensors)

    def evaluate() -> None:
        list(evaluate_batches(components, [batch], lambda _outputs, _batch: []))

    def step() -> None:
        on_device = batch.to(components.precision.device)
        with components.precision.autocast():
            outputs = components.model(**on_device.inputs)
        torch.autograd.backward(components.precision.scaler.scale(task.loss(in_float32(outputs), on_device)))

    components.model.train()
    try:
        return memory.measure_peak(step if gradients else evaluate, components.precision.device)
    except NotEnoughMemory:
        return math.inf
    finally:
        torch.cuda.empty_cache()
