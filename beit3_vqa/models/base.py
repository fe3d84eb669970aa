"""What a family of models (BEiT-3, CLIP) supplies to a run."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from beit3_vqa.config.config import RunConfig
from beit3_vqa.data.transforms import TrainTransform
from beit3_vqa.data.types import AttentionMap, Example, Inputs
from beit3_vqa.models.attention_maps import LAST_LAYERS
from beit3_vqa.runtime.precision import Precision


@dataclass(frozen=True)
class TextLengths:
    """Lengths of the texts of a split, in tokens with the special ones: the longest, the mean, how many were cut."""

    longest: int
    mean: float
    cut: int


@dataclass(frozen=True)
class TaskShape:
    """What a model must know of its task.

    Attributes:
        name: of the task.
        num_classes: the model's outputs; 0 for a head that has no such number.
        answers_are_options: whether each output stands for an option of a multiple-choice question.
        head: the kind of head, as models' names end with it; empty: the task's name.
        inputs: of the model.
    """

    name: str
    num_classes: int
    answers_are_options: bool
    head: str = ""
    inputs: Inputs = field(default_factory=Inputs)


class Processor(Protocol):
    """What a family makes of an example: its own pixels and tokens."""

    max_tokens: int

    def __call__(self, example: Example, rng: random.Random | None = None) -> dict[str, Any]:
        """Tensors and lists of one example; with an `rng`, as in training. InputError where it can't be read."""

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """The model's keyword arguments for B examples."""

    def measure(self, examples: Iterable[Example], vocab_size: int) -> TextLengths:
        """Text lengths as they reach the model; InputError that lists the rows that can't."""

    def region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of an image that evaluation shows the model: left, top, right, bottom as shares of its sides."""


class Family(ABC):
    """A family, set up for the options of one run.

    Args:
        config: the run's options, whose `--model` is of this family.
        task: the outputs that are wanted.

    Raises:
        InputError: no such model, or options that contradict it.
    """

    #: options without effect on this family; a run says so where one isn't at its default
    unused: frozenset[str] = frozenset()
    #: kind of device -> what `--precision auto` means there, where it isn't the hardware's best
    auto_precision: Mapping[str, str] = {}
    #: whether a question may have other numbers of options than those that were trained on
    any_number_of_options: bool = False
    #: whether its library has a format of its own, which `export` writes
    exports: bool = False

    def __init__(self, config: RunConfig, task: TaskShape):
        self.config = config
        self.task = task

    @property
    @abstractmethod
    def img_size(self) -> int:
        """Side of the square image in pixels, which the model's name says."""

    def train_transform(self) -> TrainTransform:
        """The crop, flip and RandAugment that the run's options ask for."""
        options = self.config.data
        return TrainTransform(
            self.img_size,
            scale=(options.crop_scale, 1.0),
            interpolation=options.train_interpolation,
            flip=options.flip,
            randaug=options.randaug,
        )

    @abstractmethod
    def processor(self, checkpoint_folder: Path | None) -> Processor:
        """Tokenizer, prompt and image pipelines; the tokenizer beside the checkpoint, if there is one, is right."""

    @abstractmethod
    def build(self, precision: Precision) -> Any:
        """The model, on the CPU, with fresh weights or those it is built around.

        Beside `forward(**inputs) -> outputs` it has what the optimizer and the reports ask:
        `get_num_layers`, `layer_id`, `is_head`, `no_weight_decay`, `tokens` and `attention_kernel`. Its `state_dict()`
        is what a checkpoint keeps, and `load_state_dict` takes just that.
        """

    @abstractmethod
    def skeleton(self) -> Any:
        """Make what `build` does on torch's meta device: names and shapes, without memory for one number."""

    def count_parameters(self) -> int:
        """Count the numbers of the model, everything that is loaded for it, without allocating one of them."""
        return sum(parameter.numel() for parameter in self.skeleton().parameters())

    @abstractmethod
    def initialise(self, model: Any, processor: Any, content: dict[str, Any] | None) -> list[str]:
        """Fill the model with what training starts from if no run is resumed; return names of weights not in `content`.

        Args:
            model: what `build` made.
            processor: what makes its inputs.
            content: of the checkpoint of `--finetune`; None: fresh weights.

        Raises:
            InputError: weights that don't fit.
        """

    @abstractmethod
    def load_pretrained(self, model: Any, weights: dict[str, Tensor], where: str) -> list[str]:
        """Copies another run's weights, mended where the family knows how, and says what was done.

        Returns:
            the names that the weights lack and that stay fresh.

        Raises:
            InputError: weights that don't fit.
        """

    @abstractmethod
    def attention(
        self,
        model: Any,
        processor: Any,
        inputs: dict[str, Tensor],
        sizes: Sequence[tuple[int, int]],
        last_layers: int = LAST_LAYERS,
    ) -> tuple[Tensor, list[AttentionMap]]:
        """One forward pass that also says where the model looked.

        Call it in evaluation mode, without gradients, under the run's autocast, with a model that isn't compiled. A
        single question is `inputs = processor.collate([processor(example)])`, moved to the model's device, and
        `sizes = [image_size(example.image_path)]` (`data.images`).

        Args:
            model: what `build` made, its weights loaded.
            processor: what made the inputs.
            inputs: the model's keyword arguments for B examples.
            sizes: (width, height) in pixels of each example's upright image.
            last_layers: how many layers, from the last, are averaged; all heads are.

        Returns:
            the model's logits (B, classes), the same as without; and a map for each example, on the CPU.
        """

    @abstractmethod
    def fingerprints(self, model: Any, processor: Any) -> dict[str, str]:
        """Of what a checkpoint rests on but doesn't hold, by the names that its entries have."""

    def check_fingerprints(self, content: dict[str, Any], model: Any, processor: Any) -> list[str]:
        """What to say of each thing that a checkpoint rests on and the run has another of; upstream's don't say."""
        ours = self.fingerprints(model, processor)
        return [self.foreign(name, processor) for name, value in ours.items() if content.get(name, value) != value]

    @abstractmethod
    def foreign(self, name: str, processor: Any) -> str:
        """What to say where the checkpoint's checksum `name` isn't this run's."""

    def save_assets(self, processor: Any, folder: Path) -> None:  # noqa: B027 - most families keep nothing
        """Puts files beside the checkpoints without which they can't be used elsewhere."""

    def export(self, model: Any, processor: Any, folder: Path, *, merge: bool) -> None:
        """Writes the trained model in the format of the family's library, if it `exports`."""
        raise NotImplementedError
