"""torch.compile: the same numbers, or a line that says why not."""

import subprocess
import sys

import pytest
import torch

from beit3_vqa.models.compile import compile_model
from beit3_vqa.runtime.precision import Precision
from tests.helpers.commands import finetune
from tests.helpers.upstream import ragged_batch, small_model

# The compiler means to ignore what it is told of a layer's inputs; here warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_logits_and_gradients_equal_the_plain_ones(backend, capsys):
    torch.manual_seed(0)
    model = small_model()
    inputs = ragged_batch()
    results = []
    for compiled in (False, True):
        if compiled:
            names = list(model.state_dict())
            compile_model(model, backend)
            assert list(model.state_dict()) == names
        logits = model(*inputs)
        logits.square().sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((logits.detach(), gradients))
        model.zero_grad()
    assert "going on without it" not in capsys.readouterr().out
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-5, rtol=1e-5)
    largest = max(gradient.abs().max() for gradient in results[0][1].values())
    for name, gradient in results[0][1].items():
        assert (results[1][1][name] - gradient).abs().max() <= 1e-5 * largest, name


@pytest.mark.slow
def test_in_bf16_compiled_gradients_equal_the_plain_ones_too():
    torch.manual_seed(0)
    model, inputs = small_model(), ragged_batch()
    results = []
    for compiled in (False, True):
        if compiled:
            compile_model(model, "aot_eager")
        with Precision("bf16", torch.device("cpu")).autocast():
            logits = model(*inputs)
        logits.float().square().sum().backward()
        results.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    largest = max(gradient.abs().max() for gradient in results[0].values())
    for name, gradient in results[0].items():
        assert (results[1][name] - gradient).abs().max() <= 1e-2 * largest, name


def test_the_compiler_runs_three_times_however_many_layers_there_are():
    """Once for a layer that drops no path, as the first, for one that does, and for the last, of one token alone."""
    seen = []

    def count(graph, inputs):
        seen.append(graph)
        return graph.forward

    model = small_model(depth=6, drop_path_rate=0.5).train()
    compile_model(model, count)
    for _ in range(2):
        model(*ragged_batch())
    assert len(seen) == 3


def test_if_the_compiler_fails_the_model_runs_without_it(capsys):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    model, inputs = small_model().eval(), ragged_batch()
    expected = model(*inputs)
    compile_model(model, broken)
    for _ in range(2):
        torch.testing.assert_close(model(*inputs), expected)
    assert capsys.readouterr().out.count("going on without it") == 1


@pytest.mark.slow
def test_training_with_compile_ends_and_compiles(scpc, tmp_path):
    # A process of its own, since the compiler fails where warnings it means to ignore are errors, as they are here.
    command = [sys.executable, "-m", "beit3_vqa", *finetune(scpc, tmp_path / "out", "--epochs", "1", "--compile")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "epoch 0: val accuracy" in result.stdout
    assert "going on without it" not in result.stdout
