"""A checkpoint that brings code, met by every command on every path: it runs only where the user said so."""

import json
import os
import shutil

import pytest
import torch

import beit3_vqa
from beit3_vqa.cli.main import main
from beit3_vqa.engine.checkpoint.folder import BEST
from beit3_vqa.engine.checkpoint.io import save_checkpoint
from tests.helpers.commands import finetune

REFUSED = "holds more than weights and plain data"
ON_CPU = ["--device", "cpu"]


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.makedirs, (self.marker, 0o777, True)


@pytest.fixture(scope="module")
def evaluated(scpc, trained, tmp_path_factory):
    """A folder with result files, and the checkpoint that they are of."""
    folder = tmp_path_factory.mktemp("evaluated")
    for name in (BEST, "tokenizer.spm"):
        shutil.copy(trained / name, folder)
    assert main(finetune(scpc, folder, "--eval", "--split", "val")) == 0
    return folder


@pytest.fixture(scope="module")
def folds(scpc, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    prepare = ["prepare", "choices", "--train", str(scpc / "train.csv"), "--image_root", str(scpc / "images")]
    prepare += ["--data_path", str(folder / "data"), "--folds", "2", "--train_tokenizer", "300"]
    assert main(prepare) == 0
    return folder


class Scene:
    """A folder with a checkpoint of ours to which code was added, and what lies where a run would find it."""

    def __init__(self, folder, trained, **how):
        self.folder, self.marker, self.how = folder, folder / "marker", how
        self.content = torch.load(trained / "checkpoint-1.pth")
        shutil.copy(trained / "tokenizer.spm", folder)
        self.out = folder / "out"
        self.out.mkdir()
        shutil.copy(trained / "tokenizer.spm", self.out)

    def evil(self, path=None, **entries):
        path = path or self.folder / "evil.pth"
        path.parent.mkdir(exist_ok=True)
        torch.save({**self.content, **entries, "extra": Code(self.marker)}, path, **self.how)
        return str(path)


@pytest.fixture(params=[{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "before torch 1.6"])
def scene(request, trained, tmp_path):
    return Scene(tmp_path, trained, **request.param)


def ask(scene, scpc):
    image = str(next((scpc / "images").iterdir()))
    return ["predict", "--checkpoint", scene.evil(), "--image", image, "--question", "?", "--choices", *"abcd", *ON_CPU]


def join(scene, scpc, member):
    output = ["--output", str(scene.folder / "e" / "submission.csv"), "--num_workers", "0"]
    return ["ensemble", member, "--data_path", str(scpc / "data"), *output, *ON_CPU]


def mix(scene, scpc, member):
    out = ["--output_dir", str(scene.folder / "soup"), "--num_workers", "0"]
    return ["soup", member, "--data_path", str(scpc / "data"), *out, *ON_CPU]


def evil_config(scene, **values):
    (scene.folder / "config.json").write_text(json.dumps({"init": values, **values}))
    return str(scene.folder / "config.json")


def goes_on_elsewhere(scene, scpc):
    """Typed again: what came of the named file lies in --output_dir, and is somebody else's by now."""
    save_checkpoint(scene.folder / "named.pth", scene.content)
    scene.evil(scene.out / "checkpoint-2.pth", epoch=2, resumed_from=str((scene.folder / "named.pth").resolve()))
    return finetune(scpc, scene.out, "--resume", str(scene.folder / "named.pth"), "--epochs", "2")


# Name of a way -> the command that takes it, past a file with code.
FOUND = {
    "finetune": lambda s, scpc: finetune(scpc, s.out, "--finetune", s.evil()),
    "finetune, dry run": lambda s, scpc: finetune(scpc, s.out, "--finetune", s.evil(), "--dry_run"),
    "evaluate finetune": lambda s, scpc: finetune(scpc, s.out, "--eval", "--finetune", s.evil()),
    "auto-resume": lambda s, scpc: s.evil(s.out / "checkpoint-1.pth") and finetune(scpc, s.out),
    "auto-resume inside an epoch": lambda s, scpc: (
        s.evil(s.out / "checkpoint-1-step2.pth") and finetune(scpc, s.out)
    ),
    "auto-resume, dry run": lambda s, scpc: s.evil(s.out / "checkpoint-1.pth") and finetune(scpc, s.out, "--dry_run"),
    "evaluate the best there": lambda s, scpc: s.evil(s.out / BEST) and finetune(scpc, s.out, "--eval"),
    "resume what came of it": goes_on_elsewhere,
    "resume in a config file": lambda s, scpc: (
        finetune(scpc, s.out, "--config", evil_config(s, resume=s.evil()))
    ),
    "trust in a config file": lambda s, scpc: (
        finetune(scpc, s.out, "--config", evil_config(s, finetune=s.evil(), trust_checkpoint=True))
    ),
    "predict": ask,
    "export": lambda s, scpc: ["export", "--checkpoint", s.evil(), "--output_dir", str(s.folder / "x")],
    "serve": lambda s, scpc: ["serve", "--checkpoint", s.evil(), "--port", "0", *ON_CPU],
    "ensemble, a file": lambda s, scpc: join(s, scpc, s.evil()),
    "ensemble, a folder": lambda s, scpc: s.evil(s.out / BEST) and join(s, scpc, str(s.out)),
    "soup, a file": lambda s, scpc: mix(s, scpc, s.evil()),
    "soup, a folder": lambda s, scpc: s.evil(s.out / BEST) and mix(s, scpc, str(s.out)),
}  # fmt: skip
# The same where the user says that the code may run.
TRUSTED = {
    "resume": lambda s, scpc: finetune(scpc, s.out, "--resume", s.evil(), "--epochs", "2"),
    "resume in its folder": lambda s, scpc: (
        finetune(scpc, s.out, "--resume", s.evil(s.out / "checkpoint-1.pth"), "--epochs", "2")
    ),
    "evaluate resume": lambda s, scpc: finetune(scpc, s.out, "--eval", "--resume", s.evil()),
    "finetune": lambda s, scpc: finetune(scpc, s.out, "--finetune", s.evil(), "--trust_checkpoint", "--dry_run"),
    "auto-resume": lambda s, scpc: (
        s.evil(s.out / "checkpoint-1.pth") and finetune(scpc, s.out, "--epochs", "2", "--trust_checkpoint")
    ),
    "evaluate the best there": lambda s, scpc: (
        s.evil(s.out / BEST) and finetune(scpc, s.out, "--eval", "--trust_checkpoint")
    ),
    "ensemble": lambda s, scpc: [*join(s, scpc, s.evil()), "--trust_checkpoint"],
    "soup": lambda s, scpc: [*mix(s, scpc, s.evil()), "--trust_checkpoint"],
}  # fmt: skip


@pytest.mark.parametrize("way", FOUND)
def test_code_in_a_checkpoint_that_was_found_does_not_run(scpc, scene, capsys, way):
    command = FOUND[way](scene, scpc)
    code = main(command)
    said = capsys.readouterr()
    assert not scene.marker.exists()
    assert REFUSED in said.out + said.err
    if way == "resume what came of it":  # passed over, with a line; the file that was named is whole
        assert code == 0
        return
    assert code == 2
    assert said.err.count("error:") == 1
    of_ours = way in ("predict", "export", "serve")  # these have no --trust_checkpoint to name
    assert ("add --trust_checkpoint" in said.err) != of_ours


@pytest.mark.parametrize("way", TRUSTED)
def test_code_in_a_checkpoint_runs_where_it_was_typed_and_says_so(scpc, scene, capsys, way):
    assert main(TRUSTED[way](scene, scpc)) == 0
    said = capsys.readouterr().out
    assert scene.marker.exists()
    assert REFUSED in said
    assert "which runs now because you trust the file" in said


def test_plain_files_are_read_as_plain_data_where_they_could_be_trusted(scpc, trained, tmp_path, capsys, monkeypatch):
    loads = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **how: loads.append(how["weights_only"]) or load(*args, **how))
    flags = ["--resume", str(trained / BEST), "--trust_checkpoint", "--eval"]
    assert main(finetune(scpc, tmp_path / "out", *flags)) == 0
    assert loads == [True]
    assert "because you trust the file" not in capsys.readouterr().out


def test_folds_do_not_run_code(folds, scene, capsys):
    command = ["cross_validate", *finetune(folds, scene.out)[1:]]
    scene.evil(scene.out / "fold-0" / "checkpoint-1.pth")
    assert main(command) == 2
    assert REFUSED in capsys.readouterr().err
    assert main([*command, "--no_auto_resume", "--finetune", scene.evil()]) == 2
    assert REFUSED in capsys.readouterr().err
    assert not scene.marker.exists()


def test_files_of_predictions_and_reports_run_no_code(scpc, evaluated, scene, capsys):
    shutil.copytree(evaluated, scene.out, dirs_exist_ok=True)
    scene.evil(scene.out / BEST)
    (scene.out / "checkpoint-best.json").unlink(missing_ok=True)
    info = scene.out / "predictions_val.info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "checkpoint": str(scene.out / BEST)}))
    assert main(["report", str(scene.out), "--output", str(scene.folder / "r.html"), *ON_CPU]) == 0
    said = capsys.readouterr().out
    assert "no attention maps" in said
    assert REFUSED in said
    scene.evil(scene.folder / "predictions.json")
    for command in (["score"], ["report"], ["ensemble", "--output", str(scene.folder / "e" / "submission.csv")]):
        assert main([*command, str(scene.folder / "predictions.json")]) == 2
        assert capsys.readouterr().err.count("error:") == 1
    with pytest.raises(beit3_vqa.InputError, match=REFUSED):
        beit3_vqa.load(scene.evil(), device="cpu")
    assert not scene.marker.exists()


def test_trust_is_of_the_session_that_typed_it(scpc, scene, capsys):
    """And not of the file that keeps its options."""
    assert main(finetune(scpc, scene.out, "--finetune", scene.evil(), "--trust_checkpoint", "--epochs", "1")) == 0
    saved = json.loads((scene.out / "config.json").read_text())
    assert "trust_checkpoint" not in saved["run"]
    assert "trust_checkpoint" not in saved["given"]
