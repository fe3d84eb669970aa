"""What version 0.1.0 wrote is read, gone on with and agreed with (`tests/golden/make_0_1_0.py` made it)."""

import json
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from beit3_vqa.cli.main import main
from beit3_vqa.data.index import DatasetInfo
from beit3_vqa.models import names
from tests.golden import make_0_1_0 as made

FILES = Path(made.__file__).parent / "files_of_0_1_0"
ORACLE = json.loads((FILES / "oracle.json").read_text(encoding="utf-8"))
SAME_MACHINE = made.machine() == ORACLE["machine"]
# On another processor sums have another order; Adam divides by a gradient's size, so that a weight takes that along.
NEAR = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Return the current folder, with the files as 0.1.0 left them; models are of their width."""
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    for name in ("run/checkpoint-0.pth", "data/tokenizer.spm"):
        Path(tmp_path, name).write_bytes(lzma.decompress(Path(tmp_path, f"{name}.xz").read_bytes()))
    shutil.copy(tmp_path / "data/tokenizer.spm", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(names.SIZES, "tiny", names.Size(made.WIDTH, made.LAYERS, made.HEADS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def same(ours, theirs, where=""):
    """Assert that all that 0.1.0 wrote is there and equal, numbers to the last digit on the machine it ran on."""
    if isinstance(theirs, dict):
        for name, value in theirs.items():
            same(ours[name], value, f"{where}/{name}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            same(one, other, f"{where}/{place}")
    elif isinstance(theirs, float) and not SAME_MACHINE:
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5), where
    else:
        assert ours == theirs, where


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", [made.TRAIN, ["finetune", "--config", "run/config.json"]], ids=["flags", "config"])
def test_a_training_of_0_1_0_goes_on_to_the_same_weights(command, capsys):
    assert main(command) == 0
    assert "1 epoch done, 1 to go" in capsys.readouterr().out
    ours = made.learned(Path("run/checkpoint-1.pth"))
    if SAME_MACHINE:
        assert made.digests(ours) == ORACLE["sha256"]
    theirs = np.frombuffer(lzma.decompress(Path("oracle.f32.xz").read_bytes()), np.float32)
    np.testing.assert_allclose(np.concatenate([made.kept(ours[name]) for name in made.compared(ours)]), theirs, **NEAR)
    log = [json.loads(line) for line in Path("run/log.txt").read_text(encoding="utf-8").splitlines()]
    assert log[0] == json.loads((FILES / "run/log.txt").read_text(encoding="utf-8"))
    same(log[1], {name: value for name, value in ORACLE["log"].items() if name != "examples_per_second"})


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_checkpoint_of_0_1_0_answers_as_it_did(split):
    shutil.rmtree("results")
    assert main([*made.EVALUATE, "--split", split]) == 0
    suffix = "" if split == "test" else f"_{split}"
    same(read(f"results/predictions{suffix}.json"), read(FILES / f"results/predictions{suffix}.json"))
    if split == "val":
        same(read("results/metrics_val.json"), read(FILES / "results/metrics_val.json"))
    else:
        for name in ("submission.csv", "submit_vqacustom_test.json"):
            assert Path("results", name).read_bytes() == (FILES / "results" / name).read_bytes()


def test_predictions_of_0_1_0_score_the_same():
    assert main([*made.SCORE, "--json", "score.json"]) == 0
    same(read("score.json"), read(FILES / "results/score.json"))


def test_a_folder_that_0_1_0_prepared_is_read():
    info = DatasetInfo.read(Path("data"))
    assert info.image_root.resolve() == Path("images").resolve()
    rows = {path.name: path.read_bytes() for path in Path("data").glob("*.jsonl")}
    assert len(rows) == 3
    assert main([*made.TRAIN, "--output_dir", "new", "--epochs", "1"]) == 0
    assert main(made.PREPARE) == 0  # in its place: the files are known as a prepared folder's
    assert {path.name: path.read_bytes() for path in Path("data").glob("*.jsonl")} == rows
