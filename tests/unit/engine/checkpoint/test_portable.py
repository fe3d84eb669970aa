"""Safetensors: what others write is read, what we write others read, and a hostile file is one error."""

import json

import pytest
import torch

from beit3_vqa.engine.checkpoint.io import read_checkpoint
from beit3_vqa.engine.checkpoint.portable import MAX_HEADER, write_portable
from beit3_vqa.errors import InputError

WEIGHTS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor(1.5, dtype=torch.float16),
    "ü": torch.zeros(0, 4, dtype=torch.float64),
    "c": torch.tensor([1.0, -2.0, 3.0], dtype=torch.bfloat16),
}


def same(one, two):
    return set(one) == set(two) and all(one[n].dtype == two[n].dtype and torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_written_is_read(tmp_path, mapped):
    path = tmp_path / "model.safetensors"
    write_portable(path, WEIGHTS, {"args": {"model": "x"}, "task_state": {"answers": ["é"]}}, {"temperature": 2.0})
    content = read_checkpoint(path, "--checkpoint", mapped=mapped)
    assert same(content.pop("model"), WEIGHTS)
    assert content == {"args": {"model": "x"}, "task_state": {"answers": ["é"]}}
    assert read_checkpoint(tmp_path, "--checkpoint", mapped=mapped)["args"] == {"model": "x"}
    assert json.loads((tmp_path / "model.json").read_text())["temperature"] == 2.0
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "model.json"}


@pytest.mark.parametrize("mapped", [False, True])
def test_the_format_is_that_of_its_own_library(tmp_path, mapped):
    library = pytest.importorskip("safetensors.torch")
    write_portable(tmp_path / "ours.safetensors", WEIGHTS, {}, {})
    assert same(library.load_file(tmp_path / "ours.safetensors"), WEIGHTS)
    library.save_file(WEIGHTS, tmp_path / "theirs.safetensors")
    assert same(read_checkpoint(tmp_path / "theirs.safetensors", "x", mapped=mapped)["model"], WEIGHTS)


def entry(begin=0, end=8, shape=(2,), dtype="F32", **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"a": entry(shape=(3,))}, "'a' has the shape [3] of F32, but 8 bytes"),
        ({"a": entry(shape=(2**40, 2**40))}, "but 8 bytes"),
        ({"a": entry(shape=(-2,))}, "'a' has the shape [-2]"),
        ({"a": entry(shape=(True,))}, "'a' has the shape [True]"),
        ({"a": entry(shape=(1,) * 9 + (2,))}, "'a' has the shape [1,"),
        ({"a": entry(end=16, shape=(4,))}, "its header speaks of 16: cut short?"),
        ({"a": entry(begin=4, end=8, shape=(1,))}, "'a' begins at byte 4, where 0 is due"),
        ({"a": entry(), "b": entry()}, "begins at byte 0, where 8 is due"),
        ({"a": entry(end=4, shape=(1,))}, "it has 8 bytes of tensors, its header speaks of 4"),
        ({"a": entry(dtype="F4")}, "'a' is of 'F4', none of"),
        ({"a": entry(dtype=["F32"])}, "none of"),
        ({"a": entry(extra=1)}, "isn't described as a tensor"),
        ({"a": 5}, "isn't described as a tensor"),
        ({"a": entry(end="8")}, "has the shape"),
        ([], "isn't a JSON object"),
        ({"__metadata__": {"beit3_vqa": "[]"}, "a": entry()}, "isn't what `export` writes"),
        ({"__metadata__": {"beit3_vqa": 5}, "a": entry()}, "isn't a readable safetensors file"),
        ({"__metadata__": {"beit3_vqa": "{"}, "a": entry()}, "isn't a readable safetensors file"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ("[" * 100_000, "isn't a readable safetensors file"),
        ('{"a": ' + "9" * 5000 + "}", "isn't a readable safetensors file"),
        ("\xff", "isn't a readable safetensors file"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_header_that_contradicts_itself_is_one_error(tmp_path, header, says):
    text = (header if isinstance(header, str) else json.dumps(header)).encode("latin-1")
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(InputError) as error:
        read_checkpoint(path, "--finetune")
    assert str(error.value).startswith(f"--finetune {path}: isn't a readable safetensors file: ")
    assert says in str(error.value)


@pytest.mark.parametrize("length", [0, 1, 10**6, MAX_HEADER + 1, 2**63, 2**64 - 1])
def test_a_header_longer_than_its_file_is_not_read(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(100))
    with pytest.raises(InputError, match="its header would have"):
        read_checkpoint(path, "--finetune")


def test_a_file_cut_anywhere_is_one_error(tmp_path):
    path = tmp_path / "model.safetensors"
    write_portable(path, WEIGHTS, {}, {})
    (tmp_path / "model.json").unlink()
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"isn't a readable safetensors file"):
            read_checkpoint(path, "--finetune")


def test_a_file_that_has_changed_is_damaged(tmp_path):
    path = tmp_path / "model.safetensors"
    write_portable(path, WEIGHTS, {}, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="its bytes have changed since it was written"):
        read_checkpoint(path, "--finetune")
