"""Captioning from the command line: learns, resumes bit for bit, is scored, the same on two processes."""

import argparse
import json
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

from beit3_vqa.cli.main import main
from beit3_vqa.data.tokenizer import Tokenizer
from beit3_vqa.engine.checkpoint.io import read_checkpoint
from beit3_vqa.engine.parallel import FSDP
from beit3_vqa.errors import InputError
from beit3_vqa.models.names import build_model
from beit3_vqa.tasks.captioning import COCOCaptioning
from tests.helpers.captioned import prepare_captioned
from tests.helpers.checkpoint_files import tensors
from tests.helpers.commands import evaluate_on, train_on
from tests.helpers.options import build_config
from tests.helpers.processes import ENVIRONMENT, ROOT, torchrun

TASK = "coco_captioning"
FLAGS = ["--captioning_mask_prob", "0.7", "--num_max_bpe_tokens", "16", "--drop_worst_after", "4", "--num_beams", "2"]

pytest.importorskip("pycocoevalcap")
WHICH = shutil.which


@pytest.fixture(scope="module", autouse=True)
def no_java():
    """As where there is no Java, which takes seconds for each of the small scorings here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "which", lambda name: None)
        yield


@pytest.fixture(scope="module")
def captioner(captioned, tmp_path_factory):
    out = tmp_path_factory.mktemp("captioner") / "out"
    assert main(train_on(captioned, TASK, out, *FLAGS, "--epochs", "2")) == 0
    return out


@pytest.mark.parametrize("compiled", [False, True])
def test_masked_words_are_counted_before_they_reach_a_gpu(compiled):
    """But not with --compile, which would compile anew for each number of them."""
    items = [{"text_ids": [0, 5, 6, 2], "places": [1, 3]}, {"text_ids": [0, 7, 2], "places": [2]}]
    padded = SimpleNamespace(collate=lambda items: {"text_ids": torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])})
    batch = COCOCaptioning(build_config({"task": TASK, "compile": compiled})).collate(items, padded)
    mask = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 0]])
    name, expected = ("language_masked_pos", mask) if compiled else ("masked_places", torch.tensor([1, 3, 6]))
    assert batch.keys() == {"text_ids", name}
    assert torch.equal(batch[name], expected)


def test_evaluation_writes_captions_in_upstreams_format_and_coco_metrics(captioned, captioner, tmp_path, capsys):
    assert main(evaluate_on(captioned, TASK, captioner / "checkpoint-best.pth", tmp_path)) == 0
    said = capsys.readouterr().out
    assert "SPICE isn't computed: it needs Java" in said
    rows = [json.loads(line) for line in (captioned / f"{TASK}.test.jsonl").read_text().splitlines()]
    captions = json.loads((tmp_path / f"submit_{TASK}_test.json").read_text())
    assert [set(row) for row in captions] == [{"image_id", "caption"}] * len(rows)
    assert [row["image_id"] for row in captions] == [row["image_id"] for row in rows]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["images"] == len(rows)
    assert metrics["tokenizer"] == "plain"
    assert {"CIDEr", "Bleu_1", "Bleu_4", "ROUGE_L"} <= set(metrics)
    assert "METEOR" not in metrics
    assert json.loads((tmp_path / "predictions.info.json").read_text())["best_metric"] == "CIDEr"


def test_an_exported_folder_is_evaluated_as_its_checkpoint(captioned, captioner, tmp_path):
    best, folder = captioner / "checkpoint-best.pth", tmp_path / "folder"
    assert main(["export", "--checkpoint", str(best), "--output_dir", str(folder)]) == 0
    for name, source in (("a", best), ("b", folder)):
        assert main(evaluate_on(captioned, TASK, source, tmp_path / name)) == 0
    assert (tmp_path / "a" / "predictions.json").read_bytes() == (tmp_path / "b" / "predictions.json").read_bytes()


def test_captioning_resume_is_bitwise_identical(captioned, captioner, tmp_path):
    assert main(train_on(captioned, TASK, tmp_path, *FLAGS, "--epochs", "2", "--stop_after_epochs", "1")) == 0
    assert main(train_on(captioned, TASK, tmp_path, *FLAGS, "--epochs", "2")) == 0
    ours = dict(tensors(read_checkpoint(captioner / "checkpoint-1.pth", "x")))
    for name, value in tensors(read_checkpoint(tmp_path / "checkpoint-1.pth", "x")):
        assert torch.equal(value, ours.pop(name)), name
    assert not ours


@pytest.mark.slow
def test_nocaps_trains_on_coco_and_is_described_without_references(captioned, captioner, tmp_path, capsys):
    checkpoint = captioner / "checkpoint-best.pth"
    assert main(evaluate_on(captioned, "nocaps", checkpoint, tmp_path)) == 0
    assert not (tmp_path / "metrics.json").exists()
    captions = json.loads((tmp_path / "submit_nocaps_test.json").read_text())
    assert len(captions) == 12
    assert main(evaluate_on(captioned, "nocaps", checkpoint, tmp_path, "--split", "val")) == 0
    assert json.loads((tmp_path / "metrics_val.json").read_text())["images"] == 12
    assert main(train_on(captioned, "nocaps", tmp_path / "t", *FLAGS, "--epochs", "1", "--dry_run")) == 0
    assert "training: 96 captions" in capsys.readouterr().out


def test_upstreams_index_gives_the_same_loss_and_cider(captioned, captioner, tmp_path):
    """Token ids in the training rows, null where a caption is to be written, no id; references by upstream's name."""
    tokenizer = Tokenizer(captioned / "tokenizer.spm")
    folder = tmp_path / "theirs"
    folder.mkdir()
    for split in ("train", "val"):
        lines = []
        for line in (captioned / f"{TASK}.{split}.jsonl").read_text().splitlines():
            row = json.loads(line)
            text = row.get("text_segment")
            ids = None if text is None else tokenizer.encode(text)
            row = {"image_path": row["image_path"], "text_segment": ids, "image_id": row["image_id"]}
            lines.append(json.dumps(row) + "\n")
        (folder / f"{TASK}.{split}.jsonl").write_text("".join(lines))
    shutil.copy(captioned / "coco_karpathy_val_gt.json", folder)
    images = ["--image_root", str(captioned.parent / "raw")]
    images += ["--sentencepiece_model", str(captioned / "tokenizer.spm")]
    flags = [*FLAGS, "--epochs", "2", "--stop_after_epochs", "1"]
    assert main(train_on(folder, TASK, tmp_path / "theirs_out", *flags, *images)) == 0
    log, own = (json.loads((f / "log.txt").read_text().splitlines()[0]) for f in (tmp_path / "theirs_out", captioner))
    assert log["train_loss"] == own["train_loss"]
    assert log["val_CIDEr"] == own["val_CIDEr"]


def test_without_references_the_last_epoch_is_the_best_and_the_note_is_printed_once(captioned, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(captioned, data)
    references = data / "coco_karpathy_val_gt.json"
    references.rename(tmp_path / "references.json")
    images = ["--image_root", str(captioned.parent / "raw")]
    flags = [*FLAGS, *images, "--epochs", "4", "--stop_after_epochs", "1"]
    for _ in range(2):  # sessions of one run
        assert main(train_on(data, TASK, out, *flags)) == 0
    assert capsys.readouterr().out.count("the last epoch counts as the best") == 1
    assert read_checkpoint(out / "checkpoint-best.pth", "x")["epoch"] == 1
    # What has a score is better than what has none, and stays that when the references go.
    shutil.copy(tmp_path / "references.json", references)
    assert main(train_on(data, TASK, out, *flags)) == 0
    assert read_checkpoint(out / "checkpoint-best.pth", "x")["epoch"] == 2
    references.unlink()
    assert main(train_on(data, TASK, out, *flags)) == 0
    assert "the last epoch counts as the best" not in capsys.readouterr().out
    assert read_checkpoint(out / "checkpoint-best.pth", "x")["epoch"] == 2


def test_upstreams_captioning_checkpoint_is_evaluated(captioned, captioner, tmp_path, capsys):
    """Theirs bring the options of their script, which knows no --vqa_loss."""
    model = read_checkpoint(captioner / "checkpoint-best.pth", "x")["model"]
    options = {"model": "beit3_tiny_patch8_32", "vocab_size": 160, "num_max_bpe_tokens": 16, "label_smoothing": 0.1}
    path = tmp_path / "checkpoint-9.pth"
    torch.save({"model": model, "epoch": 9, "args": argparse.Namespace(**options)}, path)
    assert main(evaluate_on(captioned, TASK, path, tmp_path / "theirs")) == 0
    assert "vqa_loss" not in capsys.readouterr().out
    assert main(evaluate_on(captioned, TASK, captioner / "checkpoint-best.pth", tmp_path / "ours")) == 0
    theirs, ours = ((tmp_path / of / f"submit_{TASK}_test.json").read_text() for of in ("theirs", "ours"))
    assert theirs == ours


def test_outputs_that_are_not_finite_raise_instead_of_giving_empty_captions(captioned, captioner, tmp_path, capsys):
    content = read_checkpoint(captioner / "checkpoint-best.pth", "x")
    content["model"]["mlm_head.bias"][7] = 1e38
    content["model"]["mlm_head.weight"][7] = 3e38
    torch.save(content, tmp_path / "checkpoint-0.pth")
    assert main(evaluate_on(captioned, TASK, tmp_path / "checkpoint-0.pth", tmp_path / "out")) == 2
    assert "aren't finite numbers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ensemble_refuses_captioning_runs(captioned, captioner, tmp_path, capsys):
    out = tmp_path / "e" / "submission.csv"
    assert main(["ensemble", str(captioner), "--data_path", str(captioned), "--output", str(out)]) == 2
    assert "trained on coco_captioning, whose results aren't answers" in capsys.readouterr().err


def test_captions_of_the_split_are_the_references_if_there_is_no_file(captioned, captioner, tmp_path):
    rows = [json.loads(line) for line in (captioned / f"{TASK}.train.jsonl").read_text().splitlines()][:10]
    (tmp_path / f"{TASK}.val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--split", "val", "--image_root", str(captioned.parent / "raw")]
    assert main(evaluate_on(tmp_path, TASK, captioner / "checkpoint-best.pth", tmp_path / "out", *flags)) == 0
    assert json.loads((tmp_path / "out" / "metrics_val.json").read_text())["images"] == 5


def test_a_fold_is_scored_by_its_own_captions(captioned, captioner, tmp_path):
    """Though there is a validation split too, with its file of references."""
    folder = tmp_path / "data"
    raw = str(captioned.parent / "raw")
    folds = ["--folds", "3", "--image_root", raw, "--data_path", str(folder), "--train_tokenizer", "300"]
    assert main(["prepare", "coco", "--json", f"{raw}/dataset_coco.json", *folds]) == 0
    flags = ["--split", "val", "--fold", "1", "--image_root", raw]
    assert main(evaluate_on(folder, TASK, captioner / "checkpoint-best.pth", tmp_path / "out", *flags)) == 0
    assert json.loads((tmp_path / "out" / "metrics_val.json").read_text())["images"] == 16


def test_images_without_references_are_named_before_training(captioned, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(captioned, folder)
    gold = json.loads((folder / "coco_karpathy_val_gt.json").read_text())
    lacking = gold["annotations"][0]["image_id"]
    gold["annotations"] = [a for a in gold["annotations"] if a["image_id"] != lacking]
    (folder / "coco_karpathy_val_gt.json").write_text(json.dumps(gold))
    images = ["--image_root", str(captioned.parent / "raw")]
    assert main(train_on(folder, TASK, tmp_path / "out", *FLAGS, "--epochs", "1", *images)) == 2
    said = capsys.readouterr().err
    assert f"image {lacking}" in said
    assert "coco_karpathy_val_gt.json" in said
    assert not (tmp_path / "out" / "checkpoint-0.pth").exists()


def test_a_missing_pycocoevalcap_is_one_error_that_names_the_extra(captioned, captioner, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("beit3_vqa.metrics.captions.find_spec", lambda name: None)
    assert main(train_on(captioned, TASK, tmp_path / "out", *FLAGS, "--epochs", "1")) == 2
    assert 'pip install "beit3_vqa[caption]"' in capsys.readouterr().err
    # No references, nothing to score.
    assert main(evaluate_on(captioned, "nocaps", captioner / "checkpoint-best.pth", tmp_path)) == 0


@pytest.mark.slow
def test_trained_captions_beat_chance_and_two_processes_give_the_same_as_one(tmp_path, monkeypatch):
    """CIDEr 385 against 144 for the commonest caption (without Java; METEOR and other words with it)."""
    monkeypatch.setattr(shutil, "which", WHICH)
    data = prepare_captioned(tmp_path, train=240)
    flags = [*FLAGS, "--drop_worst_after", "12000", "--epochs", "6", "--model", "beit3_tiny_patch8_48"]
    assert main(train_on(data, TASK, tmp_path / "out", *flags)) == 0
    checkpoint = tmp_path / "out" / "checkpoint-best.pth"
    more = ["--eval_batch_size", "5"]
    assert main(evaluate_on(data, TASK, checkpoint, tmp_path / "one", *more)) == 0
    metrics = json.loads((tmp_path / "one" / "metrics.json").read_text())
    chance = json.loads((tmp_path / "one" / "predictions.info.json").read_text())["chance"]
    assert metrics["CIDEr"] > 1.5 * chance > 0
    arguments = evaluate_on(data, TASK, checkpoint, tmp_path / "two", *more)
    subprocess.run([*torchrun(2), "-m", "beit3_vqa", *arguments], cwd=ROOT, env=ENVIRONMENT, check=True)
    for name in ("metrics.json", f"submit_{TASK}_test.json"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


def test_fsdp_refuses_captioning_and_suggests_zero1():
    with pytest.raises(InputError, match="zero1"):
        FSDP().wrap(build_model("beit3_tiny_patch8_32_captioning", vocab_size=50))
