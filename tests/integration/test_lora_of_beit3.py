"""Adapters in BEiT-3: both sides of the Multiway, under names that other checkpoints know."""

import json

import pytest
import torch

import beit3_vqa
from beit3_vqa.cli.main import main
from beit3_vqa.engine.checkpoint.io import read_checkpoint
from beit3_vqa.models.base import TaskShape
from beit3_vqa.models.beit3.family import BEiT3Family
from beit3_vqa.models.names import build_model
from beit3_vqa.runtime.precision import Precision
from tests.helpers.checkpoint_files import tensors
from tests.helpers.commands import finetune
from tests.helpers.options import build_config
from tests.helpers.processes import run_in_new_process

LAYERS, WIDTH, RANK = 3, 128, 4
LORA = ["--lora_rank", str(RANK), "--lora_dropout", "0.1", "--layer_decay", "1.0", "--epochs", "2"]


def lora_model(**options):
    given = {"model": "beit3_tiny_patch8_32", "vocab_size": 300, "lora_rank": RANK, "drop_path": 0.0, **options}
    return BEiT3Family(build_config(given), TaskShape("vqacustom", 4, True)).build(
        Precision("fp32", torch.device("cpu"))
    )


@pytest.mark.parametrize("attention", ["auto", "reference"])
def test_adapters_begin_at_nothing_and_are_on_both_sides(attention):
    torch.manual_seed(0)
    plain = build_model("beit3_tiny_patch8_32_vqacustom", vocab_size=300).eval()
    model = lora_model(attention=attention).eval()
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(".lora_" in name for name in missing)
    assert set(plain.state_dict()) == {name for name in model.state_dict() if ".lora_" not in name}
    inputs = {"image": torch.randn(2, 3, 32, 32), "question": torch.randint(4, 300, (2, 7))}
    torch.testing.assert_close(model(**inputs), plain(**inputs))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    adapters = {name for name in trained if ".lora_" in name}
    assert len(adapters) == LAYERS * 3 * 2 * 2  # q, v, out; A and B of the Multiway; A and B of the adapter
    assert {name.split(".self_attn.")[1].split(".lora_")[0] for name in adapters} == {
        f"{layer}.{side}" for layer in ("q_proj", "v_proj", "out_proj") for side in "AB"
    }
    assert {name.split(".")[0] for name in trained - adapters} == {"head", "pooler"}
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_B." in name and ".B.lora_B" in name:  # the language side alone
                value.normal_()
    assert not torch.allclose(model(**inputs), plain(**inputs))


@pytest.mark.slow
def test_adapters_train_resume_and_evaluate(scpc, trained, tmp_path, capsys):
    start = ["--finetune", str(trained / "checkpoint-best.pth"), *LORA]
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    run_in_new_process(finetune(scpc, straight, *start))
    run_in_new_process(finetune(scpc, parts, *start, "--stop_after_epochs", "1"))
    run_in_new_process(finetune(scpc, parts, *start))
    one, two = (read_checkpoint(folder / "checkpoint-1.pth", "x") for folder in (straight, parts))
    ours = dict(tensors(one))
    assert all(torch.equal(value, ours.pop(key)) for key, value in tensors(two))
    assert not ours
    before = torch.load(trained / "checkpoint-best.pth")["model"]
    changed = {name for name, value in before.items() if not torch.equal(value, one["model"][name])}
    assert {name.split(".")[0] for name in changed} == {"head", "pooler"}
    # Adapters, pooler, head; not the last layer's for the texts' queries and outputs, which nobody reads.
    assert len(one["optimizer"]["state"]) == LAYERS * 3 * 2 * 2 + 4 + 6 - 2 * 2
    evaluate = ["finetune", "--eval", "--split", "val", "--output_dir", str(straight), "--num_workers", "0"]
    assert main([*evaluate, "--data_path", str(scpc / "data"), "--device", "cpu"]) == 0
    best = straight / "checkpoint-best.pth"
    assert json.loads((straight / "metrics_val.json").read_text())["accuracy"] == torch.load(best)["best_score"]
    image = next((scpc / "images").iterdir())
    assert beit3_vqa.load(best, device="cpu", precision="fp32").predict(image, "What?", list("abcd")).answer in "ABCD"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--lora_rank", "4"], "give them with --finetune"),
        (["--lora_rank", "4", "--lora_targets", "fc3"], "Did you mean 'fc"),
        (["--lora_rank", "-1"], "at least 0"),
    ],
)
def test_adapters_without_what_they_need_are_refused(scpc, tmp_path, capsys, flags, says):
    assert main(finetune(scpc, tmp_path / "out", *flags)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
