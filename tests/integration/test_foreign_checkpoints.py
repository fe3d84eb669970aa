"""Checkpoints and folders of upstream's scripts and their forks: read as they mean it, or not at all."""

import argparse
import json
import shutil

import numpy as np
import pytest
import torch

from beit3_vqa.cli.main import main
from beit3_vqa.data.answers import AnswerTable
from tests.helpers.commands import TINY, finetune

CPU = ["--device", "cpu", "--precision", "fp32", "--num_workers", "0"]


def saved_by_fork(content, path, **changes):
    """As upstream and its forks save: a Namespace, learning rates of numpy, no random state, no best score."""
    args = argparse.Namespace(
        model="beit3_tiny_patch8_32", task="vqacustom", input_size=32, lr=5e-4, epochs=2, vocab_size=300,
        num_max_bpe_tokens=64, sentencepiece_model="/gone/beit3.spm", nb_classes=1000, opt_betas=[0.9, 0.999],
    )  # fmt: skip
    for group in content["optimizer"]["param_groups"]:
        group["fused"] = None
        group["lr"] = np.float64(group["lr"])
    kept = {name: content[name] for name in ("model", "optimizer", "epoch", "scaler", "model_ema") if name in content}
    torch.save({**kept, "args": args, **changes}, path)
    return path


@pytest.fixture
def forks(trained, tmp_path):
    """A fork's checkpoint of one epoch on `scpc`."""
    return saved_by_fork(torch.load(trained / "checkpoint-0.pth"), tmp_path / "checkpoint-0.pth")


def vouched(scpc):
    return ["--answer2label", str(scpc / "data" / "answer2label.txt")]


def test_a_forks_checkpoint_resumes(scpc, trained, forks, tmp_path, capsys):
    flags = ["--epochs", "2", "--vqa_loss", "ce"]
    assert main(finetune(scpc, tmp_path / "fork", "--resume", str(forks), *flags, *vouched(scpc))) == 0
    assert "1 epoch done, 1 to go" in capsys.readouterr().out
    assert main(finetune(scpc, tmp_path / "ours", "--resume", str(trained / "checkpoint-0.pth"), *flags)) == 0
    fork, ours = (torch.load(tmp_path / name / "checkpoint-1.pth") for name in ("fork", "ours"))
    # The fork's has no random state, so the drop path differs; learning rates, moments and steps don't.
    assert fork["optimizer"]["state"][0]["step"] == ours["optimizer"]["state"][0]["step"] == 8
    for group, own in zip(fork["optimizer"]["param_groups"], ours["optimizer"]["param_groups"], strict=True):
        assert group == own


def test_a_forks_loss_is_kept_and_its_best_is_no_epoch(scpc, trained, forks, tmp_path, capsys):
    assert main(finetune(scpc, tmp_path / "out", "--resume", str(forks), "--epochs", "2", *vouched(scpc))) == 0
    said = capsys.readouterr().out
    assert "--vqa_loss bce" in said
    assert "--answer2label" in said.splitlines()[-1]  # the command that evaluates it
    assert torch.load(tmp_path / "out" / "checkpoint-1.pth")["args"]["vqa_loss"] == "bce"
    content = torch.load(trained / "checkpoint-0.pth")
    torch.save({**content, "epoch": "best"}, tmp_path / "best.pth")
    assert main(finetune(scpc, tmp_path / "out2", "--resume", str(tmp_path / "best.pth"))) == 2
    assert "no epoch number" in capsys.readouterr().err


# The order of answers


@pytest.fixture(scope="module")
def open_ended(scpc, tmp_path_factory):
    """A folder with raw lists, and data/ and out/: an open-ended model trained on what `prepare` made of them."""
    folder = tmp_path_factory.mktemp("open")
    rows = []
    for number, path in enumerate(sorted((scpc / "images").iterdir())):
        answer = path.stem.split("_")[1]
        rows.append({"image_id": path.name, "question": "What?", "answer": answer, "question_id": f"q{number}"})
    for split, of in (("train", rows), ("val", rows[:6]), ("test", rows)):
        images = [{**row, "question_id": f"{split}_{row['question_id']}"} for row in of]
        (folder / f"{split}.json").write_text(json.dumps(images))
    assert prepare_open(scpc, folder, folder / "data") == 0
    assert main(finetune(folder, folder / "out", "--epochs", "1", "--lr", "1e-3", "--model_ema")) == 0
    return folder


def prepare_open(scpc, folder, data_path):
    command = ["prepare", "dacon_json", "--image_root", str(scpc / "images"), "--data_path", str(data_path)]
    command += [word for split in ("train", "val", "test") for word in (f"--{split}", str(folder / f"{split}.json"))]
    return main([*command, "--train_tokenizer", "300"])


@pytest.fixture(scope="module")
def other_order(open_ended, tmp_path_factory):
    """A fork's folder and checkpoint: the same model, whose outputs stand in the order of the fork's table."""
    folder = tmp_path_factory.mktemp("fork")
    content = torch.load(open_ended / "out" / "checkpoint-0.pth")
    answers = content["task_state"]["answers"]
    order = [*range(1, len(answers)), 0]
    AnswerTable([answers[label] for label in order]).write(folder / "answer2label.txt")
    for weights in (content["model"], content["model_ema"]):
        for name in ("head.3.weight", "head.3.bias"):
            weights[name] = weights[name][order]
    saved_by_fork(content, folder / "checkpoint-0.pth")
    for name in ("vqacustom.test.jsonl", "vqacustom.val.jsonl", "tokenizer.spm"):
        shutil.copy(open_ended / "data" / name, folder / name)
    return folder


def answers_of(out, *flags):
    """The answers that an evaluation writes; None where it is an error that leaves nothing."""
    code = main(
        ["finetune", "--eval", *TINY, "--num_workers", "0", "--vqa_loss", "ce", "--output_dir", str(out), *flags]
    )
    if code == 2:
        assert not out.exists()
        return None
    assert code == 0
    return {row["id"]: row["answer"] for row in json.loads((out / "predictions.json").read_text())}


@pytest.mark.parametrize("flag", ["--resume", "--finetune"])
def test_answers_of_a_checkpoint_without_a_table_are_right_or_refused(
    scpc, open_ended, other_order, flag, tmp_path, capsys
):
    data, ours = open_ended / "data", open_ended / "out" / "checkpoint-0.pth"
    expected = answers_of(tmp_path / "ours", "--resume", str(ours), "--data_path", str(data))
    assert len(set(expected.values())) > 1
    fork = [flag, str(other_order / "checkpoint-0.pth")]
    assert answers_of(tmp_path / "new", *fork, "--data_path", str(data)) is None
    assert "--answer2label FILE" in capsys.readouterr().err

    named = ["--data_path", str(data), "--answer2label", str(other_order / "answer2label.txt")]
    assert answers_of(tmp_path / "named", *fork, *named) == expected
    assert "has no answer table of its own; using" in capsys.readouterr().out
    own = ["--data_path", str(other_order), "--image_root", str(scpc / "images")]
    assert answers_of(tmp_path / "own", *fork, *own) == expected

    mixed = shutil.copytree(data, tmp_path / "mixed")  # as one does who knows what went wrong
    shutil.copy(other_order / "answer2label.txt", mixed / "answer2label.txt")
    assert answers_of(tmp_path / "put", *fork, "--data_path", str(mixed)) == expected
    before = (mixed / "answer2label.txt").read_bytes()
    assert prepare_open(scpc, open_ended, mixed) == 2
    assert (mixed / "answer2label.txt").read_bytes() == before


def test_neither_training_nor_an_ensemble_guesses_the_order(open_ended, other_order, tmp_path, capsys):
    fork, data = str(other_order / "checkpoint-0.pth"), ["--data_path", str(open_ended / "data")]
    assert main(finetune(open_ended, tmp_path / "out", "--resume", fork)) == 2
    assert "--answer2label FILE" in capsys.readouterr().err
    ensemble = ["ensemble", fork, str(open_ended / "out" / "checkpoint-0.pth"), *data, *CPU]
    assert main([*ensemble, "--output", str(tmp_path / "e" / "submission.csv"), "--vote", "hard"]) == 2
    assert "--answer2label FILE" in capsys.readouterr().err


def test_a_named_table_does_not_turn_numbers_into_other_answers(scpc, open_ended, other_order, tmp_path, capsys):
    numbered = tmp_path / "numbered"
    numbered.mkdir()
    shutil.copy(open_ended / "data" / "answer2label.txt", numbered / "answer2label.txt")
    shutil.copy(open_ended / "data" / "tokenizer.spm", numbered / "tokenizer.spm")
    row = {"image_path": "0_coffee.jpg", "text_segment": [4, 5], "labels": [1], "scores": [1.0], "qid": 1}
    (numbered / "vqa.test.jsonl").write_text(json.dumps(row) + "\n")
    flags = ["--resume", str(other_order / "checkpoint-0.pth"), "--data_path", str(numbered)]
    flags += ["--image_root", str(scpc / "images"), "--answer2label", str(other_order / "answer2label.txt")]
    assert answers_of(tmp_path / "out", *flags) is None
    assert "whose numbers the test rows hold" in capsys.readouterr().err
    (numbered / "vqa.test.jsonl").write_text(json.dumps({**row, "labels": "", "scores": ""}) + "\n")
    assert answers_of(tmp_path / "out", *flags) is not None


def test_training_that_begins_with_a_head_of_another_order_says_so(open_ended, other_order, tmp_path, capsys):
    def said(name, *flags):
        assert main(finetune(open_ended, tmp_path / name, "--epochs", "1", *flags)) == 0
        return [line for line in capsys.readouterr().out.splitlines() if "learned anew" in line]

    fork, ours = str(other_order / "checkpoint-0.pth"), open_ended / "out" / "checkpoint-0.pth"
    assert "stands for answers that the file doesn't name" in said("unknown", "--finetune", fork)[0]
    assert not said("named", "--finetune", fork, "--answer2label", str(open_ended / "data" / "answer2label.txt"))
    assert not said("same", "--finetune", str(ours))
    content = torch.load(ours)
    content["task_state"]["answers"].reverse()
    torch.save(content, tmp_path / "reversed.pth")
    assert "was trained on other answers" in said("other", "--finetune", str(tmp_path / "reversed.pth"))[0]
    content["model"] |= {name: content["model"][name][:3] for name in ("head.3.weight", "head.3.bias")}
    torch.save(content, tmp_path / "fewer.pth")  # its last layer doesn't fit, and is left out
    assert not said("fewer", "--finetune", str(tmp_path / "fewer.pth"))


# The weights that are asked for


def test_model_key_chooses_the_weights(open_ended, tmp_path, capsys):
    ours = open_ended / "out" / "checkpoint-0.pth"
    content = torch.load(ours)
    content["model"]["head.3.bias"] += torch.tensor([100.0, 0, 0, 0, 0, 0])  # always the first answer
    torch.save(content, tmp_path / "x.pth")
    shutil.copy(ours.with_name("tokenizer.spm"), tmp_path)
    first, data = content["task_state"]["answers"][0], ["--data_path", str(open_ended / "data")]
    for flag in ("--finetune", "--resume"):
        named = [flag, str(tmp_path / "x.pth"), *data]
        average = answers_of(tmp_path / f"default {flag}", *named)
        assert set(average.values()) != {first}
        assert answers_of(tmp_path / f"average {flag}", *named, "--model_key", "model_ema") == average
        for key in ("model", "model|module"):
            assert set(answers_of(tmp_path / f"{key} {flag}", *named, "--model_key", key).values()) == {first}
        assert answers_of(tmp_path / f"absent {flag}", *named, "--model_key", "model_em") is None
        assert "--model_key model_em isn't in it; it holds 'model', 'model_ema'" in capsys.readouterr().err
        # A saved config holds the default, which nobody asked for.
        config = ["--config", str(open_ended / "out" / "config.json")]
        assert answers_of(tmp_path / f"config {flag}", *named, *config) == average
    train = finetune(open_ended, tmp_path / "train", "--finetune", str(tmp_path / "x.pth"), "--model_key", "model_em")
    assert main(train) == 2
    assert not (tmp_path / "train").exists()


# What others leave in a folder


@pytest.fixture
def deepspeeds(trained, tmp_path):
    """The output folder of a run of upstream's with DeepSpeed, two epochs long."""
    out = tmp_path / "deepspeed"
    for tag in ("checkpoint-0", "checkpoint-1", "checkpoint-best"):
        (out / tag).mkdir(parents=True)
        content = torch.load(trained / "checkpoint-0.pth")
        args = argparse.Namespace(model="beit3_tiny_patch8_32", task="vqacustom", vocab_size=300)
        optimizer = {"cur_scale": 65536.0, "optimizer_state_dict": {"param_groups": [{"lr": np.float64(1e-5)}]}}
        weights = {name: value.half() for name, value in content["model"].items()}
        saved = {"module": weights, "csr_tensor_module_names": set(), "optimizer": optimizer, "args": args}
        epoch = tag.removeprefix("checkpoint-")
        saved["epoch"] = int(epoch) if epoch.isdigit() else epoch
        torch.save(saved, out / tag / "mp_rank_00_model_states.pt")
    (out / "latest").write_text("checkpoint-1")
    return out


def test_a_run_with_deepspeed_is_never_started_over_in_silence(scpc, trained, deepspeeds, tmp_path, capsys):
    before = sorted(deepspeeds.rglob("*"))
    assert main(finetune(scpc, deepspeeds, "--epochs", "3")) == 2
    said = capsys.readouterr().err
    weights = deepspeeds / "checkpoint-1" / "mp_rank_00_model_states.pt"
    assert f"--resume {weights} --resume_weights_only" in said
    assert sorted(deepspeeds.rglob("*")) == before

    tokenizer = ["--sentencepiece_model", str(trained / "tokenizer.spm")]
    go_on = finetune(scpc, tmp_path / "on", "--epochs", "3", "--resume", str(weights), *tokenizer)
    assert main(go_on) == 2
    assert "with DeepSpeed" in capsys.readouterr().err
    assert main([*go_on, "--resume_weights_only"]) == 0
    assert "2 epochs done, 1 to go" in capsys.readouterr().out

    best = deepspeeds / "checkpoint-best" / "mp_rank_00_model_states.pt"
    own = answers_of(tmp_path / "own", "--resume", str(trained / "checkpoint-0.pth"), "--data_path", str(scpc / "data"))
    theirs = ["--data_path", str(scpc / "data"), *vouched(scpc), *tokenizer]
    assert answers_of(tmp_path / "theirs", "--finetune", str(best), *theirs) == own

    assert main(finetune(scpc, deepspeeds, "--epochs", "1", "--no_auto_resume")) == 0
    assert f"{weights.parent} is of another run, with DeepSpeed" in capsys.readouterr().out
    assert weights.is_file()


def test_the_first_of_test_questions_with_one_id_counts(scpc, trained, tmp_path, capsys):
    folder = tmp_path / "fork"
    folder.mkdir()
    for name in ("answer2label.txt", "tokenizer.spm"):
        shutil.copy(scpc / "data" / name, folder / name)
    rows = [{"image_path": "0_coffee.jpg", "text_segment": [4, 5 + n], "labels": "", "scores": "", "qid": n % 3}
            for n in range(5)]  # fmt: skip
    flags = ["--resume", str(trained / "checkpoint-best.pth"), "--data_path", str(folder)]
    flags += ["--image_root", str(scpc / "images")]
    (folder / "vqa.test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    firsts = answers_of(tmp_path / "firsts", *flags)
    predictions = (tmp_path / "firsts" / "predictions.json").read_text()
    (folder / "vqa.test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert answers_of(tmp_path / "all", *flags) == firsts
    assert (tmp_path / "all" / "predictions.json").read_text() == predictions
    assert "left out 2 rows that repeat the id of an earlier row, such as" in capsys.readouterr().out
    (folder / "vqa.rest_val.jsonl").write_text((folder / "vqa.test.jsonl").read_text())
    assert answers_of(tmp_path / "val", *flags, "--split", "val") is None  # a score would count them twice
    assert "the id '0' is on line 1 too" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_a_scaler_that_is_on_takes_the_state_that_is_saved_without_fp16(trained):
    saved = torch.load(trained / "checkpoint-0.pth")["scaler"]
    scaler = torch.amp.GradScaler("cpu")  # upstream's is always on
    fresh = scaler.state_dict()
    scaler.load_state_dict(saved)
    assert scaler.state_dict() == fresh
