"""Reading what others wrote, safely."""

import argparse
import os

import pytest
import torch

from beit3_vqa.engine.checkpoint import (
    epoch_checkpoints,
    options_of,
    prune_checkpoints,
    read_checkpoint,
    save_checkpoint,
    set_previous_run_aside,
)
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
    with pytest.raises(InputError, match="cut short or damaged"):
        read_checkpoint(tmp_path / "x.pth", "--resume", trust=True)


def test_a_missing_file_names_its_neighbours(tmp_path):
    save_checkpoint(tmp_path / "checkpoint-3.pth", {})
    with pytest.raises(InputError, match=r"Did you mean .*checkpoint-3\.pth"):
        read_checkpoint(tmp_path / "checkpoint-2.pth", "--resume")


def test_saving_is_all_or_nothing(tmp_path):
    save_checkpoint(tmp_path / "x.pth", {"epoch": 1})
    with pytest.raises(Exception, match=r"(?i)pickle"):
        save_checkpoint(tmp_path / "x.pth", {"epoch": lambda: None})
    assert read_checkpoint(tmp_path / "x.pth", "--resume")["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_pruning_and_setting_aside(tmp_path):
    for epoch in (0, 1, 2, 10):
        save_checkpoint(tmp_path / f"checkpoint-{epoch}.pth", {})
    save_checkpoint(tmp_path / "checkpoint-best.pth", {})
    prune_checkpoints(tmp_path, 2)
    assert list(epoch_checkpoints(tmp_path)) == [2, 10]
    assert (tmp_path / "checkpoint-best.pth").exists()
    aside = set_previous_run_aside(tmp_path)
    assert aside is not None
    assert not epoch_checkpoints(tmp_path)
    assert list(epoch_checkpoints(aside)) == [2, 10]
    assert set_previous_run_aside(tmp_path) is None
