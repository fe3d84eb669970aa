"""Averages of weights to the last bit, with adapters and without, and the gradient by the weights of the members."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from beit3_vqa.apps.soup import mixer as mixer_module
from beit3_vqa.apps.soup.mixer import Mixer
from beit3_vqa.config.options import ModelConfig
from beit3_vqa.models.base import TaskShape
from beit3_vqa.models.beit3.family import BEiT3Family
from beit3_vqa.models.clip.family import CLIPFamily
from beit3_vqa.models.lora import without_adapters
from beit3_vqa.models.names import HEADS, build_model
from beit3_vqa.runtime.precision import Precision
from tests.helpers.commands import CLIP
from tests.helpers.options import build_config

FP32 = Precision("fp32", torch.device("cpu"))
FOUR = TaskShape("vqacustom", 4, True)


class InMemory:
    """A member whose weights lie in no file."""

    def __init__(self, weights):
        self.held = weights

    def weights(self):
        return self.held


@pytest.fixture(params=[5, 2**24], ids=["small pieces", "one piece"])
def piece(request, monkeypatch):
    monkeypatch.setattr(mixer_module, "PIECE", request.param)


def small(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2))


def filled(members, weights, dtype=torch.float32):
    model = small(9)
    held = [InMemory({n: v.to(dtype) for n, v in m.state_dict().items()}) for m in members]
    Mixer(model, held, ModelConfig()).fill(weights)
    return model.state_dict()


def test_one_alone_is_itself_bit_for_bit(piece):
    one = small(0)
    with torch.no_grad():
        one[0].bias[:2] = torch.tensor([-0.0, 1e-45])  # a zero with a sign, and the smallest number there is
    for weights in ([1.0], [0.3]):
        ours = filled([one], weights)
        assert all(torch.equal(v.view(torch.int32), ours[n].view(torch.int32)) for n, v in one.state_dict().items())
    ours = filled([small(1), one, small(2)], [0.0, 0.7, 0.0])
    assert all(torch.equal(v.view(torch.int32), ours[n].view(torch.int32)) for n, v in one.state_dict().items())
    ours = filled([one, one, one], [1.0, 1.0, 1.0])
    assert all(torch.equal(v, ours[n]) for n, v in one.state_dict().items())


def test_a_mean_is_computed_in_float64_and_rounded_once(piece):
    models = [small(seed) for seed in range(3)]
    states = [model.state_dict() for model in models]
    for weights in ([1, 1, 0], [1, 1, 1], [0.2, 0.5, 0.3], [3, 1, 2]):
        ours = filled(models, [float(weight) for weight in weights])
        for name in states[0]:
            total = sum(w * state[name].double() for w, state in zip(weights, states, strict=True) if w)
            assert torch.equal(ours[name], (total / sum(weights)).float())
    half = filled(models[:2], [1.0, 1.0])
    for name, value in half.items():
        exact = (states[0][name] + states[1][name]) / 2
        assert (value - exact).abs().max() <= exact.abs().max() * 2**-23  # float32's own mean is rounded twice


def test_a_mean_in_float32_alone_would_differ():
    """If it didn't, the test above would hold for anything."""
    models = [small(seed) for seed in range(7)]
    ours = filled(models, [1.0] * 7)
    plain = {name: sum(model.state_dict()[name] for model in models) / 7 for name in ours}
    assert not all(torch.equal(value, plain[name]) for name, value in ours.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_type_are_averaged_as_they_are(piece, dtype):
    ours = filled([small(0), small(1)], [1.0, 1.0], dtype)
    for name, value in ours.items():
        one, two = (small(seed).state_dict()[name].to(dtype).double() for seed in range(2))
        assert torch.equal(value, ((one + two) / 2).float())


def test_slopes_are_those_of_autograd_through_the_average(piece):
    models = [small(seed).double() for seed in range(4)]
    model = small(9).double()
    mixer = Mixer(model, [InMemory(m.state_dict()) for m in models], ModelConfig())
    inputs, labels = torch.randn(20, 3, dtype=torch.float64), torch.randint(2, (20,))
    shares = torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=torch.float64, requires_grad=True)
    states = [m.state_dict() for m in models]
    mixed = {name: sum(share * state[name] for share, state in zip(shares, states, strict=True)) for name in states[0]}
    loss = nn.functional.cross_entropy(functional_call(model, mixed, (inputs,)), labels)
    (theirs,) = torch.autograd.grad(loss, shares)
    mixer.fill(shares.tolist())
    nn.functional.cross_entropy(model(inputs), labels).backward()
    torch.testing.assert_close(torch.tensor(mixer.slopes(), dtype=torch.float64), theirs)


def with_adapters(family, clip_folder, **options):
    """A function that makes models with adapters, no two alike, and the same model without adapters."""
    if family == "clip":
        given = {"model": f"{CLIP.name}_lora", "pretrained": str(clip_folder), "lora_rank": 4, **options}
        cls = CLIPFamily
    else:
        given = {"model": "beit3_tiny_patch8_32", "vocab_size": 300, "lora_rank": 4, **options}
        cls = BEiT3Family
    config = build_config(given)

    def model(seed):
        torch.manual_seed(0)  # the base is the same for all
        found = cls(config, FOUR).build(FP32)
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, value in found.named_parameters():
                if "lora_" in name or value.requires_grad:
                    value.normal_(std=0.3)
        return found.eval()

    plain = cls(build_config({**given, **without_adapters(config.model)}), FOUR).build(FP32).eval()
    return model, plain, config.model


def merged_by_peft(model):
    """The weights of a model after peft has added its adapters, under the names of the model without them."""
    for module in model.modules():
        if hasattr(module, "merge") and hasattr(module, "lora_A"):
            module.merge()
    return {name.replace(".base_layer", ""): v for name, v in model.named_parameters() if "lora_" not in name}


@pytest.mark.parametrize("options", [{}, {"lora_alpha": 3.0}], ids=["alpha 2r", "alpha 3"])
@pytest.mark.parametrize("family", ["beit3", "clip"])
def test_adapters_become_the_mean_of_the_merged_weights(family, clip_folder, monkeypatch, options):
    monkeypatch.setattr(mixer_module, "PIECE", 50_001)
    make, plain, config = with_adapters(family, clip_folder, **options)
    models = [make(seed) for seed in (1, 2, 3)]
    held = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    shares = [0.5, 0.2, 0.3]
    Mixer(plain, [InMemory(weights) for weights in held], config).fill(shares)
    theirs = [merged_by_peft(model) for model in models]
    ours = dict(plain.named_parameters())
    assert theirs[0].keys() == ours.keys()
    for name, value in ours.items():
        mean = sum(share * weights[name].double() for share, weights in zip(shares, theirs, strict=True))
        torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-6)
    # The mean of A and that of B are another model, far from it.
    mean_of_parts = make(1)
    parts = {n: sum(s * w[n] for s, w in zip(shares, held, strict=True)) for n in held[0]}
    mean_of_parts.load_state_dict(parts)
    adapted = [name for name in ours if not torch.equal(theirs[0][name], theirs[1][name]) and "_proj" in name]
    assert adapted
    away = merged_by_peft(mean_of_parts)
    assert all((away[name] - ours[name]).abs().max() > 0.1 for name in adapted)


@pytest.mark.parametrize("family", ["beit3", "clip"])
def test_a_model_with_adapters_answers_as_it_does_once_it_is_filled(family, clip_folder):
    make, plain, config = with_adapters(family, clip_folder)
    model = make(1)
    torch.manual_seed(5)
    if family == "clip":
        inputs = {"image": torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8), "image_of": torch.arange(2)}
        inputs |= {"text": torch.randint(3, 60, (4, 9)), "text_of": torch.tensor([[0, 1], [2, 3]])}
    else:
        inputs = {"image": torch.randn(2, 3, 32, 32), "question": torch.randint(4, 300, (2, 7))}
    with torch.no_grad():
        wanted = model(**inputs)
        Mixer(plain, [InMemory(model.state_dict())], config).fill([1.0])
        torch.testing.assert_close(plain(**inputs), wanted, rtol=1e-4, atol=1e-4)


def test_no_model_has_statistics_of_batches_or_integers_to_average(clip_folder):
    plain = [with_adapters(family, clip_folder)[1] for family in ("beit3", "clip")]
    for model in [build_model(f"beit3_tiny_patch8_32_{head}", vocab_size=300) for head in HEADS] + plain:
        assert not any(isinstance(module, _BatchNorm) for module in model.modules())
        assert all(value.is_floating_point() for value in model.state_dict().values())
