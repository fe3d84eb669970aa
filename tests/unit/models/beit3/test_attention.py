"""The attention kernels against each other, against torchscale's, and which one is taken where."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from beit3_vqa.models.beit3 import multiway
from beit3_vqa.models.beit3.attention import ALIGNED, KERNELS, as_bias, pick
from tests.helpers.stand_in_gpu import needs_fake_gpu
from tests.helpers.upstream import ragged_batch, small_model


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries", [1, 7])
def test_sdpa_and_matmul_give_the_same_context(masked, queries):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, queries, 8), torch.randn(3, 2, 7, 8), torch.randn(3, 2, 7, 8)
    attended = torch.rand(3, 1, 1, 7) < 0.6 if masked else None
    if attended is not None:
        attended[..., 0] = True
    bias = None if attended is None else as_bias(attended, q.dtype)
    one, two = (kernel(q, k, v, bias) for kernel in KERNELS.values())
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


def test_a_bias_of_the_last_keys_equals_one_of_all():
    """With gradients, since `matmul` adds it past autograd."""
    torch.manual_seed(0)
    attended = torch.rand(3, 1, 1, 7) < 0.6
    attended[..., :4] = True
    inputs = [torch.randn(3, 2, 7, 8, requires_grad=True) for _ in range(3)]
    weights = torch.randn(3, 2, 7, 8)
    short = as_bias(attended, torch.float32, always=4)
    assert short.shape == (3, 1, 1, 3)
    found = []
    for kernel in KERNELS.values():
        for bias in (short, as_bias(attended, torch.float32)):
            context = kernel(*inputs, bias)
            found.append((context, *torch.autograd.grad((context * weights).sum(), inputs)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=1e-5)


@needs_fake_gpu
def test_rows_of_a_bias_are_aligned_on_a_gpu():
    attended = torch.tensor([[True, False, True]])[:, None, None, :]
    bias = as_bias(attended, torch.bfloat16)
    assert bias.tolist() == [[[[0.0, -math.inf, 0.0]]]]
    with FakeTensorMode():
        there = as_bias(torch.ones(2, 1, 5, 941, dtype=torch.bool, device="cuda"), torch.bfloat16)
    assert there.shape == (2, 1, 5, 941)
    assert there.stride()[-2] % ALIGNED == 0


@pytest.mark.parametrize("kind", ["auto", "sdpa", "matmul"])
def test_every_kernel_gives_torchscales_logits(kind):
    inputs = ragged_batch()
    logits = []
    for attention_kind in ("reference", kind):
        torch.manual_seed(0)
        model = small_model(attention=attention_kind).eval()
        with torch.no_grad():
            logits.append(model(*inputs))
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=1e-5)


def test_attention_reference_runs_torchscales_forward_pass(monkeypatch):
    monkeypatch.setattr(multiway, "_layer_forward", lambda *_, **__: pytest.fail("our forward pass"))
    model = small_model(attention="reference")
    image, text, padding_mask = ragged_batch()
    for given, tokens in (
        ((image, text, padding_mask), 26),
        ((image, None, None), 17),
        ((None, text, padding_mask), 9),
    ):
        whole = model.beit3.encode(*given)
        assert whole.shape[1] == tokens
        torch.testing.assert_close(model.beit3.encode(*given, first_token_only=True), whole[:, 0])


def test_auto_takes_matmul_only_for_few_weights_in_bf16_on_a_cpu():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert pick(cpu, torch.float32, 1000) == "sdpa"
    assert pick(cpu, torch.bfloat16, 1000) == "matmul"
    assert pick(cpu, torch.bfloat16, 10**10) == "sdpa"
    base_480 = 2 * 12 * 933 * 933
    assert pick(cpu, torch.bfloat16, base_480) == "sdpa"  # for the backward pass, every layer would keep its weights
    with torch.no_grad():
        assert pick(cpu, torch.bfloat16, base_480) == "matmul"
    assert pick(cuda, torch.bfloat16, 1000) == "sdpa"
