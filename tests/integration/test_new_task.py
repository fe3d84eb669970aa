"""A task that nobody has written yet, in one class: how bright an image is. It goes through every part of a run."""

import json
import sys

import pytest
import torch
from PIL import Image

from beit3_vqa.cli.main import main
from beit3_vqa.data.index import IndexFiles
from beit3_vqa.data.rows import RowFormat, image_problem
from beit3_vqa.data.types import EvalResult, Example, Inputs, Prediction
from beit3_vqa.tasks import TASKS
from beit3_vqa.tasks.base import Task, TaskSpec
from tests.helpers.commands import TINY

QUICK = ["--batch_size", "4", "--num_workers", "0", "--lr", "7e-4", "--layer_decay", "1", "--drop_path", "0"]
QUICK += ["--opt_betas", "0.9", "0.98", "--clip_grad", "1", "--warmup_epochs", "1", "--crop_scale", "0.9"]


def name_of(row):
    return row["image_path"]


class Brightness(Task):
    """Learn a number from 0 to 1 for each image."""

    spec = TaskSpec(
        name="brightness",
        head="imageclassification",
        files=IndexFiles("brightness"),
        row_format=RowFormat(image_problem, name_of),
        inputs=Inputs(text=""),
        best_metric="closeness",
        unit="images",
        per_example=False,
    )

    def __init__(self, config, folder=None):
        super().__init__(config, folder, num_classes=1)

    def example(self, row, place):
        return Example(row["image_path"], row["image_path"], "", targets=((0, row["brightness"]),))

    def loss(self, outputs, batch):
        return torch.nn.functional.mse_loss(outputs[:, 0], self.brightness(batch).to(outputs.device))

    def brightness(self, batch):
        return torch.tensor([example.targets[0][1] for example in batch.examples])

    def predictions(self, outputs, batch, temperature=1.0):
        wrong = (outputs[:, 0].cpu() - self.brightness(batch)).abs().tolist()
        answers = [f"{value:.3f}" for value in outputs[:, 0].tolist()]
        return [
            Prediction(example.id, "", answer, {answer: 1.0}, loss=error)
            for example, answer, error in zip(batch.examples, answers, wrong, strict=True)
        ]

    def aggregate(self, predictions, split, processor, *, full=False):
        metrics = {"closeness": 1 - sum(p.loss for p in predictions) / len(predictions)}
        return EvalResult(metrics, predictions, chance=0.75)  # of always saying 0.5


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "brightness", "brightness:Brightness")
    monkeypatch.setitem(sys.modules, "beit3_vqa.tasks.brightness", sys.modules[__name__])
    for split, step in (("train", 8), ("val", 16), ("test", 16)):
        lines = []
        for level in range(0, 256, step):
            Image.new("RGB", (32, 32), (level, level, level)).save(tmp_path / f"{split}{level}.png")
            lines.append(json.dumps({"image_path": f"{split}{level}.png", "brightness": level / 255}) + "\n")
        (tmp_path / f"brightness.{split}.jsonl").write_text("".join(lines))
    return tmp_path


def test_a_new_task_trains_resumes_and_is_evaluated(data, tmp_path, capsys):
    command = ["finetune", "--task", "brightness", *TINY, *QUICK, "--data_path", str(data)]
    out = tmp_path / "out"
    train = [*command, "--output_dir", str(out), "--epochs", "5"]
    assert main([*train, "--stop_after_epochs", "1"]) == 0
    assert main(train) == 0
    said = capsys.readouterr().out
    assert "train: 32 images" in said
    assert "val closeness" in said
    best = str(out / "checkpoint-best.pth")
    assert main([*command, "--output_dir", str(out), "--eval", "--resume", best]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["closeness"] > 0.85
    assert len(json.loads((out / "predictions.json").read_text())) == 16
    assert json.loads((out / "predictions.info.json").read_text())["chance"] == 0.75
