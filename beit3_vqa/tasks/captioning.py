"""Describing images: the task on COCO and on nocaps."""

import logging
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beit3_vqa.config.config import RunConfig
from beit3_vqa.data.dataset import IndexDataset, text_or_ids
from beit3_vqa.data.index import IndexFiles
from beit3_vqa.data.rows import MAX_ID, Row, RowFormat, fold_problem, id_problem, image_problem, is_count
from beit3_vqa.data.tokenizer import Tokenizer, mask_words
from beit3_vqa.data.types import Batch, EvalResult, Example, Inputs, Prediction, PredictionsInfo, Tensors
from beit3_vqa.errors import InputError
from beit3_vqa.metrics.captions import SPICE, read_references, require_scorer, score_captions, write_captions
from beit3_vqa.models.base import Processor
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.files import is_text
from beit3_vqa.tasks.base import Task, TaskSpec, as_beit3, not_finite
from beit3_vqa.tasks.folder import PreparedFolder
from beit3_vqa.tasks.losses import caption_loss

logger = logging.getLogger(__name__)

# Rows of captions, of retrieval and of captioning.
#
# `{"id", "image_path", "text_segment": text, "image_id"}`. If the caption is to be written, there is no text or, in
# upstream's, null. Upstream's rows have token ids for the text, and no `id`.


def image_id_problem(row: Row) -> str:
    """Say what is wrong with the id of a row's image or with the row's own id, or return an empty string."""
    image_id = row.get("image_id")
    if not is_count(image_id) and not (is_text(image_id) and str(image_id).strip() and len(str(image_id)) <= MAX_ID):
        return "image_id must be text or a whole number"
    return id_problem(row["id"]) if "id" in row else ""


def caption_problem(row: Row) -> str:
    """Say what is wrong with the caption of a row that must have one, or return an empty string."""
    caption = row.get("text_segment")
    if isinstance(caption, list):
        return "" if caption and all(map(is_count, caption)) else "text_segment must be a list of token ids, or text"
    return "" if is_text(caption) and str(caption).strip() else "text_segment must be a caption"


def has_caption(row: Row) -> bool:
    """Return whether a row has a caption."""
    return row.get("text_segment") is not None


def caption_id(row: Row) -> str | None:
    """Return the row's own id; None if it has none."""
    return str(row["id"]) if "id" in row else None


def caption_example(row: Row, place: int) -> Example:
    """Return a caption and its image; the id of a row without one is its place."""
    text, ids = text_or_ids(row.get("text_segment") or ())
    name = caption_id(row)
    return Example(id=str(place) if name is None else name, image_path=row["image_path"], question=text, token_ids=ids)


def _problem(row: Row) -> str:
    caption = caption_problem(row) if has_caption(row) else ""
    return image_problem(row) or image_id_problem(row) or caption or fold_problem(row)


CAPTIONING = TaskSpec(
    name="coco_captioning",
    head="captioning",
    files=IndexFiles("coco_captioning"),  # ours and upstream's have the same names
    row_format=RowFormat(_problem, caption_id),
    inputs=Inputs(text="text_ids"),
    best_metric="CIDEr",
    unit="captions",
    per_example=False,
    defaults={"label_smoothing": 0.1},
    own_options=frozenset(
        {"captioning_mask_prob", "drop_worst_ratio", "drop_worst_after", "num_beams", "length_penalty"}
    ),
    evaluation_options=frozenset({"num_beams", "length_penalty"}),
    reference_file="coco_karpathy_{split}_gt.json",  # which upstream downloads
)


class COCOCaptioning(Task):
    """Describe images: in training a row is an image and one of its captions; evaluation describes each image once.

    What a caption is worth is measured against people's: those of the split's file of references or, if there is none,
    the captions of the split's own rows.
    """

    spec = CAPTIONING

    def __init__(self, config: RunConfig, folder: PreparedFolder | None = None):
        super().__init__(config, folder)
        self._references: dict[str, dict[str, list[str]]] = {}  # by split, since they are asked for in every epoch

    def state(self) -> dict[str, object]:
        """Return the kind of head alone: a model that was trained on one data set can describe another's images."""
        return {"head": self.spec.head}

    def example(self, row: Row, place: int) -> Example:
        """Return a caption to be learned."""
        return caption_example(row, place)

    def _image(self, row: Row, place: int) -> Example:
        """Return an image to be described, with the image's id; `token_ids` are empty, so no caption is read."""
        return Example(id=str(row["image_id"]), image_path=row["image_path"], question="", token_ids=())

    def dataset(self, split: str, processor: Processor, *, training: bool) -> IndexDataset:
        """Return a split: in training its captions, else its images, each once.

        Raises:
            InputError: no such split, nothing to learn from, or captions that couldn't be scored.
        """
        rows = self.folder.rows(split)
        if training:
            captioned = rows.where(map(has_caption, rows))
            if not captioned:
                raise InputError(f"no row of the {split} split has a caption: there is nothing to learn from.")
            return self.build_dataset(captioned, processor, training=True)
        seen = set[str]()
        images = rows.where(_is_new(str(row["image_id"]), seen) for row in rows)
        self._check_references(seen, split, _tokenizer(processor))
        return self.build_dataset(images, processor, training=False, example_of=self._image)

    def _check_references(self, images: set[str], split: str, tokenizer: Tokenizer) -> None:
        """Raise InputError if captions of the images couldn't be scored: before the training, not at its end."""
        references = self.references(split, tokenizer)
        if not references:
            return
        require_scorer()
        lacking = [f"image {image}" for image in sorted(images) if image not in references]
        if lacking:
            title = f"images of the {split} split without a caption to compare with:"
            file = self.spec.reference_file.format(split=split)
            raise InputError.of_problems(title, lacking, f"Are the index and {file} of one data set?")

    def references(self, split: str, tokenizer: Tokenizer) -> dict[str, list[str]]:
        """Return image id -> captions of a split; empty if there are none."""
        if split not in self._references:
            path = self.folder.path / self.spec.reference_file.format(split=split)
            is_fold = split == "val" and self.config.data.fold is not None  # whose images are of the training split
            use_file = path.is_file() and not is_fold
            self._references[split] = read_references(path) if use_file else self._captions(split, tokenizer)
        return self._references[split]

    def _captions(self, split: str, tokenizer: Tokenizer) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for row in filter(has_caption, self.folder.rows(split)):
            found.setdefault(str(row["image_id"]), []).append(_text(row, tokenizer))
        return found

    def texts_to_measure(self, example: Example) -> Iterable[Example]:
        """Return the example if it has a caption."""
        return (example,) if example.question or example.token_ids else ()

    def tensors(self, example: Example, rng: random.Random | None, processor: Processor) -> Tensors:
        """Return the pixels and the caption; in training with words masked, their `places` and the `words` there."""
        item = processor(example, rng)
        if rng is None:
            return item
        name, tokenizer = self.spec.inputs.text, _tokenizer(processor)
        ids, probability = item[name], self.config.of_task.captioning_mask_prob
        masked, places = mask_words(ids, rng, probability, tokenizer.mask_id, tokenizer.vocab_size)
        return {**item, name: masked, "places": places, "words": [ids[place] for place in places]}

    def collate(self, items: Sequence[Tensors], processor: Processor) -> dict[str, Tensor]:
        """Return the model's keyword arguments; in training with the masked places, int64 (M,).

        With `--compile` they are a mask, int64 (B, T), 1 if masked: every M would be compiled anew.
        """
        batch = processor.collate(items)
        if "places" in items[0]:
            masked = torch.zeros_like(batch[self.spec.inputs.text])
            for row, item in enumerate(items):
                masked[row, item["places"]] = 1
            if self.config.compute.compile:
                batch["language_masked_pos"] = masked
            else:
                batch["masked_places"] = masked.flatten().nonzero().squeeze(1)  # counted here, not on a GPU
        return batch

    def attach_targets(self, batch: Batch, items: Sequence[Tensors]) -> Batch:
        """Return the batch with the ids of the masked words of all captions in order, int64 (M,)."""
        return replace(batch, targets=torch.tensor([word for item in items for word in item["words"]]))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the smoothed loss of the masked words, `outputs` (M, V).

        After `--drop_worst_after` steps the share `--drop_worst_ratio` with the greatest loss in this process is left
        out.
        """
        assert batch.targets is not None
        options = self.config.of_task
        drop = options.drop_worst_ratio if batch.step > options.drop_worst_after else 0.0
        return caption_loss(outputs, batch.targets, self.config.optim.label_smoothing, drop)

    def infer(self, model: Any, batch: Batch, processor: Processor) -> list[str]:
        """Describe the images by beam search; NotFiniteError if the outputs aren't finite."""
        options, tokenizer = self.config.of_task, _tokenizer(processor)
        captions = model.generate(
            batch.inputs["image"],
            start_id=tokenizer.bos_id,
            mask_id=tokenizer.mask_id,
            end_id=tokenizer.eos_id,
            num_beams=options.num_beams,
            max_len=processor.max_tokens,
            length_penalty=options.length_penalty,
        )
        # The search then ends without a word, which would pass for an empty caption.
        if not all(math.isfinite(caption.score) for caption in captions):
            raise not_finite(batch)
        return [tokenizer.decode(caption.ids) for caption in captions]

    def predictions(self, outputs: Sequence[str], batch: Batch, temperature: float = 1.0) -> list[Prediction]:
        """Return the caption of each image."""
        return [
            Prediction(e.id, e.question, text, probabilities={}, problem=e.problem, image=e.image)
            for text, e in zip(outputs, batch.examples, strict=True)
        ]

    def aggregate(
        self, predictions: list[Prediction], split: str, processor: Processor, *, full: bool = False
    ) -> EvalResult:
        """Return the captions with CIDEr, BLEU and ROUGE-L, and in an evaluation METEOR, if there are references."""
        tokenizer = _tokenizer(processor)
        # One process scores for all.
        metrics, chance = distributed.run_on_main(
            lambda: (
                self._metrics(predictions, self.references(split, tokenizer)),
                self._chance(split, tokenizer) if full else 0.0,
            )
        )
        return EvalResult(metrics, predictions, chance)

    def _metrics(self, predictions: list[Prediction], references: dict[str, list[str]]) -> dict[str, object]:
        if not references:
            return {}
        captions = {p.id: p.answer for p in predictions}
        if self.config.run.eval:
            logger.info(SPICE)
        return {"images": len(captions), **score_captions(captions, references, meteor=self.config.run.eval)}

    def _chance(self, split: str, tokenizer: Tokenizer) -> float:
        """Return the CIDEr of describing every image by the training split's most frequent caption."""
        references = self.references(split, tokenizer)
        if not references or "train" not in self.folder.splits():
            return 0.0
        texts = Counter(_text(row, tokenizer) for row in self.folder.rows("train") if has_caption(row))
        likeliest = texts.most_common(1)[0][0]
        scores = score_captions(dict.fromkeys(references, likeliest), references)
        return float(scores[self.spec.best_metric])

    def own_results(self, result: EvalResult, info: PredictionsInfo, folder: Path, suffix: str) -> list[Path]:
        """Write the captions in upstream's format, to be handed in or scored."""
        return [write_captions(result.predictions, folder / f"submit_{self.spec.name}_{info.split}.json")]


def _tokenizer(processor: Processor) -> Tokenizer:
    tokenizer = as_beit3(processor).tokenizer
    assert tokenizer is not None  # captions are text
    return tokenizer


def _text(row: Row, tokenizer: Tokenizer) -> str:
    text, ids = text_or_ids(row["text_segment"])
    return tokenizer.decode(ids) if ids else text


def _is_new(name: str, seen: set[str]) -> bool:
    """Tell whether `name` isn't in `seen`, and add it."""
    new = name not in seen
    seen.add(name)
    return new


class NoCaps(COCOCaptioning):
    """Describe nocaps' images; the training split is COCO's, in the same folder."""

    spec = replace(
        CAPTIONING,
        name="nocaps",
        files=IndexFiles("nocaps", train_name="coco_captioning"),
        reference_file="nocaps_{split}_gt.json",
    )
