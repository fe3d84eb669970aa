"""The training step on a model small enough to check by hand."""

import math

import pytest
import torch
from torch import nn

from beit3_vqa.data.types import Batch, Example
from beit3_vqa.engine.loop import Learner, TrainingDiverged, steps_per_epoch, train_epoch
from beit3_vqa.engine.optim import CosineSchedule
from beit3_vqa.errors import InputError
from beit3_vqa.runtime.precision import Precision, pick_device

CPU = torch.device("cpu")


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x):
        return self.linear(x)


def batches(x, y, size):
    for start in range(0, len(x), size):
        rows = x[start : start + size]
        examples = tuple(Example(str(v), "", "", targets=((0, float(v)),)) for v in y[start : start + size])
        yield Batch({"x": rows}, examples)


def loss_fn(outputs, batch):
    wanted = torch.tensor([[e.targets[0][1]] for e in batch.examples])
    return (outputs - wanted).square().mean()


def run(x, y, size, update_freq, **options):
    torch.manual_seed(0)
    model = Linear()
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr_scale": 1.0}], lr=0.0)
    learner = Learner(
        model,
        loss_fn,
        optimizer,
        Precision("fp32", CPU),
        examples=len(x),
        batch_size=size,
        update_freq=update_freq,
        **options,
    )
    reports = []
    train_epoch(learner, batches(x, y, size), CosineSchedule(0.1, 0.1, 0, 100), reports.append)
    return model, reports


@pytest.mark.parametrize("rows", [24, 23, 17, 5, 1])
def test_accumulated_batches_equal_one_large_batch(rows):
    x, y = torch.randn(rows, 2), torch.randn(rows)
    large, reports = run(x, y, 12, 1)
    small, small_reports = run(x, y, 4, 3)
    assert [r.examples for r in reports] == [r.examples for r in small_reports]
    assert sum(r.examples for r in reports) == rows  # the last partial group is not lost
    assert len(reports) == steps_per_epoch(rows, 4, 3)
    for a, b in zip(reports, small_reports, strict=True):
        torch.testing.assert_close(a.loss, b.loss)
    torch.testing.assert_close(large.linear.weight, small.linear.weight)


def test_clipping_limits_the_step_and_reports_the_norm_before_it():
    x, y = 100 * torch.randn(4, 2), 100 * torch.randn(4)
    torch.manual_seed(0)
    before = Linear().linear.weight.clone()
    model, reports = run(x, y, 4, 1, clip_grad=0.5)
    assert reports[0].grad_norm > 0.5
    assert (model.linear.weight - before).norm() <= 0.1 * 0.5 + 1e-6


def adam_epoch(x, most=10, precision="fp32", kernel="fused"):
    """For each step its report, the weights after it, and the optimizer."""
    torch.manual_seed(0)
    model, found = Linear(), []
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "lr_scale": 1.0}], **{kernel: True})
    learner = Learner(model, loss_fn, optimizer, Precision(precision, CPU), len(x), 1, max_bad_steps=most)

    def after_step(report):
        found.append((report, {name: p.detach().clone() for name, p in model.named_parameters()}, optimizer))

    train_epoch(learner, batches(x, torch.zeros(len(x)), 1), CosineSchedule(0.1, 0.1, 0, 100), after_step)
    return found


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("how", [{}, {"kernel": "foreach"}, {"precision": "fp16"}])
def test_a_step_whose_gradient_is_not_finite_changes_nothing_and_is_counted(value, how):
    x = torch.ones(4, 2)
    x[1] = value
    steps = adam_epoch(x, **how)
    assert [report.bad.item() for report, *_ in steps] == [0, 1, 0, 0]
    assert all(torch.equal(steps[0][1][name], steps[1][1][name]) for name in steps[0][1])
    assert not torch.equal(steps[1][1]["linear.weight"], steps[2][1]["linear.weight"])
    assert {state["step"].item() for state in steps[-1][2].state_dict()["state"].values()} == {3}


def test_too_many_bad_steps_in_a_row_end_the_training():
    x = torch.full((9, 2), math.nan)
    x[2] = 1
    with pytest.raises(TrainingDiverged, match=r"3 steps in a row, last at step 5 \(learning rate 0.1, rows tensor\(0"):
        adam_epoch(x, most=3)
    assert len(adam_epoch(x[:5], most=3)) == 5


def test_bad_steps_in_a_row_are_counted_over_the_ends_of_epochs():
    model, x = Linear(), torch.full((2, 2), math.nan)
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "lr_scale": 1.0}])
    learner = Learner(model, loss_fn, optimizer, Precision("fp32", CPU), len(x), 1, max_bad_steps=3)

    def epoch():
        train_epoch(learner, batches(x, torch.zeros(2), 1), CosineSchedule(0.1, 0.1, 0, 100), lambda report: None)

    epoch()
    with pytest.raises(TrainingDiverged, match="3 steps in a row"):
        epoch()


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_autocast_computes_in_the_chosen_precision_on_a_cpu(name):
    precision = Precision(name, CPU)
    with precision.autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == precision.dtype


def test_devices_that_are_not_there_are_refused():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(InputError, match="--device"):
        pick_device("gpu0")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="not on this machine"):
            pick_device("cuda")
