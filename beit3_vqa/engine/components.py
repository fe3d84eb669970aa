"""What a run is made of, and the batches of each of its splits."""

import logging
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from beit3_vqa.config.config import RunConfig
from beit3_vqa.data.bad_images import BadImages
from beit3_vqa.data.choice_order import split_mode
from beit3_vqa.data.dataset import IndexDataset, PermutedChoices, reworded
from beit3_vqa.data.fingerprint import Fingerprint, FingerprintMaker
from beit3_vqa.data.hard_examples import split_by_score
from beit3_vqa.data.index import image_paths, path_key
from beit3_vqa.data.loader import BatchLoader, evaluation_order, noting_rows
from beit3_vqa.data.mixture import Group, JoinedDataset, count_draws
from beit3_vqa.data.types import Example
from beit3_vqa.errors import ImageError, InputError, one_line
from beit3_vqa.models.base import Family, Processor, TrainableModel
from beit3_vqa.runtime.files import is_file
from beit3_vqa.runtime.precision import Precision
from beit3_vqa.tasks.base import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepSize:
    """How many examples an optimizer step and an evaluation pass have.

    Attributes:
        batch_size: examples in a forward pass of each process.
        update_freq: forward passes per optimizer step.
        eval_batch_size: examples in a forward pass of evaluation; None: 1.5 times `batch_size`.
    """

    batch_size: int
    update_freq: int
    eval_batch_size: int | None = None


@dataclass
class Components:
    """What a run is made of.

    Attributes:
        config: the settled options.
        task: what is learned, on the data of the run.
        family: the family of models, set up for the options.
        processor: makes the model's inputs of images and texts.
        model: a module with the methods that `Family.build` lists; the weights are loaded after `build`.
        precision: device, autocast and gradient scaling.
        step_size: as the options ask for it; with `auto`, what `engine.batch_size` found.
        bad_images: the images that couldn't be read so far, and how many may be skipped.
        fingerprints: of the rows of each split that `loader` has been called for.
        sources: the task on each source of the data, in order; `task` is the one that validates.
    """

    config: RunConfig
    task: Task
    family: Family
    processor: Processor
    model: TrainableModel
    precision: Precision
    step_size: StepSize
    bad_images: BadImages = field(default_factory=BadImages)
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)
    sources: tuple[Task, ...] = ()

    @property
    def found(self) -> dict[str, int]:
        """Return the options whose values were found out (flat): files keep them instead of what was asked for."""
        return asdict(self.step_size)

    def loader(self, split: str) -> BatchLoader:
        """Return the batches of a split, keep its fingerprint, and print its size and the lengths of its texts.

        Raises:
            InputError: the split doesn't exist, can't be used, or too many of its images are missing.
        """
        return self._fingerprinted(self.task.dataset(split, self.processor, training=False), split, split)

    def training_loader(self) -> BatchLoader:
        """Return the training batches of all sources, in training's order and proportions; else as `loader`."""
        dataset = self.training_rows()
        groups = _groups(self.config, dataset.parts if isinstance(dataset, JoinedDataset) else [dataset])
        return self._fingerprinted(dataset, "train", "train", training=True, groups=groups)

    def training_rows(self) -> IndexDataset | JoinedDataset:
        """Return the training rows of all sources that are trained on."""
        tasks = [self.sources[number] for number in self.config.sources.trained] or [self.task]
        parts = [task.dataset("train", self.processor, training=True) for task in tasks]
        return JoinedDataset(parts) if len(parts) > 1 else parts[0]

    def count_shared_images(self) -> int:
        """Return how many images of `val` another source trains on."""
        others = [self.sources[n] for n in self.config.sources.trained if self.sources[n] is not self.task]
        trained = set[str]().union(*(_image_files(task, "train") for task in others))
        return len(trained & _image_files(self.task, "val")) if trained else 0

    def loaders_beside(self, split: str) -> "dict[int, tuple[Components, BatchLoader]]":
        """Return the batches of a split of all sources but `task`'s, by number, with the components to evaluate them.

        A source without the split is left out.
        """
        beside = {}
        for number, task in enumerate(self.sources):
            if task is not self.task and split in task.folder.splits():
                components = replace(self, task=task)
                dataset = task.dataset(split, self.processor, training=False)
                label = f"{split} of {self.config.sources.names[number]}"
                # `val` is the split that chooses the best epoch; `val 2` in a checkpoint is the second source's.
                beside[number] = components, components._fingerprinted(dataset, f"{split} {number + 1}", label)
        return beside

    def _fingerprinted(
        self,
        dataset: IndexDataset | JoinedDataset,
        name: str,
        label: str,
        *,
        training: bool = False,
        groups: tuple[Group, ...] = (),
    ) -> BatchLoader:
        maker = FingerprintMaker()
        loader = self._loader(dataset, label, training, maker, groups)
        self.fingerprints[name] = maker.done()
        return loader

    def loader_in_orders(self, split: str, mode: str, *, blind: bool = False) -> tuple[BatchLoader, PermutedChoices]:
        """Return the batches of a split with each question asked in several ways, and their dataset.

        Args:
            split: name of the split.
            mode: which orders of its options and which wordings, as `--tta` names them.
            blind: show a grey image instead of each image.
        """
        dataset = PermutedChoices(self.task.dataset(split, self.processor, training=False), mode, blind=blind)
        of_options, in_wordings = split_mode(mode)
        label = split + (", blind" if blind else "") + (", options in other orders too" if of_options != "none" else "")
        label += ", questions in other words too" if in_wordings else ""
        return self._loader(dataset, label, training=False), dataset

    def _loader(
        self,
        dataset: IndexDataset | PermutedChoices | JoinedDataset,
        label: str,
        training: bool,
        maker: FingerprintMaker | None = None,
        groups: tuple[Group, ...] = (),
    ) -> BatchLoader:
        config, data = self.config, self.config.data
        # One pass over the examples checks that the images are there, takes the fingerprint and measures the texts.
        examples = _with_images(dataset, self.bad_images)
        examples = maker.watch(examples) if maker else examples
        noted = array("q")
        if not training:
            examples = noting_rows(examples, noted)
        else:
            # In every wording, since each that training may draw must fit the model.
            examples = (reworded(one, number) for one in examples for number in range(1 + len(one.wordings)))
        texts = self._texts(examples)
        logger.info(f"{label}: {len(dataset)} {self.task.spec.unit}{texts}")
        weights = None
        if training and data.balance_answers > 0 and not isinstance(dataset, PermutedChoices):
            weights = dataset.balancing_weights(data.balance_answers, data.balance_within)
        return BatchLoader(
            dataset,
            # Not a lambda, which a loader's process that doesn't fork couldn't be sent.
            partial(self.task.collate, processor=self.processor),
            self.step_size.batch_size if training else self.eval_batch_size,
            shuffle=training,
            seed=config.run.seed,
            weights=weights,
            groups=groups,
            order=None if training else evaluation_order(noted),
            attach_targets=self.task.attach_targets if training else None,
            num_workers=config.num_workers(beside_model=self.precision.device.type == "cpu"),
            # Only copies to a GPU gain from page-locked memory.
            pin_memory=config.data.pin_mem and self.precision.device.type == "cuda",
            bad_images=self.bad_images,
        )

    @property
    def eval_batch_size(self) -> int:
        """Return how many examples a forward pass of evaluation has."""
        return self.step_size.eval_batch_size or max(1, int(self.step_size.batch_size * 1.5))

    def _texts(self, examples: Iterator[Example]) -> str:
        """Return a message on the lengths of a split's texts; empty if it has none. Use up `examples` in any case."""
        texts = (text for example in examples for text in self.task.texts_to_measure(example))
        if not self.task.spec.inputs.text:
            deque(texts, maxlen=0)  # the checks of images and rows happen as the examples go by
            return ""
        lengths = self.processor.measure(texts, self.config.model.vocab_size)
        if not lengths.longest:
            return ""
        cut = f", {lengths.cut} cut in the question" if lengths.cut else ""
        return f", texts of up to {lengths.longest} tokens, mean {lengths.mean:.1f}{cut}"


def _image_files(task: Task, split: str) -> set[str]:
    """Return the images of a split as absolute paths."""
    root = task.folder.image_root().resolve()
    return {f"{root}/{path_key(path)}" for row in task.folder.rows(split) for path in image_paths(row)}


def _groups(config: RunConfig, parts: Sequence[IndexDataset]) -> tuple[Group, ...]:
    """Return how many rows an epoch draws of each of the sources that are trained on, whose rows are the `parts`.

    With `--hard_examples` a source is divided into rows that were answered wrong and right. It is empty if each row
    of all sources comes once.

    Raises:
        InputError: an epoch would be too long, or the predictions of `--hard_examples` don't fit.
    """
    sources, hard = config.sources, config.data.hard_examples
    if not (sources.shares or hard):
        return ()
    numbers, sizes = sources.trained, list(map(len, parts))
    draws = sizes
    if len(parts) > 1 and sources.shares:
        draws = count_draws(sizes, [sources.shares[number] for number in numbers], numbers.index(sources.once))
    # `JoinedDataset` numbers the rows of its parts through.
    rows = torch.split(torch.arange(sum(sizes)), sizes)
    groups = tuple(map(Group, [sources.names[number] for number in numbers], rows, draws))
    return split_by_score(Path(hard), groups, parts, config.data.hard_ratio) if hard else groups


def _with_images(dataset: IndexDataset | PermutedChoices | JoinedDataset, bad_images: BadImages) -> Iterator[Example]:
    """Yield the examples of a split, and at the end count the images that aren't there as bad ones.

    So a wrong `--image_root` is an error before training, not hours into it.

    Raises:
        InputError: at the end, if more images are missing than may be skipped; it lists them.
    """
    row_of: dict[str, str] = {}
    for index in range(len(dataset)):
        example = dataset.example(index)
        for path in example.image_paths:
            row_of.setdefault(path, example.id)
        yield example
    absent = {path: row for path, row in row_of.items() if path not in bad_images and not is_file(path)}
    if len(absent) > bad_images.left:
        problems = sorted(f"row {row}: {path}" for path, row in absent.items())
        raise InputError.of_problems("images that aren't there:", problems, "Is --image_root right?")
    for path, row in absent.items():
        bad_images.add(ImageError(f"row {one_line(row)}: image {path!r} doesn't exist", path))
