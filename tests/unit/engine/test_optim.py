"""Learning rates and parameter groups against upstream's numbers."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from beit3_vqa.config.options import OptimConfig
from beit3_vqa.engine.optim import (
    CosineSchedule,
    ModelEma,
    load_optimizer,
    make_optimizer,
    make_schedule,
    parameter_groups,
)
from beit3_vqa.models.names import HEADS, build_model

UPSTREAM = json.loads((Path(__file__).parents[2] / "golden" / "upstream.json").read_text())


def model(head="vqacustom"):
    return build_model(f"beit3_base_patch16_64_{head}", embed_dim=48, depth=3, num_heads=4, vocab_size=130)


def scales(options, head="vqacustom") -> dict[str, float]:
    made = model(head)
    names = {id(p): name for name, p in made.named_parameters()}
    return {names[id(p)]: g["lr_scale"] for g in parameter_groups(made, options) for p in g["params"]}


@pytest.mark.parametrize("patience", [0, 1, 2])
def test_plateau_schedule_lowers_the_rate_when_torch_does(patience):
    losses = [1.0, 0.9, 0.89995, 0.95, 0.9, 0.5, 0.6, 0.6, 0.6, 0.6, 0.49, 0.7, 0.7, 0.7, 0.7, 0.7]
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, min_lr=2e-4)
    options = OptimConfig(lr=1e-3, min_lr=2e-4, sched="plateau", plateau_patience=patience, warmup_epochs=0.0)
    rates = []
    for done in range(len(losses) + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        assert make_schedule(options, 10, losses[:done])(10 * done) == pytest.approx(rates[-1], rel=1e-12)
        if done < len(losses):
            torchs.step(losses[done])
    assert len(set(rates)) > 1


def test_plateau_schedule_warms_up():
    options = OptimConfig(lr=1e-3, sched="plateau", warmup_epochs=1.0)
    assert [make_schedule(options, 5)(step) for step in (0, 2, 4, 5)] == pytest.approx([0, 5e-4, 1e-3, 1e-3])


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_of_every_head_has_a_place_and_layer_decay_is_upstreams(head):
    got = scales(OptimConfig(layer_decay=0.9), head)
    assert set(got) == {name for name, _ in model(head).named_parameters()}
    wanted = UPSTREAM["layer_lr"]["layer_decay_0.9"]
    common = set(wanted) & set(got)
    assert len(common) >= 5
    for name in common:
        assert got[name] == pytest.approx(wanted[name], rel=1e-12), name
    for name, scale in got.items():
        if not name.startswith("beit3."):
            assert scale == 1.0, name


def test_a_parameter_without_a_depth_and_a_name_without_a_parameter_are_errors():
    made = model()
    made.beit3.encoder.register_parameter("gate", nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match=r"beit3\.encoder\.gate has no depth"):
        parameter_groups(made, OptimConfig())
    made = model()
    made.no_weight_decay = lambda: {"beit3.cls"}
    with pytest.raises(ValueError, match=r"isn't a parameter: beit3\.cls"):
        parameter_groups(made, OptimConfig())


def test_head_weight_equals_upstreams():
    got = scales(OptimConfig(layer_decay=1.0, task_head_lr_weight=20))
    for name, scale in UPSTREAM["layer_lr"]["task_head_lr_weight_20"].items():
        if name in got:
            assert got[name] == scale, name


def test_layer_decay_and_head_weight_compose():
    got = scales(OptimConfig(layer_decay=0.9, task_head_lr_weight=20))
    assert got["head.0.weight"] == pytest.approx(20)
    assert got["pooler.dense.weight"] == 1
    assert got["beit3.text_embed.weight"] == pytest.approx(0.9**4)


def test_every_parameter_is_in_exactly_one_group_and_decay_is_upstreams():
    made = model()
    groups = parameter_groups(made, OptimConfig())
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in made.parameters())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for name, p in made.named_parameters():
        exempt = p.ndim == 1 or name in ("beit3.encoder.embed_positions.A.weight", "beit3.vision_embed.cls_token")
        assert (id(p) in decayed) == (not exempt), name


def test_cosine_schedule_equals_upstreams():
    args = UPSTREAM["cosine"]["args"]
    options = OptimConfig(
        lr=args["base_value"], min_lr=args["final_value"], epochs=args["epochs"], warmup_epochs=args["warmup_epochs"]
    )
    schedule = make_schedule(options, args["niter_per_ep"])
    assert [schedule(step) for step in range(20)] == pytest.approx(UPSTREAM["cosine"]["values"], rel=1e-12, abs=1e-18)


def test_warmup_defaults_to_upstreams_five_epochs_but_never_eats_a_short_run():
    assert make_schedule(OptimConfig(epochs=20), 100).warmup_steps == 500
    assert make_schedule(OptimConfig(epochs=4), 100).warmup_steps == 100
    assert make_schedule(OptimConfig(epochs=4, warmup_epochs=5), 100).warmup_steps == 400
    assert make_schedule(OptimConfig(warmup_epochs=0, warmup_steps=7), 100).warmup_steps == 7  # upstream ignores these


def test_cosine_schedule_ends_at_min_lr():
    schedule = CosineSchedule(1.0, 0.1, 2, 10)
    assert schedule(10) == pytest.approx(0.1)
    assert max(map(schedule, range(10))) == 1.0


def test_optimizer_states_of_other_implementations_load():
    torch.manual_seed(0)
    source = nn.Linear(3, 2)
    unfused = torch.optim.AdamW([{"params": list(source.parameters()), "lr_scale": 1.0}], lr=0.1, foreach=True)
    source(torch.ones(1, 3)).sum().backward()
    unfused.step()
    target = nn.Linear(3, 2)
    fused = torch.optim.AdamW([{"params": list(target.parameters()), "lr_scale": 1.0}], lr=0.1, fused=True)
    load_optimizer(fused, unfused.state_dict())
    assert fused.param_groups[0]["fused"]
    target.load_state_dict(source.state_dict())
    for made, optimizer in ((source, unfused), (target, fused)):
        made.zero_grad()
        made(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    torch.testing.assert_close(source.weight, target.weight)


def test_optimizer_of_other_shapes_is_refused():
    optimizer = make_optimizer(model(), OptimConfig())
    state = optimizer.state_dict()
    right = optimizer.param_groups[0]["params"][0].shape
    for first, second in ((torch.zeros(2), torch.zeros(2)), (torch.zeros(right), torch.zeros(2))):
        state["state"] = {0: {"exp_avg": first, "exp_avg_sq": second, "step": torch.tensor(1.0)}}
        with pytest.raises(ValueError, match="shape"):
            load_optimizer(optimizer, state)


def test_moving_average_follows_the_weights_and_is_swapped_in_and_out():
    made = nn.Linear(1, 1, bias=False)
    nn.init.constant_(made.weight, 1.0)
    ema = ModelEma(made, decay=0.9)
    nn.init.constant_(made.weight, 2.0)
    ema.update()
    assert ema.average["weight"].item() == pytest.approx(1.9)  # the first weights are soon forgotten
    nn.init.constant_(made.weight, 1.0)
    ema = ModelEma(made, decay=0.9)
    nn.init.constant_(made.weight, 2.0)
    ema.updates = 1000
    ema.update()
    assert ema.average["weight"].item() == pytest.approx(1.1)
    with ema.use_ema_weights():
        assert made.weight.item() == pytest.approx(1.1)
    assert made.weight.item() == 2.0
