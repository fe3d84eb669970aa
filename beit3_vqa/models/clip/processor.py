"""From an example to CLIP's inputs: pixels, and a text for each option.

Shapes: B examples with C options each, I distinct images, T distinct texts of at most L tokens, S the image's side in
pixels.
"""

import random
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from beit3_vqa.data.images import ImageCache
from beit3_vqa.data.prompt import OptionTemplate, cut_question
from beit3_vqa.data.transforms import TrainTransform, resize_and_crop, speaks_of_sides
from beit3_vqa.data.types import Example, Tensors
from beit3_vqa.errors import InputError
from beit3_vqa.models.base import TextLengths, chunks
from beit3_vqa.models.clip.hub import CLIPTexts

SPECIAL_TOKENS = 2  # <|startoftext|> and <|endoftext|>


class CLIPTransform:
    """Resize and central crop to a square of `size` pixels, pixel for pixel transformers' processor by Pillow.

    It is called `CLIPImageProcessor` in transformers 4, `CLIPImageProcessorPil` in 5, where the old name stands for one
    by torchvision, whose resize rounds otherwise.

    Args:
        size: side S of the square.
        shortest_edge: pixels that the shorter side is resized to before the crop; None: the whole image becomes the
            square, whatever its proportions.
    """

    def __init__(self, size: int, shortest_edge: int | None):
        self.size = size
        self.shortest_edge = shortest_edge

    def square(self, image: Image.Image) -> Image.Image:
        """Resize and crop an image in mode RGB to S x S."""
        width, height, left, top = self._layout(image.width, image.height)
        return resize_and_crop(image, (width, height), (left, top, left + self.size, top + self.size))

    def _layout(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return width and height after the resize, then left and top of the square in it, all in pixels."""
        if self.shortest_edge is None:
            return self.size, self.size, 0, 0
        short, long = sorted((width, height))
        # transformers rounds down, here and at the crop.
        longer = int(self.shortest_edge * long / short)
        resized = (self.shortest_edge, longer) if width <= height else (longer, self.shortest_edge)
        return *resized, (resized[0] - self.size) // 2, (resized[1] - self.size) // 2

    def region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the square's place in an image of that size: left, top, right, bottom as shares of its sides.

        A square larger than the resized image is black around it, and its sides lie outside [0, 1].
        """
        resized_width, resized_height, left, top = self._layout(width, height)
        right, bottom = left + self.size, top + self.size
        return left / resized_width, top / resized_height, right / resized_width, bottom / resized_height

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn an image in mode RGB into uint8 (3, S, S)."""
        # (S, S, 3), as Pillow has it, to (3, S, S).
        return torch.from_numpy(np.array(self.square(image))).permute(2, 0, 1).contiguous()


class CLIPTrainTransform:
    """A random crop, or `CLIPTransform` if none is asked for; then the flip and RandAugment of `TrainTransform`."""

    def __init__(self, evaluate: CLIPTransform, augment: TrainTransform):
        self.evaluate = evaluate
        self.augment = augment

    def __call__(self, image: Image.Image, rng: random.Random, keep_left_right: bool = False) -> Tensor:
        """Turn an image in mode RGB into uint8 (3, S, S); see `TrainTransform`."""
        if self.augment.scale[0] >= 1:  # nothing is cropped at random: the square that evaluation sees
            image = self.evaluate.square(image)
        return self.augment(image, rng, keep_left_right)


class CLIPOptionsProcessor:
    """Example -> image as uint8 (3, S, S) and the token ids of each option; a batch -> the model's keyword arguments.

    Args:
        texts: CLIP's tokenizer.
        max_tokens: longest text with its special tokens; a longer one is cut in the question, never in the option.
        template: text of an option.
        evaluate: image pipeline of evaluation.
        train: image pipeline of training.
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
        # Any id will do, since nothing after the end token counts, but not the end token's.
        self.pad_id = 0 if texts.eos_id else 1
        self.grey = Image.new("RGB", (evaluate.size, evaluate.size), (128, 128, 128))  # stands for what can't be read
        self._grey_pixels = evaluate(self.grey)
        self.images = ImageCache(at_least=2 * evaluate.size if fast_decode else None)

    def __call__(self, example: Example, rng: random.Random | None = None) -> Tensors:
        """Return `image` and `texts` of an example; with an `rng`, augment the image.

        Raises:
            InputError: an image that can't be read, or an option that alone is longer than `max_tokens`.
        """
        path = example.image_path
        if rng is None:
            pixels = self._grey_pixels if example.problem else self.images.transformed(path, self.evaluate)
        else:
            image = self.grey if example.problem else self.images.open(path)
            sides_matter = speaks_of_sides(example.texts)
            pixels = self.train(image, rng, keep_left_right=sides_matter)
        return {"image": pixels, "texts": self.token_ids(example)}

    def token_ids(self, example: Example) -> list[tuple[int, ...]]:
        """Return the ids of each option's text between `<|startoftext|>` and `<|endoftext|>`, at most `max_tokens`.

        Raises:
            InputError: an option that alone is longer.
        """
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
        """Return the message for an option that alone is too long; empty for any other."""
        need = len(self.texts.encode_batch([self.template("", choice)])[0]) + SPECIAL_TOKENS
        if need <= self.max_tokens:
            return ""
        return f"the option {choice[:40]!r} alone takes {need} tokens, more than the {self.max_tokens} the model reads."

    def collate(self, items: Sequence[Tensors]) -> dict[str, Tensor]:
        """Stack items to `image` (I, 3, S, S), `image_of` (B,), `text` (T, L), `text_of` (B, C), each content once."""
        # By their pixels, not by their paths: two augmentations of one image are two images.
        images: dict[bytes, int] = {}
        image_of = [images.setdefault(item["image"].numpy().tobytes(), len(images)) for item in items]
        first = {place: item["image"] for place, item in reversed(list(zip(image_of, items, strict=True)))}
        texts: dict[tuple[int, ...], int] = {}
        text_of = [[texts.setdefault(ids, len(texts)) for ids in item["texts"]] for item in items]
        widest = max(map(len, text_of))
        longest = max(map(len, texts))
        return {
            "image": torch.stack([first[place] for place in range(len(images))]),
            "image_of": torch.tensor(image_of),
            "text": torch.tensor([[*ids, *[self.pad_id] * (longest - len(ids))] for ids in texts]),
            # A question with fewer options gets its first one in their place; the task leaves those out.
            "text_of": torch.tensor([[*row, *row[:1] * (widest - len(row))] for row in text_of]),
        }

    def region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the square that evaluation cuts from an image of that size, as shares of its sides."""
        return self.evaluate.region(width, height)

    def measure(self, examples: Iterable[Example], vocab_size: int) -> TextLengths:
        """Count the tokens of the options' texts, as the model will read them.

        Raises:
            InputError: rows without text, or with an option that alone is too long; all are listed.
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
        return TextLengths.of(counted, self.max_tokens)
