"""Other people's checkpoints."""

import argparse

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from beit3_vqa.errors import InputError
from beit3_vqa.models.pretrained import IMAGE_POSITIONS, interpolate_positions, load_pretrained, weights_of
from beit3_vqa.models.registry import build_model

SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 2, "vocab_size": 90}


def model(resolution=64, classes=4):
    return build_model(f"beit3_base_patch16_{resolution}_vqacustom", num_classes=classes, **SIZES)


def pretraining_checkpoint():
    """The layout of the official pre-trained files: backbone with its last norm, and the objectives' heads."""
    weights = {name: value for name, value in model().state_dict().items() if name.startswith("beit3.")}
    for side in "AB":
        weights[f"beit3.encoder.layer_norm.{side}.weight"] = torch.ones(32)
        weights[f"beit3.encoder.layer_norm.{side}.bias"] = torch.zeros(32)
    weights["mlm_head.weight"] = torch.randn(90, 32)
    weights["mim_head.weight"] = torch.randn(100, 32)
    return weights


def test_official_pretraining_layout():
    target = model()
    weights = pretraining_checkpoint()
    report = load_pretrained(target, weights, "x")
    assert {name.split(" ")[0].split(".")[0] for name in report.dropped} == {"mlm_head", "mim_head", "beit3"}
    assert all(name.startswith(("pooler.", "head.")) for name in report.new)
    torch.testing.assert_close(target.beit3.text_embed.weight, weights["beit3.text_embed.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_positions_are_interpolated_bicubically_in_float32(dtype):
    weights = {name: value.to(dtype) for name, value in model(64).state_dict().items()}
    target = model(96)
    report = load_pretrained(target, weights, "x")
    assert report.interpolated == "from 4x4 to 6x6 patches"
    table = weights[IMAGE_POSITIONS].float()
    grid = table[3:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).reshape(36, 32)
    got = target.beit3.encoder.embed_positions.A.weight
    assert got.dtype == torch.float32
    torch.testing.assert_close(got[3:], expected)
    torch.testing.assert_close(got[:3], table[:3])
    torch.testing.assert_close(interpolate_positions(table, 4)[3:], table[3:], atol=1e-6, rtol=1e-6)


def test_head_of_another_class_count_is_dropped_and_named():
    target = model(classes=4)
    fresh = {name: value.clone() for name, value in target.state_dict().items() if name.startswith("head.")}
    report = load_pretrained(target, model(classes=13).state_dict(), "x")
    assert any(name.startswith("head.3.weight (13, 64)") for name in report.dropped)
    assert report.new == [name for name in target.state_dict() if name.startswith("head.")]
    for name, value in fresh.items():
        torch.testing.assert_close(target.state_dict()[name], value)


def test_head_of_the_same_class_count_is_kept():
    source, target = model(), model()
    nn.init.normal_(source.head[0].weight)
    assert str(load_pretrained(target, source.state_dict(), "x")) == "every weight taken as it is"
    torch.testing.assert_close(target.head[0].weight, source.head[0].weight)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "not finite"])
def test_anything_else_is_an_error_that_names_it(change):
    weights = dict(model().state_dict())
    name = "beit3.encoder.layers.1.ffn.B.fc1.weight"
    if change == "missing":
        del weights[name]
    elif change == "not finite":
        weights[name] = torch.full_like(weights[name], float("nan"))
    elif change == "unexpected":
        name = "beit3.encoder.layers.7.ffn.B.fc1.weight"
        weights[name] = torch.zeros(3)
    else:
        weights[name] = torch.zeros(3, 3)
    target = model()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        load_pretrained(target, weights, "the file")
    for key, value in target.state_dict().items():
        assert torch.equal(value, before[key])  # nothing half-loaded


def test_allow_missing():
    weights = dict(model().state_dict())
    del weights["beit3.encoder.layers.1.ffn.B.fc1.weight"]
    report = load_pretrained(model(), weights, "x", allow_missing=r"layers\.1\.ffn")
    assert report.new == ["beit3.encoder.layers.1.ffn.B.fc1.weight"]
    with pytest.raises(InputError, match="regular expression"):
        load_pretrained(model(), weights, "x", allow_missing="(")


@pytest.mark.parametrize(
    "wrap", [lambda w: w, lambda w: {"model": w}, lambda w: {"module": w, "args": argparse.Namespace()}]
)
def test_wrappings(wrap):
    weights = model().state_dict()
    assert set(weights_of(wrap(weights))) == set(weights)
    assert set(weights_of(wrap({f"module.{name}": value for name, value in weights.items()}))) == set(weights)


def test_model_prefix():
    weights = {f"net.{name}": value for name, value in model().state_dict().items()}
    assert set(weights_of({"state": weights}, "state", "net.")) == set(model().state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "large"])
def test_full_size_official_layout_on_the_meta_device(size):
    with torch.device("meta"):
        source = build_model(f"beit3_{size}_patch16_224_vqacustom")
        target = build_model(f"beit3_{size}_patch16_480_vqacustom")
    weights = {n: v for n, v in source.state_dict().items() if n.startswith("beit3.")}
    weights["mlm_head.weight"] = torch.empty(64010, source.embed_dim, device="meta")
    report = load_pretrained(target, weights, size)
    assert report.interpolated == "from 14x14 to 30x30 patches"


def test_images_alone_need_no_language_side():
    """Upstream counts only the vision side's parameters in its fine-tuned ImageNet models."""
    source = build_model("beit3_base_patch16_64_imageclassification", num_classes=7, **SIZES)
    vision = {n: v for n, v in source.state_dict().items() if ".B." not in n and "text_embed" not in n}
    target = build_model("beit3_base_patch16_64_imageclassification", num_classes=7, **SIZES)
    report = load_pretrained(target, vision, "x.pth")
    assert report.new == []
    assert f"of no influence on this task: {len(source.state_dict()) - len(vision)} weights" in str(report)
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(source.eval()(image), target.eval()(image))
    with pytest.raises(InputError, match=r"missing: beit3\.encoder\.layers\.0\.ffn\.A\.fc1\.weight"):
        load_pretrained(target, {n: v for n, v in vision.items() if "layers.0.ffn.A.fc1" not in n}, "x.pth")
    with pytest.raises(InputError, match="missing"):
        load_pretrained(model(classes=7), vision, "x.pth")
