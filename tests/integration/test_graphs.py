"""Graphs: onnxruntime and `torch.export` give the model's logits, at every batch size and length of text."""

import json

import pytest
import torch

import beit3_vqa
from beit3_vqa.cli.main import main
from beit3_vqa.models.beit3.graphs import export_graphs
from beit3_vqa.models.names import build_model
from tests.helpers.pages import ROOT
from tests.helpers.photographs import SUBJECTS

pytestmark = pytest.mark.slow  # `.ci/run` runs it

QUESTIONS = ["What?", "What is this a photograph of?", "Which of these four things can be seen in the picture here?"]
# Rows of the batches, by question: alone, padded, several.
BATCHES = [(0,), (1,), (2, 0), (0, 1, 2, 1, 0)]


@pytest.fixture(scope="module")
def graphs(trained, tmp_path_factory):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("graphs") / "out"
    command = ["export", "--checkpoint", str(trained / "checkpoint-best.pth"), "--format", "onnx", "pt2"]
    assert main([*command, "--output_dir", str(folder)]) == 0
    return folder


def real_batches(trained, scpc):
    """Inputs of real images and questions, and the logits of our model."""
    predictor = beit3_vqa.load(trained / "checkpoint-best.pth", device="cpu", precision="fp32")
    images = sorted((scpc / "images").iterdir())
    for rows in BATCHES:
        asked = [predictor.prepare(images[row], QUESTIONS[row], SUBJECTS[:4]) for row in rows]
        _, batch = predictor._batch(asked)
        model = predictor.components.model
        inputs = {**batch.inputs, "image": model.normalised(batch.inputs["image"])}
        with torch.no_grad():
            yield inputs, model(**inputs)


def test_onnxruntime_gives_our_logits(scpc, trained, graphs):
    import onnxruntime

    session = onnxruntime.InferenceSession(graphs / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(put.name, put.type) for put in session.get_inputs()] == [
        ("image", "tensor(float)"),
        ("question", "tensor(int64)"),
        ("padding_mask", "tensor(int64)"),
    ]
    assert [put.shape for put in session.get_inputs()][1] == ["batch", "tokens"]
    padded = 0
    for inputs, ours in real_batches(trained, scpc):
        (theirs,) = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
        assert (torch.from_numpy(theirs) - ours).abs().max() < 1e-4
        padded += int(inputs["padding_mask"].any())
    assert padded == 2


def test_torch_export_gives_our_logits(scpc, trained, graphs):
    program = torch.export.load(graphs / "model.pt2").module()
    for inputs, ours in real_batches(trained, scpc):
        with torch.no_grad():
            assert (program(**inputs) - ours).abs().max() < 1e-4


def test_the_preprocessing_is_said(graphs):
    how = json.loads((graphs / "preprocessing.json").read_text())
    assert how["image"]["size"] == 32
    assert how["answers"] == list("ABCD")
    assert "{question}" in how["text"]["prompt_template"]
    assert (graphs / "tokenizer.spm").is_file()
    assert not (graphs / "model.safetensors").exists()


def test_images_of_480_pixels_are_exported_too(tmp_path, capsys):
    model = build_model("beit3_tiny_patch16_480_vqacustom", num_classes=4, vocab_size=100)
    export_graphs(model, tmp_path, ["pt2"])
    assert "model.pt2: its logits are within" in capsys.readouterr().out
    assert model.beit3.attention == "auto"


def test_a_graph_with_other_logits_is_not_kept(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("beit3_vqa.models.beit3.graphs.TOLERANCE", -1.0)
    command = ["export", "--checkpoint", str(trained / "checkpoint-best.pth"), "--format", "pt2"]
    assert main([*command, "--output_dir", str(tmp_path / "out")]) == 2
    assert "so it wasn't kept" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_onnx_without_its_packages_is_one_error(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("beit3_vqa.models.beit3.graphs.find_spec", lambda name: None)
    command = ["export", "--checkpoint", str(trained / "checkpoint-best.pth"), "--format", "onnx"]
    assert main([*command, "--output_dir", str(tmp_path / "out")]) == 2
    assert 'pip install "beit3_vqa[onnx]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_example_of_the_page_gives_our_letter(scpc, trained, graphs, tmp_path, monkeypatch):
    page = (ROOT / "get_started" / "export.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    assert "beit3_vqa" not in code
    assert "torch" not in code
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-graphs").symlink_to(graphs)
    (tmp_path / "images").symlink_to(scpc / "images")
    image, *others = sorted((scpc / "images").iterdir())
    namespace: dict = {}
    exec(code.replace("images/0.jpg", f"images/{image.name}"), namespace)
    predictor = beit3_vqa.load(trained / "checkpoint-best.pth", device="cpu", precision="fp32")
    for path in (image, *others[:5]):
        for question in QUESTIONS:
            ours = predictor.predict(path, question, SUBJECTS[:4]).answer
            assert namespace["answer"](path, question, SUBJECTS[:4]) == ours


def test_an_older_torch_is_one_sentence(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "__version__", "2.6.0+cpu")
    command = ["export", "--checkpoint", str(trained / "checkpoint-best.pth"), "--output_dir", str(tmp_path / "out")]
    assert main([*command, "--format", "pt2"]) == 2
    assert "--format pt2: needs torch 2.7" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
