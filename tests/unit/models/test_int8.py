"""Linear layers of int8: near the exact ones, and refused where they aren't faster."""

import copy
import re

import pytest
import torch
from torch import nn

import beit3_vqa
from beit3_vqa.cli.main import main
from beit3_vqa.errors import InputError
from beit3_vqa.models.int8 import Int8Linear, round_linear_layers
from beit3_vqa.models.names import build_model
from beit3_vqa.runtime import precision
from beit3_vqa.runtime.precision import Precision
from tests.helpers.commands import finetune

CPU = torch.device("cpu")


@pytest.fixture
def vnni(monkeypatch):
    """Let any processor count as one that multiplies int8."""
    monkeypatch.setattr(precision, "_cpu_has_int8", lambda: True)


def make_layer(bias=True):
    torch.manual_seed(0)
    layer, x = nn.Linear(96, 40, bias=bias), torch.randn(2, 7, 96)
    x[0, 3] *= 1000  # a token whose numbers are large; it has a scale of its own
    x[1, 2] = 0
    return layer, x


def error(one, other):
    return ((one - other).norm(dim=-1) / other.norm(dim=-1)).max().item()


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_every_token_is_near_what_the_exact_layer_makes_of_it(bias):
    layer, x = make_layer(bias)
    exact = layer(x)
    if not bias:
        exact[1, 2] = 1  # zeros stay zeros: nothing to divide by
    ours = Int8Linear(layer)(x)
    assert ours.shape == exact.shape
    if not bias:
        assert torch.equal(ours[1, 2], torch.zeros(40))
        ours[1, 2] = 1
    assert error(ours, exact) < 0.02


@torch.no_grad()
def test_no_token_depends_on_the_others():
    layer, x = make_layer()
    ours = Int8Linear(layer)
    assert torch.equal(ours(x)[:, 4:], ours(x[:, 4:]))  # though token 3 is a thousand times as large


@torch.no_grad()
def test_the_sum_is_the_one_that_the_definition_gives():
    layer, x = make_layer()
    tokens, weight = x.double().view(-1, 96), layer.weight.double()
    of_token, of_output = (v.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127 for v in (tokens, weight))
    sums = (tokens / of_token).round() @ (weight / of_output).round().t()
    expected = sums * of_token * of_output.t() + layer.bias
    # A number may lie so near the middle between two that float32 rounds it to the other.
    assert error(Int8Linear(layer)(x).double().view(-1, 40), expected) < 1e-3


def test_under_autocast_the_output_has_the_type_of_a_product():
    layer, x = make_layer()
    ours = Int8Linear(layer)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == layer(x).dtype == torch.bfloat16
    assert ours(x).dtype == torch.float32


@torch.no_grad()
def test_a_rounded_model_has_as_many_numbers_and_its_head_is_exact():
    torch.manual_seed(0)
    model = build_model("beit3_tiny_patch8_32_vqacustom", vocab_size=300, num_classes=4).eval()
    rounded = copy.deepcopy(model)
    round_linear_layers(rounded)
    count, exact = (sum(parameter.numel() for parameter in m.parameters()) for m in (rounded, model))
    assert count == exact
    kinds = {name.split(".")[0] for name, module in rounded.named_modules() if type(module) is nn.Linear}
    assert kinds == {"pooler", "head"}
    image, text = torch.randn(3, 3, 32, 32), torch.randint(4, 300, (3, 9))
    features = [m.encode(image, text, first_token_only=True) for m in (rounded, model)]
    assert 0 < error(*features) < 0.02


def test_evaluation_takes_it_and_says_how_many_answers_change(trained, scpc, tmp_path, vnni, capsys):
    command = ["finetune", "--eval", "--task", "vqacustom", "--resume", str(trained / "checkpoint-best.pth")]
    command += ["--data_path", str(scpc / "data"), "--device", "cpu", "--output_dir", str(tmp_path / "out")]
    assert main([*command, "--precision", "int8"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"int8: rounding changes \d+ of the first 13 answers", said)
    assert said.count("test: 13 questions") == 1


def test_a_loaded_model_answers_nearly_as_the_exact_one(trained, scpc, vnni):
    image, best = next((scpc / "images").iterdir()), trained / "checkpoint-best.pth"
    ours, exact = (beit3_vqa.load(best, "cpu", precision=name) for name in ("int8", "fp32"))
    assert ours.components.precision.name == "int8"
    first, second = (model.predict(image, "What?", list("abcd")).probabilities for model in (ours, exact))
    assert first == pytest.approx(second, abs=0.05)
    assert first != pytest.approx(second, abs=1e-7)


def test_it_is_refused_where_it_is_no_faster_and_in_training(scpc, tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError, match=r"is for a CPU \(--device cpu\); on cuda:0 take auto"):
        Precision("int8", torch.device("cuda:0"))
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False, raising=False)
    with pytest.raises(InputError, match="and this one has none; take auto"):
        Precision("int8", CPU)
    monkeypatch.setattr(precision, "_cpu_has_int8", lambda: True)
    assert main(finetune(scpc, tmp_path / "out", "--precision", "int8", "--device", "cpu")) == 2
    assert "--precision int8 rounds a trained model" in capsys.readouterr().err
    assert not (tmp_path / "out" / "checkpoint-0.pth").exists()
