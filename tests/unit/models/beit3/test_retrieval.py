"""Retrieval: upstream's features and loss, torchscale's forward pass."""

import pytest
import torch
import torch.nn.functional as F

from beit3_vqa.models.beit3.pretrained import load_pretrained
from beit3_vqa.models.names import build_model
from beit3_vqa.runtime.libraries import BEiT3
from beit3_vqa.tasks.losses import contrastive_loss
from tests.helpers.upstream import CONFIG, SIZES, UPSTREAM, fill, golden_inputs

CASE = UPSTREAM["cases"]["retrieval"]


def retriever(**overrides):
    return build_model("beit3_base_patch16_64_retrieval", **{**SIZES, **overrides})


def test_retrieval_parameters_have_upstreams_names_and_shapes():
    model = retriever()
    assert sum(p.numel() for p in model.parameters()) == UPSTREAM["params"]["retrieval"]
    new = {n: list(v.shape) for n, v in model.state_dict().items() if n not in UPSTREAM["state_dict_keys_vqa"]}
    dim = CONFIG["dim"]
    norm = {f"beit3.encoder.layer_norm.{side}.{kind}": [dim] for side in "AB" for kind in ("weight", "bias")}
    heads = {f"{name}_head.weight": [dim, dim] for name in ("vision", "language")}
    assert new == {**norm, **heads, "logit_scale": []}
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)


@pytest.mark.parametrize("attention", ["auto", "reference"])
def test_features_and_loss_equal_upstreams(attention):
    model = fill.fill(retriever(attention=attention)).eval()
    image, text, padding_mask = golden_inputs()
    with torch.no_grad():
        vision, none = model(image=image, only_infer=True)
        nothing, language = model(text_description=text, padding_mask=padding_mask, only_infer=True)
        outputs = model(image, text, padding_mask)
    assert none is nothing is None
    torch.testing.assert_close(vision, torch.tensor(CASE["vision"]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(language, torch.tensor(CASE["language"]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs[:, 0], vision * model.logit_scale.exp(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs[:, 1], language, atol=1e-6, rtol=1e-6)
    assert contrastive_loss(outputs).item() == pytest.approx(CASE["loss"], abs=1e-5)
    with pytest.raises(ValueError, match="only_infer"):
        model(image=image)


def test_loss_and_gradients_equal_torchscales():
    """Against upstream's formula on torchscale's own forward pass."""
    image, text, padding_mask = golden_inputs()
    torch.manual_seed(0)
    model = retriever().train()

    def reference():
        pictures = BEiT3.forward(model.beit3, visual_tokens=image)["encoder_out"][:, 0]
        texts = BEiT3.forward(model.beit3, textual_tokens=text, text_padding_position=padding_mask)["encoder_out"][:, 0]
        vision = F.normalize(model.vision_head(pictures), dim=-1)
        language = F.normalize(model.language_head(texts), dim=-1)
        logits = model.logit_scale.exp() * vision @ language.T
        return (F.cross_entropy(logits, torch.arange(3)) + F.cross_entropy(logits.T, torch.arange(3))) / 2

    found = []
    for loss_fn in (reference, lambda: contrastive_loss(model(image, text, padding_mask))):
        model.zero_grad()
        loss = loss_fn()
        loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (expected, gradients), (ours, own) = found
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (own[name] - gradient).abs().max() <= 2e-5 * largest, name  # torch 2.6 rounds to 1.1e-5


def test_pretrained_heads_are_taken_if_they_fit():
    """As the official files are: masked words beside the backbone, or (itc) the contrastive heads."""
    captioner = fill.fill(build_model("beit3_base_patch16_64_captioning", **SIZES))
    pretrained = captioner.state_dict()
    again = build_model("beit3_base_patch16_64_captioning", **SIZES)
    assert not load_pretrained(again, pretrained, "x").new
    assert torch.equal(again.mlm_head.weight, captioner.mlm_head.weight)
    model = retriever()
    report = load_pretrained(model, pretrained, "x")
    assert report.new == ["logit_scale", "language_head.weight", "vision_head.weight"]
    assert [name.split()[0] for name in report.dropped] == ["mlm_head.weight", "mlm_head.bias"]
    itc = fill.fill(retriever(), salt="itc").state_dict()
    load_pretrained(model, itc, "x")
    assert torch.equal(model.logit_scale, itc["logit_scale"])
    assert load_pretrained(again, itc, "x").new == ["mlm_head.weight", "mlm_head.bias"]
