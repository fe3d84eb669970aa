"""The precision that `auto` takes on a CPU: the processor's, unless the environment says it."""

import json
from dataclasses import replace

import pytest
import torch
from torchscale.component.embedding import TextEmbedding

import beit3_vqa
from beit3_vqa.errors import InputError
from beit3_vqa.runtime import precision
from beit3_vqa.runtime.precision import CPU_BF16_VARIABLE, Precision

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


def test_an_unknown_precision_is_refused(trained):
    with pytest.raises(InputError, match=r"^--precision fp8: must be one of"):
        beit3_vqa.load(trained / "checkpoint-best.pth", "cpu", precision="fp8")
