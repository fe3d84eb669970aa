"""Reading what others wrote, safely."""

import argparse
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path

import pytest
import torch

from beit3_vqa.engine.checkpoint import options_of, read_checkpoint, save_checkpoint
from beit3_vqa.engine.manifest import is_rolling
from beit3_vqa.engine.run_folder import epoch_checkpoints, prune_checkpoints, set_previous_run_aside
from beit3_vqa.errors import InputError


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_plain_data_and_namespaces_are_read_without_trust(tmp_path):
    torch.save(
        {"model": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=1e-3, opt_betas=[0.9, 0.98])}, tmp_path / "x.pth"
    )
    content = read_checkpoint(tmp_path / "x.pth", "--finetune")
    assert options_of(content) == {"lr": 1e-3, "opt_betas": [0.9, 0.98]}


def test_a_malicious_pickle_does_not_run(tmp_path, capsys):
    canary = tmp_path / "canary"
    torch.save({"model": {"w": torch.ones(2)}, "extra": Malicious(canary)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="--trust_checkpoint"):
        read_checkpoint(tmp_path / "x.pth", "--finetune")
    assert not canary.exists()
    read_checkpoint(tmp_path / "x.pth", "--resume", trust=True)
    assert canary.exists()  # that is what trusting means, and it says so
    assert "trusted" in capsys.readouterr().out


def test_old_style_pickles(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert "w" in read_checkpoint(tmp_path / "x.pth", "--finetune")["model"]
    canary = tmp_path / "canary"
    torch.save({"extra": Malicious(canary)}, tmp_path / "y.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="--trust_checkpoint"):
        read_checkpoint(tmp_path / "y.pth", "--finetune")
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04" + b"\0" * 50])
@pytest.mark.parametrize("trust", [False, True])
def test_what_is_no_checkpoint(tmp_path, content, trust):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pth"):
        read_checkpoint(tmp_path / "x.pth", "--finetune", trust=trust)


@pytest.mark.parametrize("part", [0.2, 0.9, 0.999])
def test_a_file_cut_short(tmp_path, part):
    save_checkpoint(tmp_path / "x.pth", {"model": {"w": torch.randn(5000)}})
    whole = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(InputError, match=f"{len(whole):,} were written"):
        read_checkpoint(tmp_path / "x.pth", "--resume", trust=True)
    (tmp_path / "x.json").unlink()
    with pytest.raises(InputError, match="cut short or damaged"):
        read_checkpoint(tmp_path / "x.pth", "--resume", trust=True)


@pytest.mark.parametrize("manifest", [True, False])
def test_a_flipped_bit_in_a_tensor_is_found(tmp_path, manifest):
    save_checkpoint(tmp_path / "x.pth", {"model": {"w": torch.zeros(5000)}})
    content = bytearray((tmp_path / "x.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "x.pth").write_bytes(content)
    if not manifest:
        (tmp_path / "x.json").unlink()
        assert torch.load(tmp_path / "x.pth")["model"]["w"].any()  # torch itself doesn't notice
    with pytest.raises(InputError, match="SHA-256" if manifest else "CRC-32"):
        read_checkpoint(tmp_path / "x.pth", "--resume", trust=True)


def test_the_json_beside_a_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "x.pth", {"epoch": 3}, {"epoch": 3, "score": 71.5})
    manifest = json.loads((tmp_path / "x.json").read_text())
    content = (tmp_path / "x.pth").read_bytes()
    assert manifest["bytes"] == len(content)
    assert manifest["sha256"] == hashlib.sha256(content).hexdigest()
    assert (manifest["epoch"], manifest["score"]) == (3, 71.5)
    assert manifest["versions"]["torch"] == importlib.metadata.version("torch")
    for damaged in ("", "[]", '{"bytes": "x"}', "[" * 100_000):  # says nothing: the file's own checksums do
        (tmp_path / "x.json").write_text(damaged)
        assert read_checkpoint(tmp_path / "x.pth", "--resume") == {"epoch": 3}


def test_a_missing_file_names_its_neighbours(tmp_path):
    save_checkpoint(tmp_path / "checkpoint-3.pth", {})
    with pytest.raises(InputError, match=r"Did you mean .*checkpoint-3\.pth"):
        read_checkpoint(tmp_path / "checkpoint-2.pth", "--resume")


def test_saving_is_all_or_nothing(tmp_path):
    save_checkpoint(tmp_path / "x.pth", {"epoch": 1})
    with pytest.raises(Exception, match=r"(?i)pickle"):
        save_checkpoint(tmp_path / "x.pth", {"epoch": lambda: None})
    assert read_checkpoint(tmp_path / "x.pth", "--resume")["epoch"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.pth"]


def test_pruning_and_setting_aside(tmp_path):
    for epoch in (0, 1, 2, 10):
        save_checkpoint(tmp_path / f"checkpoint-{epoch}.pth", {})
    save_checkpoint(tmp_path / "checkpoint-best.pth", {})
    prune_checkpoints(tmp_path, 2, is_rolling)
    assert list(epoch_checkpoints(tmp_path)) == [2, 10]
    assert (tmp_path / "checkpoint-best.pth").exists()
    aside = set_previous_run_aside(tmp_path, Path())
    assert aside is not None
    assert not epoch_checkpoints(tmp_path)
    assert list(epoch_checkpoints(aside)) == [2, 10]
    assert set_previous_run_aside(tmp_path, Path()) is None
