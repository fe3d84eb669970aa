"""Retrieval from the command line: learns, resumes bit for bit, the same on two processes, upstream's index too."""

import json
import subprocess

import pytest
import torch

from beit3_vqa.cli.main import main
from beit3_vqa.data.tokenizer import Tokenizer
from beit3_vqa.engine.checkpoint.io import read_checkpoint
from tests.helpers.checkpoint_files import tensors
from tests.helpers.commands import evaluate_on, train_on
from tests.helpers.processes import ENVIRONMENT, ROOT, torchrun

TASK = "coco_retrieval"


@pytest.fixture(scope="module")
def retriever(captioned, tmp_path_factory):
    out = tmp_path_factory.mktemp("retriever") / "out"
    assert main(train_on(captioned, TASK, out, "--epochs", "2", "--drop_path", "0.1")) == 0
    return out


def test_trained_retrieval_beats_chance_and_predictions_agree_with_recall(captioned, retriever, tmp_path, capsys):
    """65 against 41 for guessing, after 12 steps of 16."""
    assert main(evaluate_on(captioned, TASK, retriever / "checkpoint-best.pth", tmp_path)) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    info = json.loads((tmp_path / "predictions.info.json").read_text())
    assert (metrics["captions"], metrics["images"]) == (24, 12)
    assert metrics["average_score"] > info["chance"] + 15
    assert "chance" in capsys.readouterr().out
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    right = [p["answer"] == p["truth"] for p in predictions]
    assert 100 * sum(right) / len(right) == pytest.approx(metrics["ir_r1"])
    rows = [json.loads(line) for line in (captioned / f"{TASK}.test.jsonl").read_text().splitlines()]
    assert [(p["id"], p["truth"], p["question"]) for p in predictions] == [
        (row["id"], str(row["image_id"]), row["text_segment"]) for row in rows
    ]


def test_batch_size_auto_is_refused_for_retrieval(captioned, tmp_path, capsys):
    """Fewer rows to compare are another loss, whatever is accumulated."""
    assert main(train_on(captioned, TASK, tmp_path / "out", "--batch_size", "auto")) == 2
    assert "compares the rows of a forward pass" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_exported_folder_is_evaluated_as_its_checkpoint(captioned, retriever, tmp_path):
    best, folder = retriever / "checkpoint-best.pth", tmp_path / "folder"
    assert main(["export", "--checkpoint", str(best), "--output_dir", str(folder)]) == 0
    for name, source in (("a", best), ("b", folder)):
        assert main(evaluate_on(captioned, TASK, source, tmp_path / name)) == 0
    assert (tmp_path / "a" / "predictions.json").read_bytes() == (tmp_path / "b" / "predictions.json").read_bytes()


def test_retrieval_resume_is_bitwise_identical(captioned, retriever, tmp_path):
    flags = ["--epochs", "2", "--drop_path", "0.1"]
    assert main(train_on(captioned, TASK, tmp_path, *flags, "--stop_after_epochs", "1")) == 0
    assert main(train_on(captioned, TASK, tmp_path, *flags)) == 0
    ours = dict(tensors(read_checkpoint(retriever / "checkpoint-1.pth", "x")))
    for name, value in tensors(read_checkpoint(tmp_path / "checkpoint-1.pth", "x")):
        assert torch.equal(value, ours.pop(name)), name
    assert not ours


def upstreams_index(data, name, tokenizer):
    """The rows as upstream's scripts wrote them: token ids, images counted from 0, no id."""
    numbers: dict = {}
    lines = []
    for line in (data / name).read_text().splitlines():
        row = json.loads(line)
        number = numbers.setdefault(row["image_id"], len(numbers))
        row = {"image_path": row["image_path"], "text_segment": tokenizer.encode(row["text_segment"])}
        lines.append(json.dumps({**row, "image_id": number}) + "\n")
    return "".join(lines)


def test_upstreams_index_gives_the_same_evaluation(captioned, retriever, tmp_path):
    tokenizer = Tokenizer(captioned / "tokenizer.spm")
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "flickr30k.test.jsonl").write_text(upstreams_index(captioned, f"{TASK}.test.jsonl", tokenizer))
    checkpoint = retriever / "checkpoint-best.pth"
    images = ["--image_root", str(captioned.parent / "raw")]
    assert main(evaluate_on(captioned, TASK, checkpoint, tmp_path / "ours")) == 0
    assert main(evaluate_on(folder, "flickr30k", checkpoint, tmp_path / "out", *images)) == 0
    ours, theirs = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("ours", "out"))
    assert ours.pop("topk") == pytest.approx(theirs.pop("topk"))
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"image_path": "a.png", "image_id": 1}, "text_segment must be a caption"),
        ({"image_path": "a.png", "image_id": 1, "text_segment": None}, "text_segment must be a caption"),
        ({"image_path": "a.png", "image_id": 1, "text_segment": [1.5]}, "list of token ids"),
        ({"image_path": "a.png", "text_segment": "x"}, "image_id must be"),
        ({"image_id": 1, "text_segment": "x"}, "no image_path"),
        ({"image_path": "a.png", "image_id": 1, "text_segment": "x", "id": ""}, "id must be text"),
    ],
)
def test_a_bad_retrieval_row_is_an_error_with_file_and_line(captioned, retriever, tmp_path, row, says, capsys):
    (tmp_path / "flickr30k.test.jsonl").write_text(json.dumps(row) + "\n")
    assert main(evaluate_on(tmp_path, "flickr30k", retriever / "checkpoint-best.pth", tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "flickr30k.test.jsonl:1" in error


def test_plateau_schedule_without_validation_loss_prints_a_note(captioned, tmp_path, capsys):
    assert main(train_on(captioned, TASK, tmp_path, "--epochs", "1", "--sched", "plateau")) == 0
    assert "coco_retrieval has no validation loss to follow" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(captioned, retriever, tmp_path):
    checkpoint = retriever / "checkpoint-best.pth"
    flags = ["--eval_batch_size", "7"]
    assert main(evaluate_on(captioned, TASK, checkpoint, tmp_path / "one", *flags)) == 0
    arguments = evaluate_on(captioned, TASK, checkpoint, tmp_path / "two", *flags)
    subprocess.run([*torchrun(2), "-m", "beit3_vqa", *arguments], cwd=ROOT, env=ENVIRONMENT, check=True)
    for name in ("metrics.json", "predictions.json"):
        one, two = (json.loads((tmp_path / folder / name).read_text()) for folder in ("one", "two"))
        if name == "metrics.json":
            assert one == two
        else:
            assert [(p["id"], p["answer"]) for p in one] == [(p["id"], p["answer"]) for p in two]
    # The contrast is with every process's rows, so half the batch in each of two is one with all.
    same = ["--epochs", "1", "--drop_path", "0", "--opt_eps", "1e-3"]
    assert main(train_on(captioned, TASK, tmp_path / "t1", *same, "--batch_size", "20")) == 0
    one = read_checkpoint(tmp_path / "t1" / "checkpoint-0.pth", "x")["model"]
    for strategy in ("ddp", "fsdp"):
        spread = ["--batch_size", "10", "--strategy", strategy]
        arguments = train_on(captioned, TASK, tmp_path / strategy, *same, *spread)
        subprocess.run([*torchrun(2), "-m", "beit3_vqa", *arguments], cwd=ROOT, env=ENVIRONMENT, check=True)
        two = read_checkpoint(tmp_path / strategy / "checkpoint-0.pth", "x")["model"]
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=2e-5, rtol=1e-3, msg=f"{strategy}: {name}")
