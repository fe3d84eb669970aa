"""Describing images: what COCO's and nocaps' tasks have in common."""

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from beit3_vqa.config.config import RunConfig
from beit3_vqa.data.dataset import IndexDataset, text_or_ids
from beit3_vqa.data.index import IndexFiles, split_files
from beit3_vqa.data.rows import MAX_ID, Row, RowFormat, Rows, fold_problem, id_problem, image_problem, is_count
from beit3_vqa.data.tokenizer import Tokenizer, mask_words
from beit3_vqa.data.types import Batch, EvalResult, Example, Inputs, Prediction, PredictionsInfo
from beit3_vqa.errors import InputError
from beit3_vqa.metrics.captions import SPICE, read_references, require_scorer, score_captions, write_captions
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.files import is_text
from beit3_vqa.tasks.base import not_finite
from beit3_vqa.tasks.index_task import IndexTask
from beit3_vqa.tasks.losses import caption_loss

# Rows of captions, of retrieval and of captioning.
#
# `{"id", "image_path", "text_segment": text, "image_id"}`; where the caption is to be written, there is no text, or, in
# upstream's, null. Upstream's have token ids for the text, and no `id`.


def image_id_problem(row: Row) -> str:
    """What is wrong with the id of a row's image, or with the row's own."""
    image_id = row.get("image_id")
    if not is_count(image_id) and not (is_text(image_id) and str(image_id).strip() and len(str(image_id)) <= MAX_ID):
        return "image_id must be text or a whole number"
    return id_problem(row["id"]) if "id" in row else ""


def caption_problem(row: Row) -> str:
    """What is wrong with the caption of a row that must have one."""
    caption = row.get("text_segment")
    if isinstance(caption, list):
        return "" if caption and all(map(is_count, caption)) else "text_segment must be a list of token ids, or text"
    return "" if is_text(caption) and str(caption).strip() else "text_segment must be a caption"


def has_caption(row: Row) -> bool:
    """Whether there is one."""
    return row.get("text_segment") is not None


def caption_id(row: Row) -> str | None:
    """The row's own id; None where it has none."""
    return str(row["id"]) if "id" in row else None


def caption_example(row: Row, place: int) -> Example:
    """A caption and its image; a row without an id is called by its place."""
    text, ids = text_or_ids(row.get("text_segment") or ())
    name = caption_id(row)
    return Example(id=str(place) if name is None else name, image_path=row["image_path"], question=text, token_ids=ids)


MASKED = "language_masked_pos"


def _problem(row: Row) -> str:
    caption = caption_problem(row) if has_caption(row) else ""
    return image_problem(row) or image_id_problem(row) or caption or fold_problem(row)


class Captioning(IndexTask):
    """In training a row is an image and one of its captions; in evaluation each image is described once.

    What a caption is worth is measured against people's: those of the split's file of references, or, where there is
    none, the captions of the split's own rows.
    """

    head = "captioning"
    inputs = Inputs(text="text_ids")
    best_metric = "CIDEr"
    unit = "captions"
    defaults = {"label_smoothing": 0.1}  # noqa: RUF012 - read only
    own_options = frozenset(
        {"captioning_mask_prob", "drop_worst_ratio", "drop_worst_after", "num_beams", "length_penalty"}
    )
    row_by_row = False
    row_format = RowFormat(_problem, caption_id)
    #: name of a split's file of references, in COCO's format; `{split}` stands for the split
    reference_file: ClassVar[str]

    def __init__(self, config: RunConfig, data_path: Path | None = None):
        super().__init__(config, data_path)
        self._tokenizer: Tokenizer | None = None
        self._max_len = 0
        self._split = ""
        self._references: dict[str, dict[str, list[str]]] = {}  # by split

    def state(self) -> dict[str, Any]:
        """The kind of head: what is learned on one data set can be asked of another."""
        return {"head": self.head}

    def example(self, row: Row, place: int) -> Example:
        """A caption to be learned, or an image to be described."""
        return caption_example(row, place)

    def _image(self, row: Row, place: int) -> Example:
        """An image to be described: its id is the image's, and its captions aren't looked at."""
        return Example(id=str(row["image_id"]), image_path=row["image_path"], question="", token_ids=())

    def learnable(self, rows: Rows, split: str) -> Rows:
        """The rows that have a caption; InputError where none has."""
        captioned = rows.where(map(has_caption, rows))
        if not captioned:
            raise InputError(f"no row of the {split} split has a caption: there is nothing to learn from.")
        return captioned

    def dataset(self, split: str, processor: Any, *, training: bool) -> IndexDataset:
        """A split: in training its captions, else its images, each once."""
        self._tokenizer, self._max_len = processor.tokenizer, processor.max_tokens
        dataset = super().dataset(split, processor, training=training)
        if not training:
            rows, seen = self.rows(split), set[str]()
            dataset.rows = rows.where(_is_new(str(row["image_id"]), seen) for row in rows)
            dataset.example_of = self._image
            self._split = split
            self._check_references(seen, split)
        return dataset

    def _check_references(self, images: set[str], split: str) -> None:
        """InputError where captions couldn't be scored, before hours of training end in them."""
        references = self.references(split)
        if not references:
            return
        require_scorer()
        lacking = [f"image {image}" for image in sorted(images) if image not in references]
        if lacking:
            title = f"images of the {split} split without a caption to compare with:"
            file = self.reference_file.format(split=split)
            raise InputError.of_problems(title, lacking, f"Are the index and {file} of one data set?")

    def references(self, split: str) -> dict[str, list[str]]:
        """Image id -> captions of a split; empty where there are none."""
        if split not in self._references:
            assert self.data_path is not None
            path = self.data_path / self.reference_file.format(split=split)
            is_fold = split == "val" and self.config.data.fold is not None  # whose images are of the training split
            use_file = path.is_file() and not is_fold
            self._references[split] = read_references(path) if use_file else self._captions(split)
        return self._references[split]

    def _captions(self, split: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for row in filter(has_caption, self.rows(split)):
            found.setdefault(str(row["image_id"]), []).append(self._text(row))
        return found

    def _text(self, row: Row) -> str:
        text, ids = text_or_ids(row["text_segment"])
        return text if not ids or self._tokenizer is None else self._tokenizer.decode(ids)

    def measured(self, example: Example) -> Iterable[Example]:
        """The caption, where there is one."""
        return (example,) if example.question or example.token_ids else ()

    def tensors(self, example: Example, processor: Any, rng: random.Random | None) -> dict[str, Any]:
        """Pixels, the caption with words masked, and which; in evaluation the pixels alone count."""
        item = processor(example, rng)
        if rng is None:
            return item
        ids, tokenizer = item[self.inputs.text], processor.tokenizer
        probability = self.config.of_task.captioning_mask_prob
        masked, places = mask_words(ids, rng, probability, tokenizer.mask_id, tokenizer.vocab_size)
        return {**item, self.inputs.text: masked, "places": places, "words": [ids[place] for place in places]}

    def collate(self, items: Sequence[dict[str, Any]], processor: Any) -> dict[str, Tensor]:
        """The model's keyword arguments; in evaluation only `image` is looked at."""
        batch = processor.collate(items)
        if "places" in items[0]:
            masked = torch.zeros_like(batch[self.inputs.text])
            for row, item in enumerate(items):
                masked[row, item["places"]] = 1
            batch[MASKED] = masked
        return batch

    def finish(self, batch: Batch, items: Sequence[dict[str, Any]]) -> Batch:
        """Targets: ids of the masked words of all captions, one after the other."""
        return replace(batch, targets=torch.tensor([word for item in items for word in item["words"]]))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Of the masked words, label-smoothed, without the worst of this process's after `--drop_worst_after` steps."""
        assert batch.targets is not None
        options = self.config.of_task
        drop = options.drop_worst_ratio if batch.step > options.drop_worst_after else 0.0
        return caption_loss(outputs, batch.targets, self.config.optim.label_smoothing, drop)

    def infer(self, model: Any, batch: Batch) -> list[Any]:
        """Captions, by beam search; InputError where the model's outputs aren't finite, so that it found none."""
        assert self._tokenizer is not None
        options = self.config.of_task
        captions = model.generate(
            batch.inputs["image"],
            start_id=self._tokenizer.bos_id,
            mask_id=self._tokenizer.mask_id,
            end_id=self._tokenizer.eos_id,
            num_beams=options.num_beams,
            max_len=self._max_len,
            length_penalty=options.length_penalty,
        )
        if not all(math.isfinite(caption.score) for caption in captions):
            raise not_finite(batch)
        return captions

    def predictions(self, outputs: Sequence[Any], batch: Batch) -> list[Prediction]:
        """A caption for each image."""
        assert self._tokenizer is not None
        texts = [self._tokenizer.decode(caption.ids) for caption in outputs]
        return [
            Prediction(e.id, e.question, text, probabilities={}, problem=e.problem, image=e.image)
            for text, e in zip(texts, batch.examples, strict=True)
        ]

    def conclude(self, predictions: list[Prediction]) -> EvalResult:
        """Scored by one process for all."""
        return EvalResult(distributed.decided(lambda: self.metrics(predictions)), predictions)

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """CIDEr, BLEU and ROUGE-L, and in an evaluation METEOR; empty where there are no references."""
        references = self.references(self._split)
        if not references:
            return {}
        captions = {p.id: p.answer for p in predictions}
        if self.config.run.eval:
            print(SPICE)
        return {"images": len(captions), **score_captions(captions, references, meteor=self.config.run.eval)}

    def chance(self) -> float:
        """CIDEr of describing every image by the training split's most frequent caption."""
        return distributed.decided(self._chance)

    def _chance(self) -> float:
        references = self.references(self._split) if self._split else {}
        if not references or "train" not in self.splits():
            return 0.0
        texts = Counter(self._text(row) for row in self.rows("train") if has_caption(row))
        likeliest = texts.most_common(1)[0][0]
        return score_captions(dict.fromkeys(references, likeliest), references)[self.best_metric]

    def own_results(self, result: EvalResult, info: PredictionsInfo, folder: Path, suffix: str) -> list[Path]:
        """Upstream's result file, to be handed in or scored."""
        return [write_captions(result.predictions, folder / f"submit_{self.name}_{info.split}.json")]


def _is_new(name: str, seen: set[str]) -> bool:
    new = name not in seen
    seen.add(name)
    return new


class COCOCaptioning(Captioning):
    """Our index and upstream's have the same names; references go by the name of the file that upstream downloads."""

    name = "coco_captioning"
    files = IndexFiles(name)
    reference_file = "coco_karpathy_{split}_gt.json"


TRAINING = IndexFiles("coco_captioning")


class NoCaps(Captioning):
    """Our index and upstream's have the same names; the training split is COCO's, in the same folder."""

    name = "nocaps"
    files = IndexFiles(name)
    reference_file = "nocaps_{split}_gt.json"

    def _files(self, split: str) -> list[Path]:
        assert self.data_path is not None
        return split_files(self.data_path, split, TRAINING if split == "train" else self.files)
