"""The precision that is chosen, and what a forward and a backward pass keep and compute in it."""

import gc
import json
import weakref
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torchscale.component.embedding import TextEmbedding

import beit3_vqa
from beit3_vqa.errors import InputError
from beit3_vqa.runtime import memory, precision
from beit3_vqa.runtime.precision import CPU_BF16_VARIABLE, Precision
from tests.helpers.upstream import ragged_batch, small_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("avx512", "amx", "vendor", "best"),
    [
        (True, True, "GenuineIntel", "bf16"),
        (True, False, "GenuineIntel", "fp32"),  # its float32 is twice as fast
        (True, False, "AuthenticAMD", "bf16"),
        (False, False, "AuthenticAMD", "fp32"),
    ],
)
def test_auto_takes_bf16_where_it_is_faster_unless_the_environment_says_otherwise(
    monkeypatch, tmp_path, avx512, amx, vendor, best
):
    for probe, has in (("_is_avx512_bf16_supported", avx512), ("_is_amx_tile_supported", amx)):
        monkeypatch.setattr(torch.cpu, probe, lambda has=has: has, raising=False)
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(precision, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.delenv(CPU_BF16_VARIABLE, raising=False)
    assert Precision("auto", CPU).name == best
    for said, name in (("1", "bf16"), ("0", "fp32")):
        monkeypatch.setenv(CPU_BF16_VARIABLE, said)
        assert Precision("auto", CPU).name == name
        assert Precision("fp32", CPU).name == "fp32"  # what is asked for is taken
    monkeypatch.setenv(CPU_BF16_VARIABLE, "yes")
    with pytest.raises(InputError, match="write 1"):
        Precision("auto", CPU)


def test_a_loaded_model_computes_as_precisely_as_asked(trained, scpc, monkeypatch):
    monkeypatch.setenv(CPU_BF16_VARIABLE, "1")
    image, best = next((scpc / "images").iterdir()), trained / "checkpoint-best.pth"
    rough, exact = beit3_vqa.load(best, "cpu"), beit3_vqa.load(best, "cpu", precision="fp32")
    assert (rough.components.precision.name, exact.components.precision.name) == ("bf16", "fp32")
    first, second = (model.predict(image, "What?", list("abcd")).probabilities for model in (rough, exact))
    assert first == pytest.approx(second, abs=0.05)
    assert first != pytest.approx(second, abs=1e-6)


def test_a_loaded_model_holds_one_copy_of_its_weights_in_the_type_of_its_products(trained, scpc):
    """And gives the very numbers that autocast gives, which casts them in each forward pass."""
    predictor, plain = (
        beit3_vqa.load(trained / "checkpoint-best.pth", device="cpu", precision=p) for p in ("bf16", "fp32")
    )
    modules = list(predictor.components.model.modules())
    held = {type(module): module.weight.dtype for module in modules if hasattr(module, "weight")}
    assert held.pop(torch.nn.Linear) == held.pop(torch.nn.Conv2d) == torch.bfloat16
    assert set(held.values()) == {torch.float32}
    assert held.keys() >= {torch.nn.LayerNorm, TextEmbedding}
    plain.components = replace(plain.components, precision=predictor.components.precision)
    row = json.loads((scpc / "data" / "vqacustom.test.jsonl").read_text().splitlines()[0])
    question = scpc / "images" / row["image_path"], row["question"], row["choices"]
    assert predictor.predict(*question).probabilities == plain.predict(*question).probabilities


@pytest.mark.parametrize("name", ["bf16", "fp16"])
@pytest.mark.parametrize("checkpoint_every", [0, 2])
def test_gradients_are_those_of_torch_s_own_autocast(name, checkpoint_every):
    model, inputs = small_model(), ragged_batch()
    model.beit3.checkpoint_every = checkpoint_every
    ours = Precision(name, CPU)
    gradients = []
    for context in (ours.autocast(), torch.autocast("cpu", dtype=ours.dtype)):
        with context:
            outputs = model(*inputs)
        outputs.float().square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad(set_to_none=True)
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


@pytest.mark.skipif(not memory.can_measure(CPU), reason="needs Linux")
def test_no_copy_of_the_weights_waits_for_the_backward_pass():
    layers = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in range(12)))
    copies = sum(layer.weight.numel() for layer in layers) * 2  # bytes in bf16: 100 MB
    x = torch.ones(2, 2048)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        layers(x)  # the first product brings code and buffers of its library with it
    before = memory.in_use(CPU)
    with Precision("bf16", CPU).autocast():
        outputs = layers(x)
        during = memory.in_use(CPU)
    assert during - before < copies / 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = layers(x)
    assert memory.in_use(CPU) - before > copies * 3 / 4
    del outputs


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_a_gpu_does_not_wait_for_hooks_of_saved_tensors(monkeypatch):
    hooks = Mock(side_effect=saved_tensors_hooks)
    monkeypatch.setattr(precision, "saved_tensors_hooks", hooks)
    for device in ("cuda", "cpu"):
        assert not hooks.called
        with Precision("bf16", torch.device(device)).autocast():
            pass
    assert hooks.called


@pytest.mark.parametrize("changed", ["a cast weight", "a weight as it is", "an activation"])
def test_what_changes_in_place_before_its_backward_pass_is_an_error(changed):
    """Its gradient would be that of another function."""
    linear, norm = torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)
    with Precision("bf16", CPU).autocast():
        hidden = linear(torch.ones(2, 4, requires_grad=True))
        loss = norm(hidden).float().square().sum()
    tensors = {"a cast weight": linear.weight, "a weight as it is": norm.weight, "an activation": hidden}
    with torch.no_grad():
        tensors[changed].mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_a_forward_pass_without_a_backward_pass_frees_its_memory():
    """As after running out of memory: a graph that holds itself would be there until the process ends."""
    model, inputs = small_model(), ragged_batch()
    with Precision("bf16", CPU).autocast():
        outputs = model(*inputs)
    nodes = [outputs.grad_fn]
    for node in nodes:  # it grows as it is walked
        nodes += [following for following, _ in node.next_functions if following and following not in nodes]
    freed = []
    for place, node in enumerate(nodes):
        # Nodes take no weak references, but each frees what is written in its `metadata`.
        node.metadata["test"] = note = Precision("fp32", CPU)
        weakref.finalize(note, freed.append, place)
    count = len(nodes)
    del outputs, node, nodes, note
    gc.collect()
    assert count > 100
    assert len(freed) == count


def test_an_unknown_precision_is_refused(trained):
    with pytest.raises(InputError, match=r"^--precision fp8: must be one of"):
        beit3_vqa.load(trained / "checkpoint-best.pth", "cpu", precision="fp8")
