"""Other people's checkpoints."""

import argparse

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from beit3_vqa.errors import InputError
from beit3_vqa.models.beit3.pretrained import IMAGE_POSITIONS, interpolate_positions, load_pretrained
from beit3_vqa.models.names import build_model
from beit3_vqa.models.weights import find_weights

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


def test_official_pretraining_heads_are_dropped_and_task_heads_stay_new():
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


def test_a_head_of_another_class_count_keeps_the_weights_that_fit():
    """As upstream, whose load_state_dict prints what has another shape, and takes the rest."""
    source, target = model(classes=13), model(classes=4)
    for parameter in source.head.parameters():
        nn.init.normal_(parameter)
    fresh = {name: value.clone() for name, value in target.state_dict().items()}
    report = load_pretrained(target, source.state_dict(), "x")
    assert report.dropped == ["head.3.weight (13, 64)", "head.3.bias (13,)"]
    assert report.kept == ["head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias"]
    assert report.new == ["head.3.weight", "head.3.bias"]
    assert "kept of the checkpoint's head: head.0.weight" in str(report)
    given = source.state_dict()
    for name, value in target.state_dict().items():
        torch.testing.assert_close(value, fresh[name] if name in report.new else given[name], msg=name)


def test_a_head_that_lacks_a_part_is_an_error():
    weights = model().state_dict()
    del weights["head.3.bias"]
    with pytest.raises(InputError, match=r"missing: head\.3\.bias"):
        load_pretrained(model(), weights, "x")


WRAPPERS = {
    "compiled": lambda module: torch.compile(module).state_dict(),
    "parallel": lambda module: nn.DataParallel(module).state_dict(),
    "parallel, compiled": lambda module: nn.DataParallel(torch.compile(module)).state_dict(),
    "compiled, parallel": lambda module: torch.compile(nn.DataParallel(module)).state_dict(),
    "lightning": lambda module: {"state_dict": nn.ModuleDict({"model": torch.compile(module)}).state_dict()},
    "a compiled part": lambda module: _with_compiled_part(module).state_dict(),
}


def _with_compiled_part(module):
    module.beit3.encoder = torch.compile(module.beit3.encoder)
    return module


@pytest.mark.parametrize("wrapped", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_names_are_removed_and_reported(wrapped, capsys):
    source = model()
    expected = {name: value.clone() for name, value in source.state_dict().items()}
    weights = find_weights({"epoch": 3, **wrapped(source)}, where="--finetune x")
    assert list(weights) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert capsys.readouterr().out.startswith("--finetune x: removed from the parameter names: ")


def test_the_models_own_names_are_left_alone(capsys):
    own = model().state_dict()
    assert list(find_weights({"model": own})) == list(own)
    assert capsys.readouterr().out == ""


def test_the_error_names_a_foreign_prefix_and_lists_unexpected_names_first():
    weights = {f"net.{name}": value for name, value in model().state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_pretrained(model(), weights, "x")
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("  unexpected: net.")
    assert "--model_prefix net." in lines[-1]


def test_the_error_says_which_keys_the_file_holds_if_weights_are_not_found():
    with pytest.raises(InputError, match=r"x: no weights .*'model_state_dict', 'args'.*--model_key"):
        find_weights({"model_state_dict": {"w": torch.ones(1)}, "args": {"lr": 1}}, where="x")
    with pytest.raises(InputError, match="x: --model_key ema isn't in it; it holds 'model'"):
        find_weights({"model": {"w": torch.ones(1)}}, "ema", where="x", required=True)


def test_head_of_the_same_class_count_is_kept():
    source, target = model(), model()
    nn.init.normal_(source.head[0].weight)
    assert str(load_pretrained(target, source.state_dict(), "x")) == "all weights were loaded unchanged"
    torch.testing.assert_close(target.head[0].weight, source.head[0].weight)


def test_a_new_head_keeps_nothing_of_the_checkpoints_even_if_it_fits():
    source, target = model(), model()
    fresh = {name: value.clone() for name, value in target.state_dict().items()}
    for value in source.state_dict().values():
        nn.init.normal_(value)
    report = load_pretrained(target, source.state_dict(), "x", new_head=True)
    heads = [name for name in fresh if name.startswith("head.")]
    assert report.new == heads
    assert report.kept == []
    assert len(report.dropped) == len(heads)
    for name, value in target.state_dict().items():
        assert torch.equal(value, fresh[name] if name in heads else source.state_dict()[name])


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "not finite"])
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(change):
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


def test_allow_missing_lets_matching_names_stay_new():
    weights = dict(model().state_dict())
    del weights["beit3.encoder.layers.1.ffn.B.fc1.weight"]
    report = load_pretrained(model(), weights, "x", allow_missing=r"layers\.1\.ffn")
    assert report.new == ["beit3.encoder.layers.1.ffn.B.fc1.weight"]
    with pytest.raises(InputError, match="regular expression"):
        load_pretrained(model(), weights, "x", allow_missing="(")


@pytest.mark.parametrize(
    "wrap", [lambda w: w, lambda w: {"model": w}, lambda w: {"module": w, "args": argparse.Namespace()}]
)
def test_weights_are_found_under_model_under_module_and_bare(wrap):
    weights = model().state_dict()
    assert set(find_weights(wrap(weights))) == set(weights)
    assert set(find_weights(wrap({f"module.{name}": value for name, value in weights.items()}))) == set(weights)


def test_model_prefix_is_removed_from_the_names():
    weights = {f"net.{name}": value for name, value in model().state_dict().items()}
    assert set(find_weights({"state": weights}, "state", "net.")) == set(model().state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "large"])
def test_full_size_official_weights_fit_a_higher_resolution(size):
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
    assert f"not used by this task: {len(source.state_dict()) - len(vision)} weights" in str(report)
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(source.eval()(image), target.eval()(image))
    with pytest.raises(InputError, match=r"missing: beit3\.encoder\.layers\.0\.ffn\.A\.fc1\.weight"):
        load_pretrained(target, {n: v for n, v in vision.items() if "layers.0.ffn.A.fc1" not in n}, "x.pth")
    with pytest.raises(InputError, match="missing"):
        load_pretrained(model(classes=7), vision, "x.pth")
