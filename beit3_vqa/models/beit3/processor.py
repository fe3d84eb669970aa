"""From an example to BEiT-3's inputs: pixels of its images and one text, or either alone.

Shapes: B examples, T tokens of the longest text, S side of the image in pixels.
"""

import random
from collections.abc import Callable, Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor

from beit3_vqa.config.options import OPTION_PROMPT_TEMPLATE
from beit3_vqa.data.images import ImageCache
from beit3_vqa.data.prompt import ONE_OPTION, SPECIAL_TOKENS, OptionTemplate, PromptTemplate, cut_question
from beit3_vqa.data.tokenizer import Tokenizer, pad_batch
from beit3_vqa.data.transforms import EvalTransform, TrainTransform, speaks_of_sides
from beit3_vqa.data.types import Example, Inputs, Tensors
from beit3_vqa.errors import InputError
from beit3_vqa.models.base import TextLengths, chunks


class BEiT3Processor:
    """Example -> images as uint8 (3, S, S) and token ids; a batch of them -> the model's keyword arguments.

    Args:
        tokenizer: turns the text into ids; None if there is no text.
        max_tokens: longest text, `<s>` and `</s>` included; a longer one is cut in the question, never in the options.
        prompt: text of a multiple-choice question, or of one of its options; an open-ended one is its question alone.
        evaluate: image pipeline of evaluation.
        train: image pipeline of training; None for a processor that only evaluates.
        fast_decode: decode large JPEGs at a fraction of their size (see `open_image`), still twice the resolution.
        length_step: texts of a batch are padded to a multiple of it, so that a compiled model meets few shapes.
        inputs: names of the model's inputs; an empty `text`: no text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        max_tokens: int,
        prompt: PromptTemplate | OptionTemplate,
        evaluate: EvalTransform,
        train: TrainTransform | None = None,
        fast_decode: bool = False,
        length_step: int = 1,
        inputs: Inputs | None = None,
    ):
        self.tokenizer = tokenizer
        self.inputs = inputs or Inputs()
        self.max_tokens = max_tokens
        self.prompt = prompt
        self.evaluate = evaluate
        self.train = train
        self.length_step = length_step
        self.grey = Image.new("RGB", (evaluate.size, evaluate.size), (128, 128, 128))  # stands for what can't be read
        self._grey_pixels = evaluate(self.grey)
        self.images = ImageCache(at_least=2 * evaluate.size if fast_decode else None)

    def __call__(self, example: Example, rng: random.Random | None = None) -> Tensors:
        """Return images and text of an example, by the names of `inputs`; with an `rng`, augment the images.

        Raises:
            InputError: an image that can't be read, or options that alone are longer than `max_tokens`.
        """
        paths = zip(self.inputs.images, example.image_paths, strict=True)
        item: Tensors = {name: self.pixels(example, path, rng) for name, path in paths}
        return {**item, self.inputs.text: self.token_ids(example)} if self.inputs.text else item

    @property
    def size(self) -> int:
        """Return the side of the square image in pixels."""
        return self.evaluate.size

    def open(self, example: Example, path: str) -> Image.Image:
        """Open an image of an example in mode RGB; return a grey one if the example has a problem.

        Raises:
            ImageError: it can't be read; the error knows which image it was.
        """
        return self.grey if example.problem else self.images.open(path)

    def pixels(self, example: Example, path: str, rng: random.Random | None) -> Tensor:
        """Return an image of an example, or a grey one if the example has a problem, as uint8 (3, S, S).

        With an `rng` it is augmented, but not mirrored if the example's text speaks of sides. Without, the image of
        several examples in a row is the same tensor.

        Raises:
            ImageError: as `open`.
        """
        if rng is None or self.train is None:
            return self._grey_pixels if example.problem else self.images.transformed(path, self.evaluate)
        # Upstream's index holds ids alone; left and right are looked for in words.
        decoded = [self._tokenizer.decode(example.token_ids)] if example.token_ids else []
        sides_matter = speaks_of_sides((*example.texts, *decoded))
        return self.train(self.open(example, path), rng, keep_left_right=sides_matter)

    def collate(self, items: Sequence[Tensors]) -> dict[str, Tensor]:
        """Stack B items to images (B, 3, S, S), text (B, T) and `padding_mask` (B, T), 1 at padding.

        If the model takes `image_of`, an image of several items comes once, see `stacked`. Other entries of the items
        are left out.
        """
        if self.inputs.shared:
            batch = self.stacked([item["image"] for item in items])
        else:
            batch = {name: torch.stack([item[name] for item in items]) for name in self.inputs.images}
        return {**batch, **self.padded([item[self.inputs.text] for item in items])} if self.inputs.text else batch

    def stacked(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return `image` (I, 3, S, S) and which of them each of B is, `image_of` (B,), which is left out if all differ.

        Args:
            images: (3, S, S) for each of B examples; the same image is the same tensor, as `pixels` returns it.
        """
        distinct = {id(image): image for image in images}
        # Texts have a `length_step` for a compiled model. It would be compiled anew for each new number of images.
        if len(distinct) == len(images) or self.length_step > 1:
            return {"image": torch.stack(list(images))}
        places = {key: place for place, key in enumerate(distinct)}
        image_of = torch.tensor([places[id(image)] for image in images])
        return {"image": torch.stack(list(distinct.values())), "image_of": image_of}

    def padded(self, texts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Pad the token ids of B texts to the model's text (B, T) and `padding_mask` (B, T), 1 at padding."""
        ids, padding_mask = pad_batch(texts, self._tokenizer.pad_id, self.length_step)
        return {self.inputs.text: ids, "padding_mask": padding_mask}

    @property
    def _tokenizer(self) -> Tokenizer:
        assert self.tokenizer is not None
        return self.tokenizer

    def region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the whole image: it is resized to a square, whatever its proportions."""
        return 0.0, 0.0, 1.0, 1.0

    def text(self, example: Example, question: str | None = None) -> str:
        """Return the text that the model reads for an example, with another question if one is given."""
        asked = example.question if question is None else question
        if not example.choices:
            return asked
        assert isinstance(self.prompt, PromptTemplate), "texts of one option are made by their task"
        return self.prompt(asked, example.choices)

    def token_ids(self, example: Example) -> list[int]:
        """Return the ids of `<s> text </s>`, at most `max_tokens` of them.

        Raises:
            InputError: the options alone are longer.
        """
        room = self.max_tokens - SPECIAL_TOKENS
        if example.token_ids is not None:
            # Ids don't tell the question from its options, so they are cut at the end, as upstream does.
            ids = list(example.token_ids[:room])
        else:
            ids = self._tokenizer.encode(self.text(example))
            if len(ids) > room:
                ids = self._cut_question(example, room)
        return [self._tokenizer.bos_id, *ids, self._tokenizer.eos_id]

    def fitted(self, question: str, text: Callable[[str], str]) -> list[int]:
        """Return the ids of `<s> text(question) </s>`, at most `max_tokens`; a question that is too long loses its end.

        Raises:
            InputError: the text is too long even with an empty question.
        """
        room = self.max_tokens - SPECIAL_TOKENS
        ids: list[int] | None = self._tokenizer.encode(text(question))
        if ids is not None and len(ids) > room:
            ids = cut_question(question, lambda cut: self._tokenizer.encode(text(cut)), room)
        if ids is None:
            raise InputError(
                f"an option takes more than the {self.max_tokens} tokens that the model reads, even without its "
                "question: shorten it."
            )
        return [self._tokenizer.bos_id, *ids, self._tokenizer.eos_id]

    def _cut_question(self, example: Example, room: int) -> list[int]:
        ids = cut_question(example.question, lambda cut: self._tokenizer.encode(self.text(example, cut)), room)
        if ids is None:
            raise InputError(
                f"the options are too long, shorten them: they alone take {self._needed(example)} tokens, more than "
                f"the {self.max_tokens} the model reads."
            )
        return ids

    def _needed(self, example: Example) -> int:
        """Return how many tokens an example takes without its question."""
        return len(self._tokenizer.encode(self.text(example, ""))) + SPECIAL_TOKENS

    def measure(self, examples: Iterable[Example], vocab_size: int) -> TextLengths:
        """Count the tokens of many examples, as the model will read them.

        Raises:
            InputError: rows whose options alone are too long, or whose token ids aren't below `vocab_size`; all are
                listed.
        """
        counted: list[int] = []
        foreign: list[str] = []
        too_long: list[str] = []
        for chunk in chunks(examples):
            given = {e.id: e.token_ids for e in chunk if e.token_ids is not None}
            highest = [(name, max(ids, default=0)) for name, ids in given.items()]
            foreign += [f"row {name}: token id {token_id}" for name, token_id in highest if token_id >= vocab_size]
            counted += [len(ids) + SPECIAL_TOKENS for ids in given.values()]
            texts = [e for e in chunk if e.token_ids is None]
            for example, ids in zip(texts, self._tokenizer.encode_batch([self.text(e) for e in texts]), strict=True):
                counted.append(len(ids) + SPECIAL_TOKENS)
                # A question may be cut and its options not, so these are counted alone.
                if counted[-1] > self.max_tokens and (need := self._needed(example)) > self.max_tokens:
                    too_long.append(
                        f"row {example.id}: its options alone take {need} tokens, more than --num_max_bpe_tokens "
                        f"{self.max_tokens}; set that to {need} or more, better {need + 32}."
                    )
        if foreign:
            raise InputError.of_problems(f"token ids beyond --vocab_size {vocab_size}:", foreign)
        if too_long:
            raise InputError.of_problems("options that are longer than the model may read:", too_long)
        return TextLengths.of(counted, self.max_tokens)


def option_template(template: str) -> OptionTemplate:
    """Return a `--prompt_template` as the text of one option; the default in the place of one without `{choice}`.

    Such a one is for all options at once. Version 0.1.0 saved it in checkpoints of `vqarank`, which read the default.
    """
    return OptionTemplate(template if ONE_OPTION in template else OPTION_PROMPT_TEMPLATE)
