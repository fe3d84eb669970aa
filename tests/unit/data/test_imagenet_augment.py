"""timm's augmentation from our seeds: against timm's own, and without moving the global generators."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from beit3_vqa.config.options import TaskConfig
from beit3_vqa.data.imagenet_augment import CentralCrop, Mix, TimmTransform, check_cutmix_minmax, seeded
from beit3_vqa.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
PHOTO = Image.fromarray(PIXELS)


def global_draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


POLICY = TaskConfig().aa


def test_a_seeded_context_leaves_the_global_generators_alone():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = global_draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with seeded(7):
        first = global_draws()
    assert global_draws() == expected
    with seeded(7):
        assert global_draws() == first


def test_a_view_depends_on_its_seed_alone():
    transform = TimmTransform(32, POLICY, re_prob=1.0)
    views = [transform(PHOTO, random.Random(seed)) for seed in (5, 5, 6)]
    assert views[0].shape == (3, 32, 32)
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


@pytest.mark.parametrize("size", [64, 384])
@pytest.mark.parametrize("share", [(), (224 / 256,)])
def test_evaluation_equals_timms_pipeline(size, share):
    """At every size its central crop, by default (upstream's) of the whole shorter side."""
    crop_pct = share[0] if share else 1.0
    expected = create_transform(size, is_training=False, interpolation="bicubic", crop_pct=crop_pct)(PHOTO)
    got = CentralCrop(size, *share)(PHOTO).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close((got - mean[:, None, None]) / std[:, None, None], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("policy", ["rand-m10-inc1", "original", "v0", "augmix-m5-w2", "none"])
def test_every_policy_works_with_this_pillow(policy):
    transform = TimmTransform(16, policy, re_prob=0.0)
    for seed in range(60):
        assert torch.isfinite(transform(PHOTO, random.Random(seed))).all()


def test_an_unknown_policy_is_an_input_error():
    with pytest.raises(InputError, match="--aa rnd-m9: timm has no such policy"):
        TimmTransform(16, "rnd-m9")


@given(st.integers(1, 9), st.sampled_from(["batch", "pair", "elem"]), st.floats(0, 0.9), st.integers(0, 2**32 - 1))
def test_mixed_targets_are_distributions(count, mode, smoothing, seed):
    mix = Mix(5, smoothing, mixup=0.8, cutmix=1.0, mode=mode)
    images, labels = torch.randn(count, 3, 8, 8), torch.arange(count) % 5
    mixed, targets = mix(images, labels, seed)
    assert mixed.shape == images.shape
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(count))
    assert torch.equal(mix(images, labels, seed)[0], mixed)
    if count % 2:
        assert torch.equal(mixed[-1], images[-1])
        wanted = torch.nn.functional.one_hot(labels[-1], 5) * (1 - smoothing) + smoothing / 5
        torch.testing.assert_close(targets[-1], wanted)


def test_mixed_labels_are_those_of_the_mixed_images():
    """mixup alone: pixel for pixel the mean that the targets say."""
    images = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    mixed, targets = Mix(2, mixup=1.0)(images, torch.tensor([0, 1]), 3)
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), targets[:, 1])
    assert 0 < targets[0, 1] < 1


@pytest.mark.parametrize("shares", [(), (0.0, 1.0), (0.25, 0.5), (0.3, 0.35)])
def test_possible_cutmix_shares_are_accepted(shares):
    check_cutmix_minmax(shares, 32)
    mix = Mix(2, cutmix=1.0, cutmix_minmax=shares)
    for seed in range(20):
        mix(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]), seed)


@pytest.mark.parametrize("shares", [(0.3,), (0.1, 0.2, 0.3), (2.0, 3.0), (0.9, 0.1), (0.3, 0.31), (-0.5, 0.5)])
def test_impossible_cutmix_shares_are_refused(shares):
    with pytest.raises(InputError, match="--cutmix_minmax"):
        check_cutmix_minmax(shares, 32)
