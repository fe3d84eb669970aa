"""Reading what others wrote, safely."""

import argparse
import hashlib
import importlib.metadata
import json
import os
import pickle
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from beit3_vqa.config.resolve import GivenOptions
from beit3_vqa.data.tokenizer import Tokenizer
from beit3_vqa.engine.checkpoint.folder import archive_previous_run, epoch_checkpoints, prune_checkpoints
from beit3_vqa.engine.checkpoint.io import get_options, read_checkpoint, save_checkpoint
from beit3_vqa.engine.checkpoint.manifest import is_rolling
from beit3_vqa.errors import InputError
from tests.helpers.options import TRUSTING


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
    assert get_options(content) == {"lr": 1e-3, "opt_betas": [0.9, 0.98]}


def test_a_malicious_pickle_does_not_run(tmp_path, capsys):
    canary = tmp_path / "canary"
    torch.save({"model": {"w": torch.ones(2)}, "extra": Malicious(canary)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="--trust_checkpoint"):
        read_checkpoint(tmp_path / "x.pth", "--finetune")
    assert not canary.exists()
    read_checkpoint(tmp_path / "x.pth", "--resume", TRUSTING)
    assert canary.exists()  # that is what trusting means, and it says so
    assert "which runs now because you trust the file" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "typed_flags", "runs"),
    [
        ({"resume": "FILE"}, {"resume"}, True),
        ({"resume": "FILE", "lr": 1.0}, {"lr"}, False),  # a file of options names it
        ({"resume": "other.pth"}, {"resume"}, False),  # and this one was found
        ({"finetune": "FILE"}, {"finetune"}, False),
        ({"trust_checkpoint": True}, {"trust_checkpoint"}, True),
        ({"trust_checkpoint": True}, set(), False),
        ({"trust_checkpoint": False, "resume": "other.pth"}, {"trust_checkpoint", "resume"}, False),
        ({"trust_checkpoint": False, "resume": "FILE"}, {"trust_checkpoint", "resume"}, True),
    ],
)
@pytest.mark.parametrize("flag", ["--resume", "--finetune"])
def test_only_a_typed_resume_or_trust_checkpoint_lets_code_run(tmp_path, values, typed_flags, runs, flag):
    """By what was typed, whichever option leads to the file."""
    path, canary = tmp_path / "x.pth", tmp_path / "canary"
    torch.save({"extra": Malicious(canary)}, path)
    named = {name: str(path) if value == "FILE" else value for name, value in values.items()}
    given = GivenOptions(named, frozenset(typed_flags))
    if runs:
        read_checkpoint(path, flag, given)
    else:
        with pytest.raises(InputError, match="--trust_checkpoint"):
            read_checkpoint(path, flag, given)
    assert canary.exists() == runs


def test_files_before_torch_1_6_are_read_without_running_code(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert "w" in read_checkpoint(tmp_path / "x.pth", "--finetune")["model"]
    canary = tmp_path / "canary"
    torch.save({"extra": Malicious(canary)}, tmp_path / "y.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="--trust_checkpoint"):
        read_checkpoint(tmp_path / "y.pth", "--finetune")
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04" + b"\0" * 50])
@pytest.mark.parametrize("given", [None, TRUSTING])
def test_files_that_are_no_checkpoint_are_refused(tmp_path, content, given):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pth"):
        read_checkpoint(tmp_path / "x.pth", "--finetune", given)


@pytest.mark.parametrize("part", [0.2, 0.9, 0.999])
def test_a_file_cut_short_is_refused_with_and_without_its_json(tmp_path, part):
    save_checkpoint(tmp_path / "x.pth", {"model": {"w": torch.randn(5000)}})
    whole = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(InputError, match=f"{len(whole):,} were written"):
        read_checkpoint(tmp_path / "x.pth", "--resume", TRUSTING)
    (tmp_path / "x.json").unlink()
    with pytest.raises(InputError, match="cut short or damaged"):
        read_checkpoint(tmp_path / "x.pth", "--resume", TRUSTING)


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
        read_checkpoint(tmp_path / "x.pth", "--resume", TRUSTING)


def test_the_json_beside_a_checkpoint_holds_size_checksum_and_versions(tmp_path):
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


def test_a_failed_save_keeps_the_old_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "x.pth", {"epoch": 1})
    with pytest.raises(Exception, match=r"(?i)pickle|can't get local object"):
        save_checkpoint(tmp_path / "x.pth", {"epoch": lambda: None})
    assert read_checkpoint(tmp_path / "x.pth", "--resume")["epoch"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.pth"]


@pytest.mark.parametrize("keep", range(1, 8))
def test_pruning_keeps_as_many_of_the_newest_as_asked(tmp_path, keep):
    for epoch in range(10):
        save_checkpoint(tmp_path / f"checkpoint-{epoch}.pth", {})
        prune_checkpoints(tmp_path, keep, is_rolling)
        assert list(epoch_checkpoints(tmp_path)) == list(range(max(0, epoch + 1 - keep), epoch + 1))


def test_pruning_keeps_the_newest_and_the_best_and_archiving_moves_them_all(tmp_path):
    for epoch in (0, 1, 2, 10):
        save_checkpoint(tmp_path / f"checkpoint-{epoch}.pth", {})
    save_checkpoint(tmp_path / "checkpoint-best.pth", {})
    prune_checkpoints(tmp_path, 2, is_rolling)
    assert list(epoch_checkpoints(tmp_path)) == [2, 10]
    assert (tmp_path / "checkpoint-best.pth").exists()
    aside = archive_previous_run(tmp_path, Path())
    assert aside is not None
    assert not epoch_checkpoints(tmp_path)
    assert list(epoch_checkpoints(aside)) == [2, 10]
    assert archive_previous_run(tmp_path, Path()) is None


NUMBERS = [
    np.float64(2e-5),
    np.float32(0.5),
    np.int64(-3),
    np.bool_(True),
    np.complex128(1j),
    np.str_("왼쪽"),
    np.uint8(7),
]


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_scalars_are_read_as_numbers_under_both_names_of_their_module(tmp_path, module, zipped):
    torch.save({"epoch": 1, "numbers": NUMBERS}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    rename_in_pickle(tmp_path / "x.pth", np.float64(0).__reduce__()[0].__module__, module)
    numbers = read_checkpoint(tmp_path / "x.pth", "--finetune")["numbers"]
    assert numbers == NUMBERS
    assert [type(number) for number in numbers] == [float, float, int, bool, complex, str, int]


def rename_in_pickle(path, old, new):
    """Save with another numpy: the module's name is a line of text, whose length nothing else depends on."""
    content = path.read_bytes()
    if not zipfile.is_zipfile(path):
        path.write_bytes(content.replace(f"c{old}\n".encode(), f"c{new}\n".encode()))
        return
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data.replace(f"c{old}\n".encode(), f"c{new}\n".encode()))


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_hostile_numpy_objects_in_a_pickle_are_refused(tmp_path):
    scalar, canary = np.float64(0).__reduce__()[0], tmp_path / "canary"
    hostile = [
        Calls(scalar, np.dtype(object), pickle.dumps(Malicious(canary))),
        Calls(scalar, np.dtype(object), Malicious(canary)),
        Calls(scalar, np.dtype([("x", object)]), pickle.dumps(Malicious(canary))),
        Calls(scalar, np.dtype("f8"), b"1234"),
        Calls(scalar, Calls(np.dtype, "V2000000000"), b"1"),
        np.array([Malicious(canary)], dtype=object),
    ]
    for number, bad in enumerate(hostile):
        torch.save({"model": {"w": torch.ones(2)}, "extra": bad}, tmp_path / f"{number}.pth")
        with pytest.raises(InputError, match=rf"{number}\.pth"):
            read_checkpoint(tmp_path / f"{number}.pth", "--finetune")
    assert not canary.exists()


def test_a_pickle_cannot_change_the_float64_of_this_process(tmp_path):
    class Turned:
        def __reduce__(self):  # numpy.dtype("f8", False, False) is the one that everybody shares
            return np.dtype, ("f8", False, False), (3, ">", None, None, None, -1, -1, 0)

    torch.save({"x": Turned()}, tmp_path / "x.pth")
    read_checkpoint(tmp_path / "x.pth", "--finetune")
    assert np.array([1.0]).tobytes() == b"\0\0\0\0\0\0\xf0?"


def test_mapped_reading_leaves_the_optimizer_out(tmp_path):
    weights, moments = torch.zeros(2**23), {0: {"exp_avg": torch.zeros(2**23)}}
    save_checkpoint(tmp_path / "x.pth", {"model": {"w": weights}, "optimizer": {"state": moments}, "epoch": 3})
    del weights, moments
    before = own_memory()
    content = read_checkpoint(tmp_path / "x.pth", "--finetune", mapped=True)
    assert set(content) == {"model", "epoch"}
    assert content["model"]["w"].shape == (2**23,)
    assert own_memory() - before < 2**24  # of 64 MB in the file


def own_memory():
    """Return the bytes that this process holds by itself, not as a file's."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("Linux says how much memory a process has")
    return 1024 * int(re.findall(r"RssAnon:\s*(\d+)", status.read_text())[0])


def test_a_web_address_is_refused_with_the_command_that_fetches_it():
    for read in (read_checkpoint, lambda address, flag: Tokenizer(address)):
        with pytest.raises(InputError) as caught:
            read("https://example.com/a/beit3.pth?x=1&y=2", "--finetune")
        command = "beit3-vqa download beit3.pth --url 'https://example.com/a/beit3.pth?x=1&y=2'"
        assert f"Fetch it with `{command}`, then give checkpoints/beit3.pth." in str(caught.value)


def test_a_checkpoint_that_was_unpacked_is_explained_and_can_be_packed_again(tmp_path):
    weights = {"model": {"w": torch.randn(33), "b": torch.randn(7, dtype=torch.float64)}}
    torch.save(weights, tmp_path / "checkpoint's.pth")
    with zipfile.ZipFile(tmp_path / "checkpoint's.pth") as archive:
        archive.extractall(tmp_path / "un packed")
    shutil.make_archive(str(tmp_path / "rezipped"), "zip", tmp_path / "un packed")
    (folder,) = (tmp_path / "un packed").iterdir()
    said = {}
    for path in (tmp_path / "un packed", folder, folder / "data.pkl", tmp_path / "rezipped.zip"):
        with pytest.raises(InputError, match="Download or copy the file anew") as caught:
            read_checkpoint(path, "--finetune")
        said[path] = str(caught.value)
    if shutil.which("zip"):
        command = said[tmp_path / "un packed"].rpartition("without compression: ")[2]
        subprocess.run(command, shell=True, check=True, capture_output=True)
        for mapped in (False, True):
            again = read_checkpoint(tmp_path / "un packed" / "un packed.pth", "--finetune", mapped=mapped)
            assert all(torch.equal(again["model"][name], value) for name, value in weights["model"].items())


def test_a_checkpoint_that_is_called_data_pkl_is_read(tmp_path):
    torch.save({"epoch": 1}, tmp_path / "data.pkl")
    assert read_checkpoint(tmp_path / "data.pkl", "--finetune") == {"epoch": 1}
