"""What CLIP makes of an example: pixels, and a text for each option."""

import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from beit3_vqa.data.images import ImageCache
from beit3_vqa.data.prompt import OptionTemplate, cut_question
from beit3_vqa.data.transforms import TrainTransform, resize_and_crop, speaks_of_sides
from beit3_vqa.data.types import Example
from beit3_vqa.errors import InputError
from beit3_vqa.models.base import TextLengths
from beit3_vqa.models.beit3.processor import chunks
from beit3_vqa.models.clip.hub import CLIPTexts

SPECIAL_TOKENS = 2  # <|startoftext|> and <|endoftext|>


class CLIPTransform:
    """Resize and central crop to a square of `size` pixels, pixel for pixel transformers' `CLIPImageProcessor`.

    Args:
        size: side S of the square.
        shortest_edge: to which the shorter side is resized before the crop; None: the whole image becomes the square,
            whatever its proportions.
    """

    def __init__(self, size: int, shortest_edge: int | None):
        self.size = size
        self.shortest_edge = shortest_edge

    def square(self, image: Image.Image) -> Image.Image:
        """Mode RGB in, an image of S x S out."""
        width, height, left, top = self._layout(image.width, image.height)
        return resize_and_crop(image, (width, height), (left, top, left + self.size, top + self.size))

    def _layout(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Width and height after the resize, left and top of the square in it."""
        if self.shortest_edge is None:
            return self.size, self.size, 0, 0
        short, long = sorted((width, height))
        longer = int(self.shortest_edge * long / short)
        resized = (self.shortest_edge, longer) if width <= height else (longer, self.shortest_edge)
        return *resized, (resized[0] - self.size) // 2, (resized[1] - self.size) // 2

    def region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The square in an image of that size: left, top, right, bottom as shares of its sides.

        A square that is larger than the resized image, whose rest is black, has its own sides outside [0, 1].
        """
        resized_width, resized_height, left, top = self._layout(width, height)
        right, bottom = left + self.size, top + self.size
        return left / resized_width, top / resized_height, right / resized_width, bottom / resized_height

    def __call__(self, image: Image.Image) -> Tensor:
        """Mode RGB in, uint8 (3, S, S) out."""
        return torch.from_numpy(np.array(self.square(image))).permute(2, 0, 1).contiguous()


class CLIPTrainTransform:
    """`CLIPTransform`, or a random crop where there is one; then the flip and RandAugment of `TrainTransform`."""

    def __init__(self, evaluate: CLIPTransform, augment: TrainTransform):
        self.evaluate = evaluate
        self.augment = augment

    def __call__(self, image: Image.Image, rng: random.Random, keep_left_right: bool = False) -> Tensor:
        """Mode RGB in, uint8 (3, S, S) out; see `TrainTransform`."""
        if self.augment.scale[0] >= 1:  # nothing is cropped at random: the square that evaluation sees
            image = self.evaluate.square(image)
        return self.augment(image, rng, keep_left_right)


class CLIPOptionsProcessor:
    """Example -> image as uint8 (3, S, S) and the token ids of each option; a batch -> the model's keyword arguments.

    Args:
        texts: CLIP's tokenizer.
        max_tokens: longest text with its special tokens; a longer one is cut in the question, never in the option.
        template: text of an option.
        evaluate: pixels in evaluation.
        train: pixels in training.
        fast_decode: decode large JPEGs at a fraction of their size, at least twice the resolution.
    """

    def __init__(
        self,
        texts: CLIPTexts,
        max_tokens: int,
        template: OptionTemplate,
        evaluate: CLIPTransform,
        train: CLIPTrainTransform,
        fast_decode: bool = False,
    ):
        self.texts = texts
        self.max_tokens = max_tokens
        self.template = template
        self.evaluate = evaluate
        self.train = train
        # After the end token nothing counts; an id that can't be taken for it.
        self.pad_id = 0 if texts.eos_id else 1
        self.grey = Image.new("RGB", (evaluate.size, evaluate.size), (128, 128, 128))  # stands for what can't be read
        self.images = ImageCache(at_least=2 * evaluate.size if fast_decode else None)

    def __call__(self, example: Example, rng: random.Random | None = None) -> dict[str, Any]:
        """`image` and `texts` of an example; with an `rng`, the image is augmented.

        Raises:
            InputError: an image that can't be read, or an option that alone is longer than `max_tokens`.
        """
        image = self.grey if example.problem else self.images.open(example.image_path)
        if rng is None:
            pixels = self.evaluate(image)
        else:
            sides_matter = speaks_of_sides((example.question, *example.choices))
            pixels = self.train(image, rng, keep_left_right=sides_matter)
        return {"image": pixels, "texts": self.token_ids(example)}

    def token_ids(self, example: Example) -> list[tuple[int, ...]]:
        """Ids of each option's text between `<|startoftext|>` and `<|endoftext|>`, at most `max_tokens` of them."""
        room = self.max_tokens - SPECIAL_TOKENS
        found = []
        encoded = self.texts.encode_batch([self.template(example.question, choice) for choice in example.choices])
        for choice, ids in zip(example.choices, encoded, strict=True):
            if len(ids) > room:
                ids = self._cut(example.question, choice, room)
            found.append((self.texts.bos_id, *ids, self.texts.eos_id))
        return found

    def _cut(self, question: str, choice: str, room: int) -> list[int]:
        ids = cut_question(question, lambda cut: self.texts.encode_batch([self.template(cut, choice)])[0], room)
        if ids is None:
            raise InputError(self._length_problem(choice))
        return ids

    def _length_problem(self, choice: str) -> str:
        """What to say of an option that alone is too long; empty for any other."""
        need = len(self.texts.encode_batch([self.template("", choice)])[0]) + SPECIAL_TOKENS
        if need <= self.max_tokens:
            return ""
        return f"the option {choice[:40]!r} alone takes {need} tokens, more than the {self.max_tokens} the model reads."

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """B examples -> `image` (I, 3, S, S), `image_of` (B,), `text` (T, L), `text_of` (B, C), each content once."""
        images: dict[bytes, int] = {}
        image_of = [images.setdefault(item["image"].numpy().tobytes(), len(images)) for item in items]
        first = {place: item["image"] for place, item in reversed(list(zip(image_of, items, strict=True)))}
        texts: dict[tuple[int, ...], int] = {}
        text_of = [[texts.setdefault(ids, len(texts)) for ids in item["texts"]] for item in items]
        longest = max(map(len, texts))
        return {
            "image": torch.stack([first[place] for place in range(len(images))]),
            "image_of": torch.tensor(image_of),
            "text": torch.tensor([[*ids, *[self.pad_id] * (longest - len(ids))] for ids in texts]),
            "text_of": torch.tensor(text_of),
        }

    def region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The square that is left of an image of that size."""
        return self.evaluate.region(width, height)

    def measure(self, examples: Iterable[Example], vocab_size: int) -> TextLengths:
        """Lengths of the options' texts.

        Raises:
            InputError: rows without text, or with an option that alone is too long; all named.
        """
        counted: list[int] = []
        untold: list[str] = []
        too_long: list[str] = []
        for chunk in chunks(examples):
            untold += [f"row {example.id}" for example in chunk if example.token_ids is not None]
            pairs = [(example, choice) for example in chunk for choice in example.choices]
            encoded = self.texts.encode_batch([self.template(example.question, choice) for example, choice in pairs])
            for (example, choice), ids in zip(pairs, encoded, strict=True):
                counted.append(len(ids) + SPECIAL_TOKENS)
                problem = self._length_problem(choice) if counted[-1] > self.max_tokens else ""
                too_long += [f"row {example.id}: {problem}"] if problem else []
        if untold:
            raise InputError.of_problems("rows that hold BEiT-3's token ids, where CLIP needs the text:", untold)
        if too_long:
            raise InputError.of_problems("options that are longer than the model can read:", too_long)
        shown = [min(length, self.max_tokens) for length in counted]
        cut = sum(length > self.max_tokens for length in counted)
        return TextLengths(max(shown, default=0), sum(shown) / max(1, len(shown)), cut)
