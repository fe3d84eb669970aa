"""Exported folders: the same logits from them, in this package, in safetensors' own library and in onnxruntime."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import beit3_vqa
from beit3_vqa.apps.serve.ensemble import Ensemble
from beit3_vqa.cli.main import main
from beit3_vqa.engine.checkpoint.io import read_checkpoint
from beit3_vqa.engine.checkpoint.portable import write_portable
from tests.helpers.commands import finetune
from tests.helpers.photographs import SUBJECTS
from tests.helpers.serve_client import ask, running


def export(checkpoint, folder, *more):
    return main(["export", "--checkpoint", str(checkpoint), "--output_dir", str(folder), *map(str, more)])


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert export(trained / "checkpoint-best.pth", folder) == 0
    return folder


def predicted(checkpoint, scpc):
    model = beit3_vqa.load(checkpoint, device="cpu", precision="fp32")
    images = sorted((scpc / "images").iterdir())[:3]
    return [model.predict(image, "What is this?", SUBJECTS[:4]).probabilities for image in images]


def test_a_folder_answers_bit_for_bit_as_its_checkpoint(scpc, trained, exported, tmp_path):
    assert {path.name for path in exported.iterdir()} >= {
        "model.safetensors",
        "model.json",
        "config.json",
        "tokenizer.spm",
    }
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(exported, elsewhere)
    expected = predicted(trained / "checkpoint-best.pth", scpc)
    assert predicted(elsewhere, scpc) == predicted(elsewhere / "model.safetensors", scpc) == expected
    assert export(elsewhere, tmp_path / "again") == 0
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == (elsewhere / "model.safetensors").read_bytes()


def test_predict_and_serve_answer_from_a_folder(scpc, trained, exported, capsys):
    image = next((scpc / "images").iterdir())
    told = []
    for source in (trained / "checkpoint-best.pth", exported):
        command = ["predict", "--checkpoint", str(source), "--device", "cpu", "--precision", "fp32"]
        command += ["--image", str(image), "--question", "What is this?", "--choices"]
        assert main([*command, *SUBJECTS[:4]]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    with running(Ensemble([beit3_vqa.load(exported, "cpu", precision="fp32")])) as url:
        status, said = ask(url, image, "What is this?")
    assert status == 200
    assert sum(option["probability"] for option in said["options"]) == pytest.approx(1, abs=1e-4)


def test_a_folder_holds_no_path_of_the_machine(scpc, exported):
    for path in exported.iterdir():
        assert str(scpc.parent.parent).encode() not in path.read_bytes(), path


@pytest.mark.parametrize("flag", ["--resume", "--finetune"])
def test_a_folder_is_evaluated_as_its_checkpoint(scpc, trained, exported, tmp_path, flag):
    for name, source in (("a", trained / "checkpoint-best.pth"), ("b", exported)):
        command = ["finetune", "--eval", "--split", "val", flag, str(source), "--num_workers", "0", "--device", "cpu"]
        command += ["--data_path", str(scpc / "data"), "--output_dir", str(tmp_path / name), "--precision", "fp32"]
        if flag == "--finetune":
            command += ["--model", "beit3_tiny_patch8_32", "--vocab_size", "300"]
        assert main(command) == 0
    one, two = ((tmp_path / name / "predictions_val.json").read_text() for name in "ab")
    assert one == two


def test_training_begins_with_a_folder_as_with_its_checkpoint(scpc, trained, exported, tmp_path):
    for name, source in (("a", trained / "checkpoint-best.pth"), ("b", exported)):
        assert main(finetune(scpc, tmp_path / name, "--epochs", "1", "--finetune", str(source))) == 0
    one, two = (torch.load(tmp_path / name / "checkpoint-0.pth")["model"] for name in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_training_does_not_resume_from_weights_alone(scpc, exported, tmp_path, capsys):
    assert main(finetune(scpc, tmp_path / "out", "--epochs", "3", "--resume", str(exported))) == 2
    assert "holds weights without an optimizer" in capsys.readouterr().err


def test_safetensors_own_library_reads_the_weights(trained, exported):
    theirs = pytest.importorskip("safetensors.torch").load_file(exported / "model.safetensors")
    ours = torch.load(trained / "checkpoint-best.pth")["model"]
    assert set(theirs) == set(ours)
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_adapters_are_exported_with_the_weights(scpc, trained, tmp_path):
    flags = ["--epochs", "1", "--lora_rank", "2", "--finetune", str(trained / "checkpoint-best.pth")]
    assert main(finetune(scpc, tmp_path / "tuned", *flags)) == 0
    best = tmp_path / "tuned" / "checkpoint-best.pth"
    assert export(best, tmp_path / "folder") == 0
    assert predicted(tmp_path / "folder", scpc) == predicted(best, scpc)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--format", "gguf"], "--format gguf: must be one of safetensors, onnx, pt2"),
        (["--merge"], "--merge is for CLIP"),
    ],
)
def test_bad_options_are_one_error_and_leave_nothing(trained, tmp_path, capsys, flags, says):
    assert export(trained / "checkpoint-best.pth", tmp_path / "new" / "out", *flags) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("error: ") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(trained, tmp_path, capsys):
    (tmp_path / "mine").write_text("x")
    assert export(trained / "checkpoint-best.pth", tmp_path) == 2
    assert "isn't an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_options_of_a_folder_can_be_read(exported):
    config = json.loads((exported / "config.json").read_text())
    assert config["args"]["model"] == "beit3_tiny_patch8_32"
    assert config["task_state"] == {"answers": list("ABCD")}


def test_the_card_says_what_the_model_is_and_how_good(scpc, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    command = ["finetune", "--eval", "--split", "val", "--resume", str(run / "checkpoint-best.pth")]
    assert main([*command, "--data_path", str(scpc / "data"), "--num_workers", "0", "--device", "cpu"]) == 0
    metrics = json.loads((run / "metrics_val.json").read_text())
    out = tmp_path / "out"
    given = ["--license", "cc-by-4.0", "--dataset", "photographs of <b>scikit-image</b>"]
    assert export(run / "checkpoint-best.pth", out, *given) == 0
    card = (out / "README.md").read_text()
    _, front, page = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "cc-by-4.0",
        "library_name": "beit3_vqa",
        "pipeline_tag": "visual-question-answering",
        "metrics": ["accuracy"],
        "tags": ["beit3"],
    }
    assert f"| val | {metrics['accuracy']:.2f} | " in page
    assert f" | {metrics['questions']} |" in page
    assert "photographs of \\<b\\>scikit-image" in page
    code = page.split("```python\n")[1].split("```")[0]
    assert "beit3_vqa.load(FOLDER)" in code
    compile(code, "README.md", "exec")
    assert main([*command, "--data_path", str(scpc / "data"), "--device", "cpu", "--tta", "cyclic"]) == 0
    assert export(run, tmp_path / "averaged") == 0
    averaged = json.loads((run / "metrics_val.json").read_text())["accuracy"]
    assert f"| val (`--tta cyclic`) | {averaged:.2f} | " in (tmp_path / "averaged" / "README.md").read_text()


def test_the_card_leaves_out_what_was_measured_on_another_checkpoint(scpc, trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    command = ["finetune", "--eval", "--split", "val", "--resume", str(run / "checkpoint-0.pth"), "--device", "cpu"]
    assert main([*command, "--data_path", str(scpc / "data"), "--num_workers", "0", "--output_dir", str(run)]) == 0
    assert export(run / "checkpoint-0.pth", tmp_path / "its") == 0
    assert "| val | " in (tmp_path / "its" / "README.md").read_text()
    assert "another checkpoint" not in capsys.readouterr().out
    assert export(run / "checkpoint-1.pth", tmp_path / "other") == 0
    assert "metrics_val.json was measured on another checkpoint" in capsys.readouterr().out
    assert "None were measured." in (tmp_path / "other" / "README.md").read_text()


def test_a_card_without_metrics_says_so(exported):
    card = (exported / "README.md").read_text()
    assert "None were measured." in card
    assert "License: not stated" in card
    assert "license:" not in card.split("---\n")[1]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--license", "MIT or so"], "--license 'MIT or so'"),
        (["--dataset", "one\ntwo"], "must be one line"),
        (["--public"], "give both"),
        (["--push_to_hub", "name"], "write OWNER/NAME"),
        (["--push_to_hub", "me/../x"], "write OWNER/NAME"),
    ],
)
def test_bad_words_for_the_hub_are_one_error(trained, tmp_path, capsys, flags, says):
    assert export(trained / "checkpoint-best.pth", tmp_path / "new" / "out", *flags) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_weights_of_other_shapes_or_without_options_are_one_error(scpc, exported, tmp_path, capsys):
    folder = tmp_path / "changed"
    shutil.copytree(exported, folder)
    content = read_checkpoint(exported, "--checkpoint")
    weights = content.pop("model")
    command = ["predict", "--image", str(next((scpc / "images").iterdir())), "--question", "?", "--choices", *"abcd"]
    for changed, beside, says in [
        ({**weights, "head.0.weight": torch.zeros(3)}, content, "shape of head.0.weight: (3,) in the checkpoint"),
        ({"head.0.weight": weights["head.0.weight"]}, content, "too few for the"),
        (weights, {}, "isn't a checkpoint of this package's training"),
        (weights, {**content, "task_state": 5}, "its 'task_state' is 5"),
    ]:
        write_portable(folder / "model.safetensors", changed, beside, {})
        assert main([*command, "--checkpoint", str(folder), "--device", "cpu"]) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.count("error: ") == 1


def test_a_folder_is_a_member_of_an_ensemble(scpc, trained, exported, tmp_path):
    data = ["--data_path", str(scpc / "data"), "--device", "cpu", "--precision", "fp32", "--num_workers", "0"]
    for name, source in (("a", trained / "checkpoint-best.pth"), ("b", exported)):
        assert main(["ensemble", str(source), *data, "--output", str(tmp_path / name / "submission.csv")]) == 0
    assert (tmp_path / "a" / "submission.csv").read_text() == (tmp_path / "b" / "submission.csv").read_text()
