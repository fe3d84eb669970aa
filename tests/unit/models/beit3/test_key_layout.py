"""`check_key_layout` against files that are not BEiT-3."""

import argparse
import contextlib
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from beit3_vqa.errors import InputError
from beit3_vqa.models.beit3.key_layout import KeyLayout, check_key_layout
from tests.helpers.checkpoint_files import base_weights, checkpoint_bytes


@pytest.mark.parametrize("wrap", ["model", "module", None])
def test_layout_is_found_under_model_under_module_and_bare(wrap: str | None, tmp_path: Path) -> None:
    weights = base_weights(resolution=480)
    content = {wrap: weights, "args": argparse.Namespace(lr=1e-5)} if wrap else weights
    torch.save(content, tmp_path / "c.pth")
    assert check_key_layout(tmp_path / "c.pth") == KeyLayout(768, 12, 900, 64010)


def test_another_vocabulary_is_accepted_only_if_any_is_allowed(tmp_path: Path) -> None:
    torch.save(base_weights(rows=32002), tmp_path / "c.pth")
    assert check_key_layout(tmp_path / "c.pth", vocab_rows=None).vocab_rows == 32002
    with pytest.raises(InputError, match=r"text_embed.weight: \[32002, 768\], expected \[64010, 768\]"):
        check_key_layout(tmp_path / "c.pth")


def test_missing_and_misshaped_keys_are_named(tmp_path: Path) -> None:
    weights = base_weights()
    del weights["beit3.encoder.layers.3.ffn.B.fc1.weight"]
    weights["beit3.encoder.layers.5.self_attn.q_proj.A.weight"] = torch.zeros(7)
    torch.save(weights, tmp_path / "c.pth")
    with pytest.raises(InputError, match=r"layers\.3\.ffn\.B\.fc1\.weight: missing[\s\S]*layers\.5.*\[7\]"):
        check_key_layout(tmp_path / "c.pth")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil_was_here",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"visual.conv1.weight": torch.zeros(2, 2)}}, "no beit3.text_embed.weight, but visual.conv1.weight"),
        ({"model": torch.nn.Linear(2, 2).weight}, "not named weights"),
        ([1, 2], "holds a list"),
        ({}, "but no tensors"),
        ({"beit3.text_embed.weight": "x"}, "but no tensors"),
        ({"model": base_weights(), "args": Evil()}, "plain data"),
    ],
)
def test_other_content_is_refused(content: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "c.pth")
    with pytest.raises(InputError, match=message):
        check_key_layout("c.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["c.pth"]


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    with pytest.raises(InputError, match=r"not one that torch\.save wrote"):
        check_key_layout(tmp_path / "c.pth")


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="isn't a file"):
        check_key_layout(tmp_path / "none.pth")


def test_mutated_checkpoints_only_raise_input_errors(tmp_path: Path) -> None:
    whole = checkpoint_bytes()
    path, chance = tmp_path / "c.pth", random.Random(0)
    for _ in range(int(os.environ.get("BEIT3_VQA_FUZZ", "150"))):
        mutated = bytearray(whole[: chance.choice([len(whole), chance.randrange(len(whole))])])
        for _ in range(chance.randrange(1, 9)):
            if mutated:
                mutated[chance.randrange(len(mutated))] = chance.randrange(256)
        path.write_bytes(mutated)
        with contextlib.suppress(InputError):
            assert check_key_layout(path, vocab_rows=None).layers >= 1
