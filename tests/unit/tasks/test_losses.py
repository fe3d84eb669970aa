"""The losses by other formulas, and over processes."""

import subprocess

import pytest
import torch
import torch.nn.functional as F

from beit3_vqa.models.names import build_model
from beit3_vqa.tasks.losses import caption_loss, contrastive_loss
from tests.helpers.processes import ENVIRONMENT, ROOT, torchrun
from tests.helpers.upstream import CAPTIONING, captioner, fill, golden_inputs, masked_positions


def test_caption_loss_equals_upstreams_golden_value():
    model = fill.fill(captioner()).eval()
    image, text, padding_mask = golden_inputs()
    masked = masked_positions()
    with torch.no_grad():
        logits = model(image, text, padding_mask, language_masked_pos=masked)
    loss = caption_loss(logits, text[masked.bool()], smoothing=0.1, drop_worst=0.2)
    assert loss.item() == pytest.approx(
        CAPTIONING["loss_label_smoothing_0.1_drop_worst_0.2_after_0_at_iter_5"], abs=1e-5
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_caption_loss_equals_kl_divergence_from_smoothed_words(smoothing):
    torch.manual_seed(0)
    logits, labels = torch.randn(13, 40), torch.randint(0, 40, (13,))
    wanted = torch.full((13, 40), smoothing / 39).scatter(1, labels[:, None], 1 - smoothing)
    each = F.kl_div(logits.log_softmax(1), wanted, reduction="none").sum(1)
    torch.testing.assert_close(caption_loss(logits, labels, smoothing), each.mean())
    torch.testing.assert_close(caption_loss(logits, labels, smoothing, 0.25), each.sort().values[:9].mean())
    if not smoothing:
        torch.testing.assert_close(caption_loss(logits, labels), F.cross_entropy(logits, labels))


def test_caption_loss_of_one_word_is_positive_and_of_no_word_is_zero():
    logits = torch.randn(1, 40, requires_grad=True)
    assert caption_loss(logits, torch.tensor([3]), 0.1, 0.9) > 0
    empty = caption_loss(logits[:0], torch.tensor([], dtype=torch.long), 0.1, 0.9)
    assert empty == 0
    empty.backward()


def test_contrastive_loss_is_small_for_matched_rows_and_ignores_filling_rows():
    vectors = F.normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    matched = torch.stack([20 * vectors, vectors], dim=1)
    crossed = torch.stack([20 * vectors, vectors.roll(1, 0)], dim=1)
    assert contrastive_loss(matched) < 0.01
    assert contrastive_loss(crossed) > 5
    # A row that doesn't count: the placeholder of a process that has none.
    torch.testing.assert_close(contrastive_loss(torch.cat([matched, crossed[:1]]), 5), contrastive_loss(matched))


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_contrastive_loss_over_processes_equals_that_of_one(size):
    command = [*torchrun(size), "-m", "tests.helpers.gathering"]
    result = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stderr.count("the same as one process") == 4


def test_full_names_build_retrieval_and_captioning_models():
    for name in ("beit3_base_patch16_384_retrieval", "beit3_large_patch16_480_captioning"):
        with torch.device("meta"):
            assert sum(p.numel() for p in build_model(name).parameters()) > 2e8
