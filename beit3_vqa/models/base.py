"""What a family of models (BEiT-3, CLIP) supplies to a run."""

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from beit3_vqa.config.config import RunConfig
from beit3_vqa.data.images import ImageCache
from beit3_vqa.data.transforms import TrainTransform
from beit3_vqa.data.types import AttentionMap, Example, Inputs, Tensors
from beit3_vqa.errors import InputError
from beit3_vqa.models.attention_maps import LAST_LAYERS
from beit3_vqa.runtime.precision import Precision

CHUNK = 4096  # examples whose texts are tokenized at once, so that a split of any size takes little memory


@dataclass(frozen=True)
class TextLengths:
    """Lengths of a split's texts in tokens, special ones included.

    Attributes:
        longest: of the texts as the model reads them, after cutting.
        mean: the same.
        cut: number of texts that were too long.
    """

    longest: int
    mean: float
    cut: int

    @classmethod
    def of(cls, lengths: Sequence[int], most: int) -> "TextLengths":
        """Sum up texts of these lengths before cutting, of which a model reads `most` tokens."""
        read = [min(length, most) for length in lengths]
        return cls(max(read, default=0), sum(read) / max(1, len(read)), sum(length > most for length in lengths))


@dataclass(frozen=True)
class TaskShape:
    """What a model must know of its task.

    Attributes:
        name: the task's, as of `--task`.
        num_classes: number of the model's outputs; 0 for a head that has no such number.
        answers_are_options: whether each output stands for an option of a multiple-choice question.
        head: kind of head, which is the last part of a model's full name; empty: the task's name.
        inputs: names of the model's inputs.
        option_by_option: whether a text shows one option of a question, not all.
    """

    name: str
    num_classes: int
    answers_are_options: bool
    head: str = ""
    inputs: Inputs = field(default_factory=Inputs)
    option_by_option: bool = False


class Processor(Protocol):
    """A family's way from examples to the inputs of its models: its own pixels and tokens."""

    max_tokens: int
    images: ImageCache

    def __call__(self, example: Example, rng: random.Random | None = None) -> Tensors:
        """Return tensors and lists of one example; with an `rng`, augment as in training.

        Raises:
            InputError: an image that can't be read, or a text that can't be cut to fit.
        """

    def collate(self, items: Sequence[Tensors]) -> dict[str, Tensor]:
        """Return the model's keyword arguments for B examples."""

    def measure(self, examples: Iterable[Example], vocab_size: int) -> TextLengths:
        """Count the tokens of many examples, as the model will read them.

        Raises:
            InputError: rows whose text the model can't read; all are listed.
        """

    def region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of an image that evaluation shows: left, top, right, bottom as shares of its sides."""


class TrainableModel(nn.Module):
    """A model of any family: `forward(**inputs) -> outputs`, and what the optimizer and the reports ask of it.

    Its `state_dict()` is what a checkpoint keeps, and `load_state_dict` takes just that.
    """

    #: why its parameters can't be sharded over processes (FSDP); empty if they can
    unshardable = ""

    def get_num_layers(self) -> int:
        """Return N, the number of layers that layer-wise learning-rate decay counts."""
        raise NotImplementedError

    def layers(self) -> list[tuple[nn.Module, str]]:
        """Return every layer with the name of the method by which it is called: FSDP shards one after the other."""
        raise NotImplementedError

    def layer_id(self, name: str) -> int:
        """Return a parameter's depth for layer-wise decay: 0 embeddings, 1..N layers, N + 1 what follows."""
        raise NotImplementedError

    def is_head(self, name: str) -> bool:
        """Return whether `--task_head_lr_weight` applies to a parameter."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters of two or more dimensions that weight decay leaves alone."""
        raise NotImplementedError

    def tokens(self, inputs: dict[str, Tensor]) -> int:
        """Return how many tokens, of image and text, an example of this batch has."""
        raise NotImplementedError

    def attention_kernel(self, device: torch.device, dtype: torch.dtype, examples: int, text_tokens: int) -> str:
        """Return the name of the attention kernel that a batch of this size gets."""
        raise NotImplementedError


M = TypeVar("M", bound=TrainableModel)
P = TypeVar("P", bound=Processor)


class BaseFamily(ABC, Generic[M, P]):
    """A family of models of class M with processors of class P, set up for the options of one run.

    Args:
        config: the run's options; `--model` names a model of this family.
        task: what the task asks of the model.

    Raises:
        InputError: no such model, or options that contradict it.
    """

    #: options without effect on this family; a run says so if one isn't at its default
    unused: frozenset[str] = frozenset()
    #: kind of device -> what `--precision auto` means there, if it isn't the hardware's best
    auto_precision: Mapping[str, str] = {}
    #: whether a question may have another number of options than the questions of training
    any_number_of_options: bool = False
    #: whether its library has a format of its own, which `export` writes instead of ours
    exports: bool = False
    #: libraries that its models need beside those that every model needs
    packages: tuple[str, ...] = ()

    def __init__(self, config: RunConfig, task: TaskShape):
        self.config = config
        self.task = task

    @property
    @abstractmethod
    def img_size(self) -> int:
        """Return the side of the square image in pixels, from the model's name."""

    def train_transform(self) -> TrainTransform:
        """Return the crop, flip and RandAugment that the run's options ask for."""
        options = self.config.data
        return TrainTransform(
            self.img_size,
            scale=(options.crop_scale, 1.0),
            interpolation=options.train_interpolation,
            flip=options.flip,
            randaug=options.randaug,
        )

    @abstractmethod
    def processor(self, checkpoint_folder: Path | None) -> P:
        """Build tokenizer, prompt and image pipelines.

        Args:
            checkpoint_folder: folder of the checkpoint in use; a tokenizer there is the one it was trained with.
        """

    @abstractmethod
    def build(self, precision: Precision) -> M:
        """Build the model on the CPU, with fresh weights or the pretrained ones that it can't be built without."""

    @abstractmethod
    def skeleton(self) -> M:
        """Build the same model on torch's meta device: names and shapes, but no memory for weights."""

    def count_parameters(self) -> int:
        """Count the numbers of the model, everything that is loaded for it, without allocating one of them."""
        return sum(parameter.numel() for parameter in self.skeleton().parameters())

    @abstractmethod
    def initialise(self, model: M, processor: P, content: dict[str, object] | None) -> list[str]:
        """Fill the model with what training starts from if no run is resumed; return names of weights not in `content`.

        Args:
            model: from `build`.
            processor: from `processor`.
            content: of the `--finetune` checkpoint; None: fresh weights.

        Raises:
            InputError: weights that don't fit.
        """

    @abstractmethod
    def load_pretrained(self, model: M, weights: dict[str, Tensor], where: str) -> list[str]:
        """Copy another run's weights into the model, adapt what the family can adapt, and print what was done.

        Args:
            model: from `build`.
            weights: state dict of the other run.
            where: the file's name, for messages.

        Returns:
            Names that the weights lack and that keep their fresh values.

        Raises:
            InputError: weights that don't fit.
        """

    @abstractmethod
    def attention(
        self,
        model: M,
        processor: P,
        inputs: dict[str, Tensor],
        sizes: Sequence[tuple[int, int]],
        last_layers: int = LAST_LAYERS,
    ) -> tuple[Tensor, list[AttentionMap]]:
        """Run one forward pass and also return where the model looked.

        Call it in evaluation mode, without gradients, under the run's autocast, with a model that isn't compiled. A
        single question is `inputs = processor.collate([processor(example)])`, moved to the model's device, and
        `sizes = [image_size(example.image_path)]` (`data.images`).

        Args:
            model: from `build`, its weights loaded.
            processor: the one that made the inputs.
            inputs: the model's keyword arguments for B examples.
            sizes: (width, height) in pixels of each example's upright image.
            last_layers: how many layers, from the last, are averaged; all heads are.

        Returns:
            The model's logits (B, classes), the same as without maps; and a map for each example, on the CPU.
        """

    @abstractmethod
    def fingerprints(self, model: M, processor: P) -> dict[str, str]:
        """Return checksums of what a checkpoint depends on but doesn't hold, by their names in the checkpoint."""

    def check_fingerprints(self, content: dict[str, object], model: M, processor: P) -> list[str]:
        """Return a message for each checksum in a checkpoint that differs from this run's.

        Upstream's checkpoints hold no checksums, so nothing is said of them.
        """
        ours = self.fingerprints(model, processor)
        return [self.foreign(name, processor) for name, value in ours.items() if content.get(name, value) != value]

    @abstractmethod
    def foreign(self, name: str, processor: P) -> str:
        """Return the message for a checkpoint whose checksum `name` differs from this run's."""

    def save_assets(self, processor: P, folder: Path) -> None:
        """Copy files beside the checkpoints that these need to be used elsewhere."""

    def base_files(self) -> list[Path]:
        """Return the files of `--pretrained`, without which a checkpoint can't be loaded; empty if it takes none."""
        return []

    def export(self, model: M, processor: P, folder: Path, *, merge: bool) -> None:
        """Write the trained model in the format of the family's library, if it `exports`."""
        raise NotImplementedError

    def export_graphs(self, model: M, processor: P, folder: Path, formats: Sequence[str]) -> dict[str, object]:
        """Write the model as graphs that run without this package, and return how their inputs are made.

        Args:
            model: from `build`, its weights loaded, in float32 on the CPU.
            processor: the one that makes its inputs.
            folder: for the files.
            formats: `onnx`, `pt2`, or both.

        Raises:
            InputError: a family or a head that can't be exported, or a package that isn't installed.
        """
        raise InputError(f"--format {' '.join(formats)}: only BEiT-3 for questions about one image has graphs.")


def chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Yield the examples in lists of at most `CHUNK`."""
    iterator = iter(examples)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        yield chunk


Family = BaseFamily[TrainableModel, Processor]  # a family, whatever its models and processors
