"""Finding images by captions and captions by images: the task on Flickr30k and on COCO."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit3_vqa.data.index import IndexFiles
from beit3_vqa.data.rows import Row, RowFormat, fold_problem, image_problem
from beit3_vqa.data.types import Batch, EvalResult, Example, Inputs, Prediction
from beit3_vqa.metrics.recall import chance_of_recall, recall_metrics
from beit3_vqa.models.base import Processor
from beit3_vqa.tasks.base import Task, TaskSpec
from beit3_vqa.tasks.captioning import caption_example, caption_id, caption_problem, image_id_problem
from beit3_vqa.tasks.losses import contrastive_loss

KEPT_IMAGES = 5  # predictions.json would otherwise hold captions times images
CHUNK = 1024  # captions compared with all images at once


def _problem(row: Row) -> str:
    return image_problem(row) or image_id_problem(row) or caption_problem(row) or fold_problem(row)


@dataclass(frozen=True)
class Features:
    """The features of a row: float32 vectors (D,), the image's times the learned scale."""

    example: Example
    image: NDArray[np.float32]
    text: NDArray[np.float32]


def _spec(name: str) -> TaskSpec:
    return TaskSpec(
        name=name,
        head="retrieval",
        files=IndexFiles(name),  # ours and upstream's have the same names
        row_format=RowFormat(_problem, caption_id),
        inputs=Inputs(text="text_description"),
        best_metric="average_score",
        unit="captions",
        per_example=False,
        in_batch_negatives=True,
    )


class Retrieval(Task):
    """Find images by captions and captions by images; rows of one `image_id` are captions of one image."""

    def state(self) -> dict[str, object]:
        """Return the kind of head alone: a model that was trained on one data set can search another."""
        return {"head": self.spec.head}

    def example(self, row: Row, place: int) -> Example:
        """Return a caption, whose answer is the id of its image."""
        return replace(caption_example(row, place), answer=str(row["image_id"]))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the contrastive loss of `outputs` (B, 2, D), compared with those of every process."""
        return contrastive_loss(outputs, batch.global_batch or None)  # outside of training each process is alone

    def infer(self, model: Any, batch: Batch, processor: Processor) -> Tensor:
        """Return features (B, 2, D) as a forward pass gives them.

        Each distinct image is encoded once, since a batch often holds several captions of an image.
        """
        rows: dict[str, int] = {}
        of_row = [rows.setdefault(example.image_path, len(rows)) for example in batch.examples]
        first = [of_row.index(number) for number in range(len(rows))]
        vision, _ = model(image=batch.inputs["image"][first], only_infer=True)
        texts = {name: value for name, value in batch.inputs.items() if name != "image"}
        _, language = model(**texts, only_infer=True)
        return torch.stack([vision[of_row] * model.logit_scale.exp(), language], dim=1)

    def predictions(self, outputs: Tensor, batch: Batch, temperature: float = 1.0) -> list[Features]:
        """Return the features of each row, for `aggregate`."""
        vectors = outputs.cpu().numpy()
        return [Features(example, *pair) for example, pair in zip(batch.examples, vectors, strict=True)]

    def aggregate(
        self, predictions: list[Features], split: str, processor: Processor, *, full: bool = False
    ) -> EvalResult:
        """Return recall both ways, and for each caption the `KEPT_IMAGES` images that fit it best.

        If `full`, print what upstream's rule for ties would make of the recall, if it differs.
        """
        numbers: dict[str, int] = {}
        first: list[Features] = []
        image_of = []
        for row in predictions:
            image_id = row.example.answer or ""
            if image_id not in numbers:
                numbers[image_id] = len(first)
                first.append(row)
            image_of.append(numbers[image_id])
        images = torch.from_numpy(np.stack([row.image for row in first]))
        texts = torch.from_numpy(np.stack([row.text for row in predictions]))
        metrics = recall_metrics(images, texts, torch.tensor(image_of))
        name, topk = self.spec.best_metric, metrics["topk"]
        assert isinstance(topk, dict)
        if full and metrics[name] != topk[name]:
            print(f"{name} is {topk[name]:.2f} by upstream's rule for ties")
        counts = {"captions": len(texts), "images": len(images)}
        found = self._found(predictions, images, texts, list(numbers))
        return EvalResult({**counts, **metrics}, found, self._chance(split) if full else 0.0)

    def _found(self, rows: list[Features], images: Tensor, texts: Tensor, names: list[str]) -> list[Prediction]:
        found = []
        for start in range(0, len(texts), CHUNK):
            probabilities = (texts[start : start + CHUNK] @ images.T).softmax(dim=1)
            best = probabilities.topk(min(KEPT_IMAGES, len(images)), dim=1)
            found += [
                self._prediction(row.example, dict(zip((names[i] for i in places), values, strict=True)))
                for row, places, values in zip(
                    rows[start : start + CHUNK], best.indices.tolist(), best.values.tolist(), strict=True
                )
            ]
        return found

    def _prediction(self, example: Example, images: dict[str, float]) -> Prediction:
        answer = next(iter(images))
        return Prediction(
            id=example.id,
            question=example.question,
            answer=answer,
            probabilities=images,
            truth=example.answer,
            score=float(answer == example.answer),
            problem=example.problem,
            image=example.image,
        )

    def _chance(self, split: str) -> float:
        """Return the `average_score` of blind guessing, in percent."""
        return chance_of_recall(list(Counter(str(row["image_id"]) for row in self.folder.rows(split)).values()))


class COCORetrieval(Retrieval):
    """Find COCO's images and captions."""

    spec = _spec("coco_retrieval")


class Flickr30k(Retrieval):
    """Find Flickr30k's images and captions."""

    spec = _spec("flickr30k")
