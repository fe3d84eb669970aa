"""`--batch_size auto` and `--effective_batch_size`: how many examples a forward pass and a step have."""

import itertools
import math
from contextlib import suppress
from typing import Any

import torch

from beit3_vqa.assemble import Parts
from beit3_vqa.data.dataset import IndexDataset
from beit3_vqa.engine import distributed, memory
from beit3_vqa.engine.memory import NotEnoughMemory
from beit3_vqa.engine.precision import in_float32
from beit3_vqa.errors import ImageError, InputError
from beit3_vqa.options import AUTO, BATCH_SIZE
from beit3_vqa.schema import Batch, Example

Sample = tuple[Example, dict[str, Any]]

SHARE = 0.85  # of the memory that is free; the rest is for what varies from batch to batch, and for others
TRIED = (1, 2, 4)  # examples: the first pays for what is done once, the others tell what one more costs
LOOKED_AT = 2000  # rows among which the longest text is looked for
MOMENTS = 2  # of AdamW, each as large as the weights that are trained


def with_batch_size(parts: Parts) -> Parts:
    """The parts of a run with `batch_size` and `update_freq` settled, and what was chosen said.

    The step is what was asked for, whatever fits into memory: a mean over the same examples, in more forward passes.

    Raises:
        InputError: an effective batch that can't be made of such batches, or memory for not one example.
    """
    options = parts.config.optim
    per_process = _examples_per_process(parts)
    if options.batch_size != AUTO:
        if options.effective_batch_size is None:
            return parts
        if per_process % options.batch_size:
            raise InputError(
                f"--effective_batch_size {options.effective_batch_size}: {per_process} examples in each process can't "
                f"be made of batches of {options.batch_size}; choose a divisor for --batch_size, or write auto."
            )
        return _settled(parts, options.batch_size, per_process)
    if parts.task.compares_rows:
        raise InputError(
            f"--batch_size auto: the loss of {parts.task.name} compares the rows of a forward pass with each other, so "
            "their number is part of the recipe; give it."
        )
    device = parts.precision.device
    if not memory.can_measure(device):
        raise InputError(f"--batch_size auto: memory can't be measured on {device}; give a number.")
    fitting = min(distributed.gathered(_largest_that_fits(parts, per_process)))
    if not fitting:
        raise InputError(
            "--batch_size auto: not one example fits into memory. Try --checkpoint_activations, --precision bf16, or "
            "a smaller model."
        )
    batch_size = next(size for size in range(fitting, 0, -1) if per_process % size == 0)
    print(f"--batch_size auto: {fitting} fit; batches of {batch_size}, {per_process // batch_size} a step")
    return _settled(parts, batch_size, per_process)


def _examples_per_process(parts: Parts) -> int:
    options, processes = parts.config.optim, distributed.size()
    wanted = options.effective_batch_size
    if wanted is None:
        return (options.batch_size or BATCH_SIZE) * options.update_freq
    if "update_freq" in parts.config.given:
        raise InputError("--effective_batch_size and --update_freq say the same in two ways; leave one out.")
    if wanted % processes:
        raise InputError(f"--effective_batch_size {wanted}: can't be shared evenly by {processes} processes.")
    return wanted // processes


def _settled(parts: Parts, batch_size: int, per_process: int) -> Parts:
    parts.config = parts.config.updated({"batch_size": batch_size, "update_freq": per_process // batch_size})
    return parts


def _largest_that_fits(parts: Parts, most: int) -> int:
    """The number of examples, `most` at most, whose forward and backward pass fits; 0: not even one does.

    A few examples are tried, the peak is a straight line through what they took. On a GPU the number that this gives is
    tried too, since there a step that doesn't fit can be taken back; on a CPU it would end the process.
    """
    device = parts.precision.device
    parts.model.to(device)
    samples = _longest(parts.task.dataset("train", parts.processor, training=True), most)
    try:
        peaks: dict[int, float] = {}
        for count in (n for n in TRIED if n <= most):
            peak = _peak(parts, samples, count)
            if peak == math.inf:
                return max(peaks, default=0)
            peaks[count] = peak
        slope = max(1.0, _slope(peaks))
        trained = sum(p.numel() * p.element_size() for p in parts.model.parameters() if p.requires_grad)
        # The gradients were there for the peaks; what comes later is the optimizer's, and a moving average.
        later = trained * (MOMENTS + int(parts.config.optim.model_ema))
        room = SHARE * (memory.free(device) + memory.in_use(device)) - later
        largest = max(peaks)
        fitting = min(most, int(largest + (room - peaks[largest]) / slope))
        while device.type == "cuda" and fitting > largest and _peak(parts, samples, fitting) > room:
            fitting = max(largest, int(fitting * 0.9))
        return max(0, fitting)
    finally:
        parts.model.zero_grad(set_to_none=True)


def _longest(dataset: IndexDataset, count: int) -> list[Sample]:
    """So many rows, as the processor made them: those with the longest texts of many, of an image each where it can be.

    A family may compute what is the same only once, so they mustn't be copies of one.
    """
    places = range(0, len(dataset), -(-len(dataset) // LOOKED_AT))
    length = {place: _length(dataset.example(place)) for place in places}
    samples: list[Sample] = []
    images: set[str] = set()
    for place in sorted(places, key=length.__getitem__, reverse=True):
        image = dataset.example(place).image_path
        if image in images:
            continue
        images.add(image)
        with suppress(ImageError):  # the loader will name it
            samples.append(dataset[(0, 0, place)])
        if len(samples) == count:
            break
    if not samples:
        raise InputError("--batch_size auto: none of the training images that were tried can be read.")
    return samples


def _length(example: Example) -> int:
    return len(example.question) + len(example.token_ids or ()) + sum(map(len, example.choices))


def _peak(parts: Parts, samples: list[Sample], count: int) -> float:
    """Bytes at the most while `count` examples go forward and backward; infinity where they don't fit."""
    examples, tensors = zip(*itertools.islice(itertools.cycle(samples), count), strict=True)
    batch = Batch(parts.task.collate(tensors, parts.processor), examples, counted=count)
    batch = parts.task.finish(batch, tensors)

    def step() -> None:
        on_device = batch.to(parts.precision.device)
        with parts.precision.autocast():
            outputs = parts.model(**on_device.inputs)
        parts.precision.scaler.scale(parts.task.loss(in_float32(outputs), on_device)).backward()

    parts.model.train()
    try:
        return memory.peak_of(step, parts.precision.device)
    except NotEnoughMemory:
        return math.inf
    finally:
        torch.cuda.empty_cache()


def _slope(peaks: dict[int, float]) -> float:
    """Bytes for one more example: between the two largest batches tried, since the first pays for other things too."""
    if len(peaks) == 1:
        return next(iter(peaks.values()))
    (less, before), (more, after) = sorted(peaks.items())[-2:]
    return (after - before) / (more - less)
