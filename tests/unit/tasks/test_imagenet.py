"""ImageNet's own options, by hand."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from beit3_vqa.config.resolve import GivenOptions, resolve
from beit3_vqa.data.types import Batch, Example
from beit3_vqa.tasks.imagenet import ImageNet

EXAMPLES = tuple(Example(str(label), "x", "", answer=str(label), targets=((label, 1.0),)) for label in (0, 2))


def task(**options) -> ImageNet:
    given = GivenOptions({"task": "imagenet", **options})
    return ImageNet(["0", "1", "2"], resolve(given, ImageNet.spec.defaults))


def batch() -> Batch:
    return Batch({"image": torch.randn(2, 3, 4, 4)}, EXAMPLES)


@pytest.mark.parametrize(("options", "smoothing"), [({}, 0.1), ({"label_smoothing": 0.3}, 0.3)])
def test_labels_are_smoothed_by_label_smoothing(options, smoothing):
    """Upstream's `--label_smoothing`, 0.1 unless given; its `--smoothing` never had an effect."""
    of = task(**options)
    logits = torch.randn(2, 3)
    expected = cross_entropy(logits, torch.tensor([0, 2]), label_smoothing=smoothing)
    torch.testing.assert_close(of.loss(logits, of.attach_targets(batch(), [{"seed": 1}] * 2)), expected)


def test_mixed_labels_are_smoothed_by_label_smoothing_too():
    of = task(label_smoothing=0.3, mixup=0.8)
    mixed = of.attach_targets(batch(), [{"seed": 1}] * 2)
    torch.testing.assert_close(mixed.targets[:, 1], torch.full((2,), 0.1))  # of a class that neither image is of
