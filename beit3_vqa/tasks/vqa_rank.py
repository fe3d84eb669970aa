"""Multiple choice that doesn't depend on the order of the options: each is scored by a forward pass of its own.

The data are vqacustom's, and the head has one output. The text for an option is the question and the option; its score
is the model's logit for image and text. A softmax over the options of a question turns scores into probabilities. The
price is a forward pass for each option.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial

from torch import Tensor

from beit3_vqa.config.config import RunConfig
from beit3_vqa.config.options import OPTION_PROMPT_TEMPLATE
from beit3_vqa.data.dataset import IndexDataset
from beit3_vqa.data.index import ANSWERS_FILE
from beit3_vqa.data.prompt import SPECIAL_TOKENS, OptionTemplate
from beit3_vqa.data.rows import Rows, row_id
from beit3_vqa.data.types import Batch, Example, Prediction, Tensors
from beit3_vqa.errors import InputError, short
from beit3_vqa.models.base import Processor
from beit3_vqa.models.beit3.processor import BEiT3Processor, option_template
from beit3_vqa.tasks.base import as_beit3
from beit3_vqa.tasks.vqa import VQACustom


class VQARank(VQACustom):
    """Answer questions by a score for each option; C below is the largest number of options of a question."""

    spec = replace(
        VQACustom.spec,
        name="vqarank",
        option_by_option=True,
        defaults={**VQACustom.spec.defaults, "prompt_template": OPTION_PROMPT_TEMPLATE},
    )

    @cached_property
    def template(self) -> OptionTemplate:
        """Return the text of a question and one option."""
        return option_template(self.config.model.prompt_template)

    @classmethod
    def from_folder(cls, config: RunConfig) -> "VQACustom":
        """Set the task up on a folder prepared for vqacustom; InputError if its questions are open-ended."""
        task = super().from_folder(config)
        if not task.answers_are_options:
            raise InputError(
                f"--data_path {config.sources.folder}: {ANSWERS_FILE} isn't of letters, so the questions have no "
                "options to rank. Use --task vqacustom."
            )
        return task

    def _check_choices(self, rows: Rows, split: str) -> None:
        super()._check_choices(rows, split)
        # A forward pass shows one option, so question and options must be known apart.
        whole = [f"row {row_id(row)}" for row in rows if "question" not in row]
        if whole:
            raise InputError.of_problems(
                f"{split} rows with a text_segment, in which options can't be told from the question:",
                whole,
                "Use --task vqacustom, or prepare the data anew.",
            )

    def dataset(self, split: str, processor: Processor, *, training: bool) -> IndexDataset:
        """Return a split as vqacustom does; InputError if an option is longer than the model may read."""
        dataset = super().dataset(split, processor, training=training)
        reader = as_beit3(processor)
        problem_of = partial(_length_problem, template=self.template, processor=reader)
        problems = ((row, choice, problem_of(choice)) for row in dataset.rows for choice in row["choices"])
        too_long = [f"row {row_id(row)}, {short(choice)}: {problem}" for row, choice, problem in problems if problem]
        if too_long:
            raise InputError.of_problems(f"options of {split} rows that are too long:", too_long)
        return dataset

    def tensors(self, example: Example, rng: random.Random | None, processor: Processor) -> Tensors:
        """Return `image` (3, S, S), uint8, and `texts`, the token ids of question and option for each option."""
        reader = as_beit3(processor)
        texts = [reader.fitted(example.question, partial(self.template, choice=choice)) for choice in example.choices]
        texts += texts[-1:] * (self.num_classes - len(texts))  # of options that aren't there; they don't count
        return {"image": reader.pixels(example, example.image_path, rng), "texts": texts}

    def collate(self, items: Sequence[Tensors], processor: Processor) -> dict[str, Tensor]:
        """Return `image`, `image_of` (B * C,) and `question` (B * C, T): the options of one example after another's."""
        reader = as_beit3(processor)
        # All options of a question are about one image.
        images = reader.stacked([item["image"] for item in items for _ in range(self.num_classes)])
        return {**images, **reader.padded([ids for item in items for ids in item["texts"]])}

    def texts_to_measure(self, example: Example) -> Iterable[Example]:
        """Return an example for each option, whose text is question and option."""
        return (replace(example, question=self.template(example.question, c), choices=()) for c in example.choices)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the loss of the scores (B * C, 1) as if they were the logits of a head with C outputs."""
        return super().loss(outputs.view(-1, self.num_classes), batch)

    def predictions(self, outputs: Tensor, batch: Batch, temperature: float = 1.0) -> list[Prediction]:
        """Predict the option with the highest score."""
        return super().predictions(outputs.view(-1, self.num_classes), batch, temperature)


def _length_problem(choice: str, template: OptionTemplate, processor: BEiT3Processor) -> str:
    """Say what is wrong with an option that is too long even if its question is empty; else return an empty string."""
    # A token has at least a byte, except one that may stand before the first word: short options need no tokenizer.
    if len(template("", choice).encode()) + SPECIAL_TOKENS < processor.max_tokens:
        return ""
    try:
        processor.fitted("", partial(template, choice=choice))
    except InputError as error:
        return str(error)
    return ""
