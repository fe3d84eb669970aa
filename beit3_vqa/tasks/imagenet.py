"""ImageNet, or any folder of images whose sub-folders are classes."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from beit3_vqa.config.config import RunConfig
from beit3_vqa.data.dataset import IndexDataset
from beit3_vqa.data.imagenet_augment import CentralCrop, Mix, TimmTransform, check_cutmix_minmax
from beit3_vqa.data.index import CLASSES_FILE, IndexFiles, read_classes
from beit3_vqa.data.rows import Row, RowFormat, fold_problem, image_problem
from beit3_vqa.data.types import Batch, EvalResult, Example, Inputs, Prediction, Tensors
from beit3_vqa.errors import InputError
from beit3_vqa.models.base import Processor
from beit3_vqa.runtime.files import is_text
from beit3_vqa.tasks.base import TaskSpec, as_beit3
from beit3_vqa.tasks.classification import ClassTask, label_problem

UPSTREAMS_CLASSES = 1000


def _problem(row: Row) -> str:
    return image_problem(row) or label_problem(row) or fold_problem(row)


def _name(row: Row) -> str:
    return str(row["image_path"])


class ImageNet(ClassTask):
    """Classify the images of rows `{"image_path", "label"}`.

    Upstream's index names no classes: there are 1,000 of them, or as many as `--num_classes` says. Upstream validates
    and tests on the same images; so does this if there is no test split.
    """

    spec = TaskSpec(
        name="imagenet",
        head="imageclassification",
        files=IndexFiles(
            "imagenet",
            {
                "train": ("imagenet.train.index.jsonl",),
                "val": ("imagenet.val.index.jsonl",),
                "test": ("imagenet.val.index.jsonl",),
            },
            tests_on_val=True,
        ),
        row_format=RowFormat(_problem, _name),
        inputs=Inputs(text=""),
        unit="images",
        defaults={"crop_scale": 0.08, "label_smoothing": 0.1},
        own_options=frozenset(
            {"mixup", "cutmix", "cutmix_minmax", "mixup_prob", "mixup_switch_prob", "mixup_mode", "color_jitter", "aa"}
            | {"crop_pct", "reprob", "remode", "recount"}
        ),
        evaluation_options=frozenset({"crop_pct"}),
    )

    @classmethod
    def from_folder(cls, config: RunConfig) -> "ImageNet":
        """Set the task up on a prepared folder with the classes of its table, if it has one."""
        folder = cls.prepared_folder(config)
        numbered = map(str, range(config.model.num_classes or UPSTREAMS_CLASSES))
        classes = read_classes(folder.path) if (folder.path / CLASSES_FILE).exists() else list(numbered)
        return cls(classes, config, folder)

    @classmethod
    def from_checkpoint(cls, config: RunConfig, saved: dict[str, object], where: str) -> "ImageNet":
        """Set the task up with the classes that the checkpoint `where` keeps."""
        classes = saved.get("classes")
        if not isinstance(classes, list) or not classes or not all(map(is_text, classes)):
            raise InputError(f"{where}: its task_state holds no classes; the file is damaged.")
        return cls(classes, config)

    def dataset(self, split: str, processor: Processor, *, training: bool) -> IndexDataset:
        """Return a split of the data; InputError if it doesn't exist or `--cutmix_minmax` can't be used."""
        if training:
            check_cutmix_minmax(self.config.of_task.cutmix_minmax, as_beit3(processor).size)
        return super().dataset(split, processor, training=training)

    def example(self, row: Row, place: int) -> Example:
        """Return an image, whose id is its path."""
        return self.labelled(Example(id=_name(row), image_path=row["image_path"], question=""), row)

    def tensors(self, example: Example, rng: random.Random | None, processor: Processor) -> Tensors:
        """Return `image` (3, S, S): uint8, or in training floats from timm's pipeline and a `seed` to mix by."""
        images = as_beit3(processor)
        image, size = images.open(example, example.image_path), images.size
        if rng is None:
            return {"image": CentralCrop(size, self.config.of_task.crop_pct)(image)}
        return {"image": self._train_transform(size)(image, rng), "seed": rng.getrandbits(32)}

    def _train_transform(self, size: int) -> TimmTransform:
        if size not in self._transforms:
            data, options = self.config.data, self.config.of_task
            self._transforms[size] = TimmTransform(
                size,
                options.aa,
                scale=(data.crop_scale, 1.0),
                hflip=data.flip,
                interpolation=data.train_interpolation,
                color_jitter=options.color_jitter,
                re_prob=options.reprob,
                re_mode=options.remode,
                re_count=options.recount,
            )
        return self._transforms[size]

    @cached_property
    def _transforms(self) -> dict[int, TimmTransform]:
        return {}

    @cached_property
    def _mix(self) -> Mix:
        options = self.config.of_task
        return Mix(
            self.num_classes,
            self.smoothing,
            mixup=options.mixup,
            cutmix=options.cutmix,
            cutmix_minmax=options.cutmix_minmax,
            prob=options.mixup_prob,
            switch_prob=options.mixup_switch_prob,
            mode=options.mixup_mode,
        )

    def attach_targets(self, batch: Batch, items: Sequence[Tensors]) -> Batch:
        """Return the batch with labels (B,), or mixed by mixup or cutmix with probabilities (B, classes)."""
        labels = self.targets(batch.examples)
        if not self._mix.on:
            return replace(batch, targets=labels)
        # The batch is mixed in one call, so the seed of one example serves.
        images, targets = self._mix(batch.inputs["image"], labels, items[0]["seed"])
        return replace(batch, inputs={"image": images}, targets=targets)

    def aggregate(
        self, predictions: list[Prediction], split: str, processor: Processor, *, full: bool = False
    ) -> EvalResult:
        """Return the predictions with `accuracy` (top 1) and `top5_accuracy` in percent, and the loss."""
        result = super().aggregate(predictions, split, processor, full=full)
        known = [p for p in predictions if p.truth is not None]
        if not known:
            return result
        among = 100.0 * sum(p.truth in p.probabilities for p in known) / len(known)
        metrics = {"images": len(known), "top5_accuracy": among, **result.metrics}
        kept = ("images", "accuracy", "loss", "top5_accuracy", "accuracy_interval")
        return replace(result, metrics={name: metrics[name] for name in kept if name in metrics})
