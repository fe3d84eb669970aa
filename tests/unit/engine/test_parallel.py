"""Several processes train as one does."""

import subprocess
import sys

import pytest

from tests.helpers.processes import ENVIRONMENT, ROOT, torchrun

SHARDED = """
import torch
from torch import distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from beit3_vqa.config.options import OptimConfig
from beit3_vqa.engine.optim import load_optimizer
from beit3_vqa.engine.parallel import ShardedOptimizer
distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
moments = {name: torch.zeros(4, 4) for name in ("exp_avg", "exp_avg_sq")}
state = {"state": {0: {"step": torch.tensor(3.0), **moments}}, "param_groups": [{"params": [0]}]}
with FakeTensorMode(allow_non_fake_inputs=True):
    weight = torch.nn.Parameter(torch.randn(4, 4, device="cuda"))
    group = {"params": [weight], "weight_decay": 0.0, "lr_scale": 1.0}
    optimizer = ShardedOptimizer().make_adamw([group], OptimConfig())
    load_optimizer(optimizer, state)
    print(*(f"{name} on {value.device}" for name, value in sorted(optimizer.optim.state[weight].items())))
"""


def test_zero1_has_its_counts_of_steps_on_the_gpu_after_resuming():
    """Where the fused kernel wants them; torch moves them to the CPU. The GPU is a stand-in that computes nothing."""
    result = subprocess.run(
        [sys.executable, "-c", SHARDED], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert result.stdout.split("\n")[0] == "exp_avg on cuda:0 exp_avg_sq on cuda:0 step on cuda:0", result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_every_strategy_trains_as_one_process_does(size):
    command = [*torchrun(size), "-m", "tests.helpers.strategies", str(size)]
    result = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    for name in ("ddp", "zero1", "fsdp"):
        assert result.stderr.count(f"{name}: the same as one process") == size
