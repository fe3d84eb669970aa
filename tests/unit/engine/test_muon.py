"""Muon against torch's own, and its place among the optimizers."""

import pytest
import torch
from torch import nn

from beit3_vqa.config.options import OptimConfig
from beit3_vqa.engine.muon import BUFFER, STEP_SIZE, Muon, orthogonalize
from beit3_vqa.engine.optim import load_optimizer, make_optimizer, parameter_groups
from beit3_vqa.errors import InputError
from beit3_vqa.models.names import build_model
from tests.helpers.options import build_config

SHAPES = [(12, 12), (48, 12), (12, 48), (12, 12)]


def model():
    return build_model("beit3_base_patch16_64_vqacustom", embed_dim=48, depth=3, num_heads=4, vocab_size=130)


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step + 1)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it since 2.9")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_steps_are_those_of_torchs_muon(dtype):
    ours, theirs = matrices(), matrices()
    group = {"params": ours, "muon": True, "weight_decay": 0.1, "lr_scale": 1.0}
    muon = Muon([group], dtype, lr=0.01, betas=(0.9, 0.98), eps=1e-8)
    # Its steps have a root mean square of 0.2 learning rates; the decay is a product with the learning rate.
    factor = STEP_SIZE / 0.2
    torchs = torch.optim.Muon(
        theirs, lr=0.01 * factor, weight_decay=0.1 / factor, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(5):
        for own, other, gradient in zip(ours, theirs, gradients(step), strict=True):
            own.grad, other.grad = gradient.clone(), gradient.clone()
        muon.step()
        torchs.step()
    for own, other, begun in zip(ours, theirs, matrices(), strict=True):
        # Torch computes the products in bf16, whatever ours are in.
        assert (own - other).norm() < 0.03 * (other - begun).norm()
        torch.testing.assert_close(muon.state[own][BUFFER], torchs.state[other][BUFFER])


def test_a_convolution_is_a_matrix_with_a_row_for_each_filter():
    gradient = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    made = []
    for shape in ((8, 3, 4, 4), (8, 48)):
        made.append(nn.Parameter(torch.zeros(shape)))
        muon = Muon([{"params": made[-1:], "muon": True, "weight_decay": 0.0}], torch.float32, lr=0.1, betas=(0.9, 0.9))
        made[-1].grad = gradient.reshape(shape)
        muon.step()
    assert torch.equal(made[0].flatten(1), made[1])
    assert made[1].norm() > 0


def test_directions_are_nearly_orthogonal_whatever_the_size_of_the_gradient():
    for scale in (1e-12, 1.0, 1e6):
        rows = orthogonalize(scale * torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(0)), torch.float32)
        values = torch.linalg.svdvals(rows)
        assert values.min() > 0.6
        assert values.max() < 1.25
    assert not orthogonalize(torch.zeros(1, 2, 2), torch.float32).any()
    assert orthogonalize(torch.full((1, 8, 32), 1e-25), torch.float32).abs().max() < 1e-6


def test_only_the_matrices_of_the_layers_and_the_patches_projection_go_to_muon():
    made = model()
    names = {id(p): name for name, p in made.named_parameters()}
    groups = parameter_groups(made, OptimConfig(opt="muon", layer_decay=0.9))
    by_muon = {names[id(p)] for group in groups if group["muon"] for p in group["params"]}
    layers = {name for name, p in made.named_parameters() if "encoder.layers." in name and p.ndim == 2}
    assert by_muon == layers | {"beit3.vision_embed.proj.weight"}
    assert len(layers) == 3 * 2 * 6
    everything = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(everything) == sorted(names.values())


def take_steps(made: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in made.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_a_loaded_state_goes_on_bit_for_bit():
    options = OptimConfig(opt="muon")
    torch.manual_seed(0)
    straight = model()
    take_steps(straight, make_optimizer(straight, options), range(4))
    torch.manual_seed(0)
    first = model()
    optimizer = make_optimizer(first, options)
    take_steps(first, optimizer, range(2))
    second = model()
    second.load_state_dict(first.state_dict())
    resumed = make_optimizer(second, options)
    load_optimizer(resumed, optimizer.state_dict())
    take_steps(second, resumed, range(2, 4))
    for name, value in straight.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_a_parameter_without_a_gradient_stays():
    made = model()
    optimizer = make_optimizer(made, OptimConfig(opt="muon"))
    weight = made.beit3.encoder.layers[0].ffn.A.fc1.weight
    before = weight.clone()
    made.zero_grad()
    optimizer.step()
    assert torch.equal(weight, before)
    assert weight not in optimizer.state


@pytest.mark.parametrize(("saved", "wanted"), [("adamw", "muon"), ("muon", "adamw")])
@pytest.mark.parametrize("layer_decay", [0.9, 1.0])
def test_the_state_of_the_other_optimizer_is_refused(saved, wanted, layer_decay):
    made = model()
    optimizer = make_optimizer(made, OptimConfig(opt=saved, layer_decay=layer_decay))
    take_steps(made, optimizer, range(1))
    with pytest.raises(ValueError, match=r"groups|another optimizer"):
        load_optimizer(make_optimizer(made, OptimConfig(opt=wanted, layer_decay=layer_decay)), optimizer.state_dict())


def test_a_momentum_in_the_place_of_moments_is_refused():
    made = model()
    optimizer = make_optimizer(made, OptimConfig(opt="muon"))
    take_steps(made, optimizer, range(1))
    state = optimizer.state_dict()
    places = {group["muon"]: group["params"][0] for group in state["param_groups"]}
    state["state"][places[True]] = state["state"][places[False]]
    with pytest.raises(ValueError, match="another optimizer"):
        load_optimizer(make_optimizer(made, OptimConfig(opt="muon")), state)


@pytest.mark.parametrize("strategy", ["zero1", "fsdp"])
def test_strategies_that_split_matrices_are_refused(strategy):
    with pytest.raises(InputError, match=r"--opt muon needs whole matrices .* --strategy ddp"):
        build_config({"opt": "muon", "strategy": strategy})
