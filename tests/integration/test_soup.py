"""`beit3-vqa soup` by the command line: both families, with adapters and without, and what can't be averaged."""

import json
import shutil

import pytest
import torch

import beit3_vqa
from beit3_vqa.cli.main import main
from beit3_vqa.data.predictions import read_info
from beit3_vqa.engine.checkpoint.manifest import get_sha256, verify
from tests.helpers.commands import finetune

ON_CPU = ["--device", "cpu", "--precision", "fp32", "--num_workers", "0"]


def soup(scpc, out, *members, flags=()):
    data = ["--data_path", str(scpc / "data"), "--output_dir", str(out)]
    return ["soup", *map(str, members), *data, *ON_CPU, *flags]


def weights(path, key="model"):
    return torch.load(path, weights_only=True)[key]


def equal(one, two):
    assert one.keys() == two.keys()
    return all(one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def two(trained):
    return trained / "checkpoint-0.pth", trained / "checkpoint-1.pth"


def test_a_soup_of_one_checkpoint_is_that_checkpoint_bit_for_bit(scpc, two, tmp_path, capsys):
    content = torch.load(two[0], weights_only=True)
    content["model"]["head.0.bias"][:2] = torch.tensor([-0.0, 0.0])
    torch.save(content, tmp_path / "one.pth")
    shutil.copy(two[0].parent / "tokenizer.spm", tmp_path)
    for method in ("uniform", "greedy", "learned"):
        out = tmp_path / method
        assert main(soup(scpc, out, tmp_path / "one.pth", flags=["--method", method])) == 0
        ours = weights(out / "checkpoint-best.pth")
        assert equal(ours, content["model"])
        assert torch.signbit(ours["head.0.bias"][:2]).tolist() == [True, False]


def test_two_checkpoints_become_their_mean_and_serve_as_one_everywhere(scpc, two, tmp_path, capsys):
    out = tmp_path / "soup"
    assert main(soup(scpc, out, *two, flags=["--method", "uniform", "--keep_anyway"])) == 0
    said = capsys.readouterr().out
    best = out / "checkpoint-best.pth"
    assert f"wrote {best}: the uniform soup" in said
    one, other, ours = weights(two[0]), weights(two[1]), weights(best)
    mean = {name: ((one[name].double() + other[name].double()) / 2).float() for name in one}
    assert equal(ours, mean)
    assert {path.name for path in out.iterdir()} == {
        "checkpoint-best.pth",
        "checkpoint-best.json",
        "soup.json",
        "tokenizer.spm",
    }
    content = torch.load(best, weights_only=True)
    made = [{"file": str(p), "sha256": get_sha256(p), "weights_of": "model", "weight": 0.5} for p in two]
    assert content["soup"]["members"] == made
    assert json.loads((out / "checkpoint-best.json").read_text())["soup"] == content["soup"]
    assert verify(best) == ""
    # The table: each member's score is what --eval finds, and so is the soup's.
    table = json.loads((out / "soup.json").read_text())
    assert table["sha256"] == get_sha256(best)
    found = [single["score"] for single in table["singles"]] + [table["soups"]["uniform"]["score"]]
    for number, (path, score) in enumerate(zip([*two, best], found, strict=True)):
        folder = tmp_path / f"eval-{number}"
        evaluate = finetune(scpc, folder, "--eval", "--split", "val", "--resume", str(path))
        assert main(evaluate) == 0
        metrics = json.loads((folder / "metrics_val.json").read_text())
        assert metrics["accuracy"] == score
        assert f"{score:6.2f}" in said
    # As any checkpoint: single questions, an ensemble, an export, a new training.
    image = next((scpc / "images").iterdir())
    predictor = beit3_vqa.load(best, device="cpu", precision="fp32")
    answer = predictor.predict(image, "What is it?", list("wxyz"))
    assert answer.answer in "ABCD"
    submission = tmp_path / "e" / "submission.csv"
    assert main(["ensemble", str(out), "--output", str(submission), "--data_path", str(scpc / "data"), *ON_CPU]) == 0
    parameters = read_info(tmp_path / "e" / "predictions.json").parameters
    assert parameters == sum(value.numel() for value in one.values())
    assert main(["export", "--checkpoint", str(best), "--output_dir", str(tmp_path / "x")]) == 0
    again = beit3_vqa.load(tmp_path / "x", device="cpu", precision="fp32").predict(image, "What is it?", list("wxyz"))
    assert again.probabilities == answer.probabilities
    assert main(finetune(scpc, tmp_path / "new", "--finetune", str(best), "--epochs", "1")) == 0
    # A soup of soups, and of what export wrote.
    flags = ["--method", "uniform", "--keep_anyway"]
    assert main(soup(scpc, tmp_path / "again", tmp_path / "x", two[0], flags=flags)) == 0


def test_training_does_not_go_on_from_a_soup(scpc, two, tmp_path, capsys):
    assert main(soup(scpc, tmp_path / "soup", *two, flags=["--keep_anyway"])) == 0
    best = str(tmp_path / "soup" / "checkpoint-best.pth")
    assert main(finetune(scpc, tmp_path / "out", "--resume", best)) == 2
    assert f"--resume {best}: is a soup of checkpoints, which has no optimizer" in (said := capsys.readouterr().err)
    assert "start from it with --finetune" in said
    assert not (tmp_path / "out").exists()
