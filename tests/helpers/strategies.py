"""Trains a small model in several processes by each strategy and compares it with one process: run by torchrun."""

import copy
import sys

import torch
import torch.distributed as dist

from beit3_vqa.config.options import OptimConfig
from beit3_vqa.data.types import Batch, Example
from beit3_vqa.engine.loop import Learner, StepReport, train_epoch
from beit3_vqa.engine.optim import CosineSchedule, ModelEma, load_optimizer, make_optimizer
from beit3_vqa.engine.parallel import STRATEGIES, SingleProcess, full_state_dict
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.distributed import processes
from beit3_vqa.runtime.precision import Precision
from tests.helpers.calls import calls_of_each_step
from tests.helpers.upstream import small_model

CPU = torch.device("cpu")
ROWS, BATCH, FREQ = 27, 4, 2  # of each process; with two of them, steps of 16 and 11, in batches of 8, 8, 8 and 3
# Rounding: gradients are sums over the examples in another order, equal to about 5e-7 of the largest.
# Adam divides by the gradient's own size: with its usual epsilon, rounding in a gradient of 1e-9 would decide the sign
# of a whole step. With this one an error in a gradient is lr / eps = 1 time as large in a weight, per step.
OPTIONS = OptimConfig(opt_eps=1e-3, clip_grad=0.5, layer_decay=0.8)
TOLERANCE = 2e-7


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(ROWS, 3, 64, 64, generator=generator)
    text = torch.randint(4, 60, (ROWS, 9), generator=generator)
    return image, text, torch.randint(0, 4, (ROWS,), generator=generator)


def batches(rank: int, size: int):
    image, text, labels = data()
    for start in range(0, ROWS, BATCH * size):
        count = min(BATCH * size, ROWS - start)
        begin, end = distributed.shard_range(count, rank, size)
        rows = slice(start + begin, start + max(end, begin + 1))
        examples = tuple(Example(str(i), "", "") for i in range(ROWS)[rows])
        yield Batch({"image": image[rows], "question": text[rows]}, examples, labels[rows])


class TorchPrecision(Precision):
    """As `Precision`, but autograd keeps what it always keeps."""

    def autocast(self):
        return torch.autocast("cpu", dtype=self.dtype)


def train(
    strategy: SingleProcess, freq: int, first: dict | None = None, precision: Precision | None = None
) -> tuple[dict, dict, dict, list[float]]:
    """An epoch; whole weights, moving average and moments after it, and the losses of its steps."""
    torch.manual_seed(0)
    model = small_model(vocab_size=64)
    wrapped = strategy.wrap(model)
    optimizer = make_optimizer(model, OPTIONS, strategy)
    ema = ModelEma(model, 0.9)
    if first is not None:
        load_optimizer(optimizer, copy.deepcopy(first))  # it goes on in the tensors it is given
    learner = Learner(
        wrapped,
        lambda outputs, batch: torch.nn.functional.cross_entropy(outputs, batch.targets),
        optimizer,
        precision or Precision("fp32", CPU),
        examples=ROWS,
        batch_size=BATCH,
        update_freq=freq,
        clip_grad=OPTIONS.clip_grad,
        ema=ema,
        strategy=strategy,
    )
    reports: list[StepReport] = []
    own_batches = batches(distributed.rank(), distributed.world_size())
    with calls_of_each_step() as calls:
        train_epoch(learner, own_batches, CosineSchedule(1e-3, 1e-3, 0, 10), reports.append)
    assert calls, "no optimizer step"
    assert all(names == ["engine.loop.train_epoch"] for names in calls), f"between the loop and the step: {calls}"
    losses = [float(report.loss) for report in reports]
    state = strategy.optimizer_state(optimizer)
    return full_state_dict(model.state_dict()), full_state_dict(ema.average), state, losses


def compare(name: str, ours, theirs) -> None:
    for what, one, two in zip(("weights", "average"), ours, theirs, strict=False):
        for key in one:
            error = (one[key] - two[key]).abs().max()
            assert error <= TOLERANCE, f"{name}: {what} {key} differ by {error:.1e}"
    for index, moments in theirs[2]["state"].items():
        for key in ("exp_avg", "exp_avg_sq"):
            error = (ours[2]["state"][index][key] - moments[key]).abs().max()
            largest = moments[key].abs().max()
            assert error <= 1e-4 * largest, f"{name}: {key} of {index} differs by {error:.1e} of {largest:.1e}"
    for one, two in zip(ours[3], theirs[3], strict=True):
        assert abs(one - two) <= 1e-5 * abs(two), f"{name}: losses {ours[3]}, not {theirs[3]}"


def run() -> None:
    size = int(sys.argv[1])
    # One process, before the others are known: as many examples a step.
    alone = train(SingleProcess(), FREQ * size)
    again = train(SingleProcess(), FREQ * size, alone[2])
    with processes(CPU, 60):
        assert distributed.world_size() == size
        for name, strategy in STRATEGIES.items():
            ours = train(strategy(), FREQ)
            if distributed.is_main():
                compare(name, ours, alone)
            # The state of one process goes on in several, whatever the strategy, as any strategy's does in another.
            resumed = train(strategy(), FREQ, alone[2])
            if distributed.is_main():
                compare(f"{name} resumed", resumed, again)
            # In bf16, where a sharded weight that is cast again must be gathered by then.
            ours, plain = (train(strategy(), FREQ, precision=kind("bf16", CPU)) for kind in (Precision, TorchPrecision))
            assert all(torch.equal(value, plain[0][key]) for key, value in ours[0].items()), f"{name} in bf16"
            dist.barrier()
            print(f"{name}: the same as one process", file=sys.stderr)


if __name__ == "__main__":
    run()
