"""CLIP by the command line, on the data that BEiT-3 reads: train, stop, resume, evaluate, ask."""

import csv
import json
import os
import shutil
import subprocess
import sys
import warnings

import peft
import pytest
import torch
import transformers
from PIL import Image

import beit3_vqa
from beit3_vqa.cli.main import main
from beit3_vqa.engine.checkpoint.io import read_checkpoint
from tests.helpers.checkpoint_files import tensors
from tests.helpers.commands import CLIP, finetune, finetune_clip
from tests.helpers.photographs import SUBJECTS
from tests.helpers.processes import run_in_new_process
from tests.helpers.tiny_clip import PillowProcessor

EVERYTHING_ON = ["--lora_dropout", "0.1", "--model_ema", "--model_ema_decay", "0.9", "--update_freq", "2"]
EVERYTHING_ON += ["--flip", "0.5", "--crop_scale", "0.7", "--randaug", "--plateau_patience", "0"]


@pytest.fixture(scope="module")
def trained_clip(scpc, clip_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained_clip") / "out"
    assert main(finetune_clip(scpc, clip_folder, out, "--epochs", "2", "--lr", "1e-2")) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_resume_is_bitwise_identical(scpc, clip_folder, tmp_path, workers):
    flags = ["--epochs", "2", *EVERYTHING_ON, "--num_workers", workers]
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    run_in_new_process(finetune_clip(scpc, clip_folder, straight, *flags))
    run_in_new_process(finetune_clip(scpc, clip_folder, parts, *flags, "--stop_after_epochs", "1"))
    said = run_in_new_process(finetune_clip(scpc, clip_folder, parts, *flags))
    assert "1 epoch done, 1 to go" in said
    for name in ("checkpoint-1.pth", "checkpoint-best.pth"):
        one, two = (read_checkpoint(folder / name, "x") for folder in (straight, parts))
        ours = dict(tensors(one))
        assert any("lora_A" in key for key in ours)
        assert {key: ours.pop(key).equal(value) for key, value in tensors(two)} == dict.fromkeys(
            dict(tensors(two)), True
        )
        assert not ours
        assert one["best_score"] == two["best_score"]
        assert one["val_losses"] == two["val_losses"]


def test_the_rate_falls_with_the_plateau_through_a_resume(scpc, clip_folder, tmp_path):
    """Steps too small to lower the loss: the first epoch sets the mark, each one after it halves the rate."""
    command = finetune_clip(scpc, clip_folder, tmp_path / "out", "--lr", "1e-9", "--plateau_patience", "0")
    assert main([*command, "--epochs", "4", "--stop_after_epochs", "3"]) == 0
    assert main([*command, "--epochs", "4"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.txt").read_text().splitlines()]
    assert [line["train_lr"] for line in lines] == pytest.approx([1e-9, 1e-9, 5e-10, 2.5e-10])
    assert torch.load(tmp_path / "out" / "checkpoint-3.pth")["val_losses"] == [line["val_loss"] for line in lines]


def test_without_validation_the_rate_stays(scpc, clip_folder, tmp_path, capsys):
    prepare = ["prepare", "choices", "--train", str(scpc / "train.csv"), "--image_root", str(scpc / "images")]
    assert main([*prepare, "--data_path", str(tmp_path / "data"), "--val_ratio", "0"]) == 0
    assert main(finetune_clip(tmp_path, clip_folder, tmp_path / "out", "--epochs", "2")) == 0
    assert "no validation loss to follow" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.txt").read_text().splitlines()]
    assert [line["train_lr"] for line in lines] == [1e-4, 1e-4]


def test_checkpoints_hold_adapters_and_the_logit_scale_only(trained_clip):
    content = torch.load(trained_clip / "checkpoint-1.pth")
    others = [name for name in content["model"] if ".lora_A." not in name and ".lora_B." not in name]
    assert others == ["clip.logit_scale"]
    assert len(content["model"]) == 1 + 2 * 2 * 2 * 3  # A and B, two towers of two layers, q, v and out
    assert len(content["optimizer"]["state"]) == 2 * 2 * 2 * 3
    assert {"base_sha256", "tokenizer_sha256"} <= set(content)
    assert not (trained_clip / "tokenizer.spm").exists()


def test_the_familys_defaults_hold_if_nothing_was_given(trained_clip):
    saved = json.loads((trained_clip / "config.json").read_text())
    assert saved["run"]["seed"] == 41
    assert saved["optim"]["sched"] == "plateau"
    assert saved["optim"]["weight_decay"] == 0.015
    assert saved["optim"]["label_smoothing"] == 0.1
    assert saved["model"]["prompt_template"] == "Question: {question} Answer: {choice}"
    assert {"lora_rank", "lr", "epochs"} <= set(saved["given"])
    assert not {"seed", "sched", "weight_decay", "label_smoothing"} & set(saved["given"])
    assert (saved["model"]["lora_rank"], saved["optim"]["lr"], saved["optim"]["epochs"]) == (4, 1e-2, 2)  # given


def test_evaluation_writes_the_same_files_as_for_beit3(scpc, trained_clip, tmp_path):
    out = tmp_path / "eval"
    arguments = ["finetune", "--eval", "--resume", str(trained_clip / "checkpoint-best.pth"), "--device", "cpu"]
    arguments += ["--data_path", str(scpc / "data"), "--output_dir", str(out), "--num_workers", "0"]
    assert main([*arguments, "--precision", "fp32"]) == 0
    with (scpc / "test.csv").open(encoding="utf-8") as file:
        ids = [row["ID"] for row in csv.DictReader(file)]
    with (out / "submission.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["ID"] for row in rows] == ids
    predictions = json.loads((out / "predictions.json").read_text())
    assert [p["answer"] for p in predictions] == [row["answer"] for row in rows]
    assert all("loss" not in p and list(p["probabilities"]) == list("ABCD") for p in predictions)

    assert main([*arguments, "--precision", "fp32", "--split", "val", "--batch_size", "3"]) == 0
    metrics = json.loads((out / "metrics_val.json").read_text())
    assert metrics["accuracy"] == read_checkpoint(trained_clip / "checkpoint-best.pth", "x")["best_score"]

    test_rows = [json.loads(line) for line in (scpc / "data" / "vqacustom.test.jsonl").read_text().splitlines()]
    model = beit3_vqa.load(trained_clip / "checkpoint-best.pth", device="cpu", precision="fp32")
    for row, expected in list(zip(test_rows, predictions, strict=True))[:4]:
        prediction = model.predict(scpc / "images" / row["image_path"], row["question"], row["choices"])
        assert prediction.probabilities == pytest.approx(expected["probabilities"], abs=1e-5)


def test_predict_finds_a_pretrained_folder_that_was_moved(scpc, clip_folder, trained_clip, tmp_path, capsys):
    content = torch.load(trained_clip / "checkpoint-best.pth")
    content["args"]["pretrained"] = str(tmp_path / "gone")
    torch.save(content, tmp_path / "moved.pth")
    image = next((scpc / "images").iterdir())
    command = ["predict", "--checkpoint", str(tmp_path / "moved.pth"), "--device", "cpu", "--image", str(image)]
    command += ["--question", "What is this?", "--choices", *SUBJECTS[:4]]
    assert main(command) == 2
    assert "--pretrained: there is no folder" in capsys.readouterr().err
    assert main([*command, "--pretrained", str(clip_folder)]) == 0
    assert [line[0] for line in capsys.readouterr().out.splitlines()] == list("ABCD")


def test_dry_run_counts_what_is_trained(scpc, clip_folder, tmp_path, capsys):
    assert main(finetune_clip(scpc, clip_folder, tmp_path / "out", "--dry_run")) == 0
    assert not (tmp_path / "out").exists()
    assert f"{2 * 2 * 3 * 4 * 64:,} trained" in capsys.readouterr().out  # towers, layers, targets, rank, in + out


def test_every_weight_is_trained_without_adapters(scpc, clip_folder, tmp_path):
    flags = ["--model", CLIP.name, "--lora_rank", "0", "--epochs", "1"]
    assert main(finetune_clip(scpc, clip_folder, tmp_path / "out", *flags)) == 0
    weights = torch.load(tmp_path / "out" / "checkpoint-best.pth")["model"]
    assert "clip.text_model.embeddings.token_embedding.weight" in weights
    evaluate = ["finetune", "--eval", "--output_dir", str(tmp_path / "out"), "--data_path", str(scpc / "data")]
    assert main([*evaluate, "--device", "cpu", "--num_workers", "0"]) == 0


def test_finetune_starts_from_another_runs_adapters(scpc, clip_folder, trained_clip, tmp_path, capsys):
    best = str(trained_clip / "checkpoint-best.pth")
    start = finetune_clip(scpc, clip_folder, tmp_path / "out", "--finetune", best, "--epochs", "1", "--lr", "0")
    assert main(start) == 0
    one, two = (torch.load(path)["model"] for path in (best, tmp_path / "out" / "checkpoint-0.pth"))
    assert all(one[name].equal(two[name]) for name in one)
    assert main([*start, "--lora_rank", "2", "--no_auto_resume"]) == 2
    assert "--lora_rank" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--pretrained", ""], "get_started/clip.md"),
        (["--pretrained", "/no/such/folder"], "there is no folder"),
        (["--model", "clip_vit_tiny_patch8_64_lora"], "Its name is clip_vit_tiny_patch8_32"),
        (["--model", "clip_vit_large_patch14_lora"], "isn't a clip_vit_large_patch14_lora"),
        (["--model", "clip_vit_larg_patch14"], "size must be one of"),
        (["--model", "clip_large_patch14"], "isn't of the form"),
        (["--model", "clop_vit_large_patch14"], "Did you mean 'clip_vit_large_patch14_lora'"),
        (["--lora_rank", "0"], "leave _lora out"),
        (["--lora_targets", "q_prj"], "Did you mean 'q_proj'"),
        (["--lora_targets", ","], "is empty"),
        (["--prompt_template", "{question} A. {a}"], r"missing: {choice}"),
        (["--num_max_bpe_tokens", "49"], "must lie between 3 and 48"),
        (["--num_max_bpe_tokens", "5"], "alone takes"),
        (["--vqa_loss", "bce"], "CLIP has defaults of its own"),
        (["--min_lr", "1"], "--min_lr 1 is above"),
        (["--input_size", "64"], "contradicts --model"),
    ],
)  # fmt: skip
def test_contradictions_are_found_before_anything_is_written(scpc, clip_folder, tmp_path, capsys, flags, says):
    assert main(finetune_clip(scpc, clip_folder, tmp_path / "out", *flags)) == 2
    said = capsys.readouterr().err
    assert says in said, said
    assert said.count("error:") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_name_on_the_hub_without_a_network_is_one_error(scpc, clip_folder, tmp_path):
    flags = ["--model", "clip_vit_base_patch32_lora", "--pretrained", "hf:openai/clip-vit-base-patch32"]
    command = [sys.executable, "-m", "beit3_vqa", *finetune_clip(scpc, clip_folder, tmp_path / "out", *flags)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 2
    assert "error: --pretrained hf:openai/clip-vit-base-patch32: can't be fetched from the hub" in result.stderr
    assert "Traceback" not in result.stderr


def test_another_familys_checkpoint_is_refused(scpc, clip_folder, trained, trained_clip, tmp_path, capsys):
    assert main(finetune_clip(scpc, clip_folder, trained)) == 2
    assert "is of a beit3_tiny_patch8_32" in capsys.readouterr().err
    assert main(finetune(scpc, tmp_path / "out", "--resume", str(trained_clip / "checkpoint-1.pth"))) == 2
    assert "is of a clip_vit_tiny_patch8_32_lora" in capsys.readouterr().err
    assert main(finetune(scpc, tmp_path / "out", "--finetune", str(trained_clip / "checkpoint-1.pth"))) == 2
    assert "doesn't fit the model" in capsys.readouterr().err
    adapters = finetune_clip(scpc, clip_folder, tmp_path / "out", "--finetune", str(trained / "checkpoint-1.pth"))
    assert main(adapters) == 2
    assert not (tmp_path / "out").exists()


def test_options_without_effect_on_clip_are_reported(scpc, clip_folder, tmp_path, capsys):
    idle = ["--drop_path", "0.3", "--compile", "--balance_within", "question"]
    assert main(finetune_clip(scpc, clip_folder, tmp_path / "out", "--dry_run", *idle)) == 0
    said = capsys.readouterr().out
    assert "--balance_within has no effect without --balance_answers" in said
    assert "--drop_path has no effect on clip_vit_tiny" in said
    assert "--compile has no effect on clip_vit_tiny" in said


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(scpc, clip_folder, tmp_path, precision):
    out = tmp_path / "out"
    flags = ["--precision", precision, "--epochs", "1", "--lr", "1e-2", "--checkpoint_activations"]
    assert main(finetune_clip(scpc, clip_folder, out, *flags)) == 0
    content = torch.load(out / "checkpoint-0.pth")
    assert all(value.dtype == torch.float32 for value in content["model"].values())
    assert any(value.any() for name, value in content["model"].items() if ".lora_B." in name)
    assert content["scaler"]["scale"] > 0  # without fp16 too: a scaler that is on refuses an empty state


def damaged(clip_folder, folder, name, change):
    shutil.copytree(clip_folder, folder)
    change(folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:5000]), "its weights can't be read"),
        ("model.safetensors", lambda path: path.unlink(), "its weights can't be read"),
        ("config.json", lambda path: path.write_text("{"), "config.json isn't JSON"),
        ("config.json", lambda path: path.write_text('{"model_type": "bert"}'), "of type 'bert'"),
        ("config.json", lambda path: path.unlink(), "has no config.json"),
        ("vocab.json", lambda path: path.write_text("[]"), "no CLIP tokenizer there"),
        ("merges.txt", lambda path: path.unlink(), "no CLIP tokenizer there"),
    ],
)
def test_damaged_folders_say_what_is_wrong(scpc, clip_folder, tmp_path, capsys, name, change, says):
    folder = damaged(clip_folder, tmp_path / "clip", name, change)
    assert main(finetune_clip(scpc, folder, tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert says in said, said
    assert not (tmp_path / "out").exists()


def test_other_pretrained_weights_or_tokens_are_refused(scpc, clip_folder, trained_clip, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    def double(path):
        weights = load_file(path)
        save_file({name: 2 * value for name, value in weights.items()}, path, metadata={"format": "pt"})

    other = damaged(clip_folder, tmp_path / "clip", "model.safetensors", double)
    evaluate = ["finetune", "--eval", "--resume", str(trained_clip / "checkpoint-best.pth"), "--device", "cpu"]
    evaluate += ["--data_path", str(scpc / "data"), "--output_dir", str(tmp_path / "out"), "--num_workers", "0"]
    assert main([*evaluate, "--pretrained", str(other)]) == 2
    assert "has other weights" in capsys.readouterr().err

    def swap(path):
        ids = json.loads(path.read_text())
        ids["a"], ids["b"] = ids["b"], ids["a"]
        path.write_text(json.dumps(ids))

    other = damaged(clip_folder, tmp_path / "words", "vocab.json", swap)
    assert main([*evaluate, "--pretrained", str(other)]) == 2
    assert "has another tokenizer" in capsys.readouterr().err
    start = finetune_clip(scpc, other, tmp_path / "out", "--finetune", str(trained_clip / "checkpoint-best.pth"))
    assert main(start) == 2
    assert "has another tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_finetune_and_resume_evaluate_alike(scpc, clip_folder, trained_clip, tmp_path):
    best = str(trained_clip / "checkpoint-best.pth")
    for flag in ("--resume", "--finetune"):
        command = ["finetune", "--eval", flag, best, "--num_workers", "0", "--device", "cpu"]
        assert main([*command, "--data_path", str(scpc / "data"), "--output_dir", str(tmp_path / flag)]) == 0
    one, two = ((tmp_path / flag / "predictions.json").read_text() for flag in ("--resume", "--finetune"))
    assert one == two


def logits(clip, folder, image, texts):
    """By transformers alone, from an exported folder."""
    tokens = transformers.CLIPTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    pixels = PillowProcessor.from_pretrained(folder)(Image.open(image), return_tensors="pt")
    with torch.no_grad():
        return clip(**tokens, **pixels).logits_per_image[0]


PEFT_0_13 = {
    *("peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "r"),
    *("target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_config"),
    *("megatron_core", "loftq_config", "use_dora", "layer_replication"),
}


@pytest.mark.parametrize("merge", [False, True])
def test_exports_give_the_same_logits_elsewhere(scpc, clip_folder, trained_clip, tmp_path, merge):
    out, best = tmp_path / "new" / "export", trained_clip / "checkpoint-best.pth"
    command = ["export", "--checkpoint", str(best), "--output_dir", str(out)]
    assert main([*command, *(["--merge"] if merge else [])]) == 0
    if merge:
        clip = transformers.CLIPModel.from_pretrained(out)
    else:
        base = transformers.CLIPModel.from_pretrained(clip_folder)
        with warnings.catch_warnings():  # peft asks for it by the name that it had before transformers 5
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            clip = peft.PeftModel.from_pretrained(base, out)
        assert not (out / "model.safetensors").exists()
        # Every version of peft from 0.13 on knows these; 0.13 refuses a file with a name that it doesn't know.
        assert set(json.loads((out / "adapter_config.json").read_text())) <= PEFT_0_13
    image = next((scpc / "images").iterdir())
    theirs = logits(clip, out, image, [f"Question: What is this? Answer: {choice}" for choice in SUBJECTS[:4]])
    ours = (
        beit3_vqa.load(best, device="cpu", precision="fp32").predict(image, "What is this?", SUBJECTS[:4]).probabilities
    )
    untrained = logits(transformers.CLIPModel.from_pretrained(clip_folder), out, image, ["a", "b", "c", "d"])
    assert not torch.allclose(theirs.softmax(0), untrained.softmax(0), atol=1e-3)
    assert theirs.softmax(0).tolist() == pytest.approx(list(ours.values()), abs=1e-5)
    assert [path.name for path in out.parent.iterdir()] == ["export"]
    assert main([*command, "--merge"]) == 2  # it is no longer empty


def test_weights_that_are_not_finite_once_they_are_merged_are_not_exported(scpc, trained_clip, tmp_path, capsys):
    content = torch.load(trained_clip / "checkpoint-best.pth", weights_only=True)
    for name, value in content["model"].items():
        content["model"][name] = torch.full_like(value, 3e38) if "lora_" in name else value
    path = tmp_path / "huge.pth"
    torch.save(content, path)
    out = tmp_path / "new" / "export"
    assert main(["export", "--checkpoint", str(path), "--output_dir", str(out), "--merge"]) == 2
    assert f"{path}: its weights aren't finite numbers" in capsys.readouterr().err
    assert not out.exists()
    image = str(next((scpc / "images").iterdir()))
    command = ["predict", "--checkpoint", str(path), "--image", image, "--question", "?", "--choices", "a", "b"]
    assert main(command) == 2
    assert f"{path}: the model's outputs aren't finite" in capsys.readouterr().err


def test_clip_has_no_graphs(trained_clip, tmp_path, capsys):
    command = ["export", "--checkpoint", str(trained_clip / "checkpoint-best.pth"), "--format", "safetensors", "onnx"]
    assert main([*command, "--output_dir", str(tmp_path / "out")]) == 2
    assert "--format onnx: a clip_vit_tiny_patch8_32_lora has no graphs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
