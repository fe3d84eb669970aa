"""End to end, by the command line: train, stop, resume, evaluate, ask; on real photographs."""

import csv
import json
import shlex
import shutil

import pytest
import torch

import beit3_vqa
from beit3_vqa.cli.main import main
from beit3_vqa.config.resolve import resolve
from beit3_vqa.engine import api, build
from beit3_vqa.engine.checkpoint.io import read_checkpoint, save_checkpoint
from tests.helpers.checkpoint_files import tensors
from tests.helpers.commands import finetune
from tests.helpers.photographs import SUBJECTS
from tests.helpers.processes import run_in_new_process

EVERYTHING_ON = ["--model_ema", "--model_ema_decay", "0.9", "--update_freq", "2", "--drop_path", "0.2", "--randaug"]


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_resume_is_bitwise_identical(scpc, tmp_path, workers):
    flags = ["--epochs", "2", *EVERYTHING_ON, "--num_workers", workers]
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    run_in_new_process(finetune(scpc, straight, *flags))
    run_in_new_process(finetune(scpc, parts, *flags, "--stop_after_epochs", "1"))
    assert not (parts / "checkpoint-1.pth").exists()
    said = run_in_new_process(finetune(scpc, parts, *flags))
    assert "1 epoch done, 1 to go" in said
    for name in ("checkpoint-1.pth", "checkpoint-best.pth"):
        one, two = (read_checkpoint(folder / name, "x") for folder in (straight, parts))
        ours = dict(tensors(one))
        assert any("model_ema" in key for key in ours)
        for key, value in tensors(two):
            assert torch.equal(value, ours.pop(key)), key
        assert not ours
        assert one["best_score"] == two["best_score"]
    assert (straight / "log.txt").read_text().count("\n") == (parts / "log.txt").read_text().count("\n") == 2


@pytest.mark.slow
def test_every_entry_point_settles_its_options_once(scpc, trained, tmp_path, monkeypatch):
    settled = []

    def counting(*of, **how):
        settled.append(resolve(*of, **how))
        return settled[-1]

    for module in (api, build):
        monkeypatch.setattr(module, "resolve", counting)
    ask = ["predict", "--image", str(scpc / "images" / "0_chelsea.jpg"), "--question", "?", "--choices", *"abcd"]
    ways_in = [
        finetune(scpc, tmp_path / "out", "--dry_run"),
        finetune(scpc, trained, "--dry_run", "--epochs", "3"),
        finetune(scpc, tmp_path / "out", "--dry_run", "--epochs", "3", "--resume", str(trained / "checkpoint-1.pth")),
        finetune(scpc, tmp_path / "out", "--eval", "--split", "val", "--resume", str(trained / "checkpoint-best.pth")),
        [*ask, "--checkpoint", str(trained / "checkpoint-best.pth"), "--device", "cpu"],
    ]
    for number, command in enumerate(ways_in, start=1):
        assert main(command) == 0
        assert len(settled) == number, command


def test_training_leaves_checkpoints_log_and_config(trained):
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "checkpoint-0.pth",
        "checkpoint-1.pth",
        "checkpoint-best.pth",
        "checkpoint-0.json",
        "checkpoint-1.json",
        "checkpoint-best.json",
        "config.json",
        "log.txt",
        "tokenizer.spm",
        "tensorboard",
    }
    lines = [json.loads(line) for line in (trained / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert all({"train_loss", "train_lr", "val_accuracy"} <= set(line) for line in lines)
    content = torch.load(trained / "checkpoint-1.pth")  # plain data: loads under weights_only's default
    assert {"model", "optimizer", "epoch", "scaler", "args"} <= set(content)
    assert json.loads((trained / "config.json").read_text())["optim"]["epochs"] == 2


def test_tensorboard_has_the_scalars(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/lr", "val/accuracy"} <= set(events.Tags()["scalars"])


def test_evaluation_writes_every_row_once_in_order(scpc, trained, tmp_path, capsys):
    out = tmp_path / "eval"
    arguments = ["finetune", "--eval", "--resume", str(trained / "checkpoint-best.pth"), "--device", "cpu"]
    arguments += ["--data_path", str(scpc / "data"), "--output_dir", str(out), "--num_workers", "0"]
    assert main(arguments) == 0
    with (scpc / "test.csv").open(encoding="utf-8") as file:
        ids = [row["ID"] for row in csv.DictReader(file)]
    with (out / "submission.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["ID"] for row in rows] == ids  # each once, in the order of the input
    assert {row["answer"] for row in rows} <= set("ABCD")
    predictions = json.loads((out / "predictions.json").read_text())
    assert [p["answer"] for p in predictions] == [row["answer"] for row in rows]
    for prediction in predictions:
        assert list(prediction["probabilities"]) == list("ABCD")
        assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert prediction["answer"] == max(prediction["probabilities"], key=prediction["probabilities"].get)
    upstream = json.loads((out / "submit_vqacustom_test.json").read_text())
    assert [set(row) for row in upstream] == [{"question_id", "answer"}] * len(ids)
    assert not (out / "metrics.json").exists()  # the test answers aren't known

    assert main([*arguments, "--split", "val", "--batch_size", "3"]) == 0
    metrics = json.loads((out / "metrics_val.json").read_text())
    val = [json.loads(line) for line in (scpc / "data" / "vqacustom.val.jsonl").read_text().splitlines()]
    answers = {p["id"]: p["answer"] for p in json.loads((out / "predictions_val.json").read_text())}
    assert metrics["questions"] == len(val)
    assert metrics["accuracy"] == pytest.approx(100 * sum(answers[r["id"]] == r["answer"] for r in val) / len(val))
    assert metrics["accuracy"] == read_checkpoint(trained / "checkpoint-best.pth", "x")["best_score"]
    blind = metrics["baselines"]["most_frequent_answer"]["accuracy"]
    told = f"without looking, always giving the answer that is right most often in the training answers: {blind:.2f}"
    assert f"(chance 25.00; {told})" in capsys.readouterr().out


def test_evaluation_equals_asking_one_by_one(scpc, trained, tmp_path):
    out = tmp_path / "eval"
    assert main(["finetune", "--eval", "--output_dir", str(trained), "--data_path", str(scpc / "data"),
                 "--num_workers", "2", "--device", "cpu", "--precision", "fp32"]) == 0  # fmt: skip
    written = json.loads((trained / "predictions.json").read_text())
    for name in ("predictions.json", "submission.csv", "submit_vqacustom_test.json"):
        (trained / name).rename(out.parent / name)
    rows = [json.loads(line) for line in (scpc / "data" / "vqacustom.test.jsonl").read_text().splitlines()]
    model = beit3_vqa.load(trained / "checkpoint-best.pth", device="cpu", precision="fp32")
    for row, expected in list(zip(rows, written, strict=True))[:4]:
        prediction = model.predict(scpc / "images" / row["image_path"], row["question"], row["choices"])
        assert prediction.answer == expected["answer"]
        assert prediction.probabilities == pytest.approx(expected["probabilities"], abs=1e-5)


def test_predict_prints_every_option_and_marks_one(scpc, trained, capsys):
    image = next((scpc / "images").iterdir())
    command = ["predict", "--checkpoint", str(trained / "checkpoint-best.pth"), "--device", "cpu"]
    command += ["--image", str(image), "--question", "What is this?", "--choices"]
    assert main([*command, *SUBJECTS[:4]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines] == list("ABCD")
    assert sum("<-" in line for line in lines) == 1
    assert main([*command, *SUBJECTS[:3]]) == 2
    assert "4 options" in capsys.readouterr().err


def test_finetune_from_another_resolution_and_head(scpc, trained, tmp_path, capsys):
    weights = torch.load(trained / "checkpoint-best.pth")["model"]
    weights["head.3.weight"], weights["head.3.bias"] = torch.zeros(13, 256), torch.zeros(13)
    torch.save({"module": {name: value.half() for name, value in weights.items()}}, tmp_path / "other.pth")
    flags = ["--finetune", str(tmp_path / "other.pth"), "--epochs", "1", "--model", "beit3_tiny_patch8_64"]
    assert main(finetune(scpc, tmp_path / "out", *flags)) == 0
    said = capsys.readouterr().out
    assert "from 4x4 to 8x8 patches" in said
    assert "head.3.weight (13, 256)" in said
    assert "new, not in the checkpoint: head.3.weight, head.3.bias" in said


def test_a_resumed_optimizer_takes_this_runs_options(scpc, trained, tmp_path):
    resume = ["--resume", str(trained / "checkpoint-0.pth"), "--epochs", "2", "--weight_decay", "0.3"]
    assert main(finetune(scpc, tmp_path / "out", *resume, "--opt_betas", "0.5", "0.6")) == 0
    groups = torch.load(tmp_path / "out" / "checkpoint-1.pth")["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.3}
    assert {tuple(group["betas"]) for group in groups} == {(0.5, 0.6)}


def test_finetune_and_resume_evaluate_alike(scpc, tmp_path):
    template = "A. {a} B. {b} C. {c} D. {d} {question}"
    ema = ["--model_ema", "--model_ema_decay", "0.5", "--prompt_template", template]
    assert main(finetune(scpc, tmp_path / "run", "--epochs", "1", *ema)) == 0
    for flag in ("--resume", "--finetune"):
        command = ["finetune", "--eval", flag, str(tmp_path / "run" / "checkpoint-best.pth"), "--num_workers", "0"]
        command += ["--data_path", str(scpc / "data"), "--output_dir", str(tmp_path / flag), "--device", "cpu"]
        assert main(command) == 0
    assert (tmp_path / "--resume" / "predictions.json").read_text() == (
        tmp_path / "--finetune" / "predictions.json"
    ).read_text()
    content = torch.load(tmp_path / "run" / "checkpoint-best.pth")
    averaged = content["model_ema"]["head.3.weight"]
    assert not torch.equal(averaged, content["model"]["head.3.weight"])
    model = beit3_vqa.load(tmp_path / "run" / "checkpoint-best.pth", device="cpu", precision="fp32")
    assert torch.equal(model.components.model.head[3].weight, averaged)


def test_nothing_is_evaluated_without_a_head_or_with_other_answers(scpc, trained, tmp_path, capsys):
    content = torch.load(trained / "checkpoint-best.pth")
    headless = {name: value for name, value in content["model"].items() if name.startswith("beit3.")}
    torch.save({"model": headless, "args": content["args"]}, tmp_path / "headless.pth")
    evaluate = ["finetune", "--eval", "--data_path", str(scpc / "data"), "--num_workers", "0", "--device", "cpu"]
    table = ["--answer2label", str(scpc / "data" / "answer2label.txt")]
    assert main([*evaluate, "--finetune", str(tmp_path / "headless.pth"), *table]) == 2
    assert "nothing to evaluate" in capsys.readouterr().err
    torch.save({**content, "task_state": {"answers": ["D", "C", "B", "A"]}}, tmp_path / "other.pth")
    for flag in ("--resume", "--finetune"):
        assert main([*evaluate, flag, str(tmp_path / "other.pth")]) == 2
        assert "another answer table" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))


def test_starting_over_never_overwrites(scpc, trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(finetune(scpc, out, "--epochs", "1")) == 0
    first = (out / "checkpoint-0.pth").read_bytes()
    assert main(finetune(scpc, out, "--epochs", "1", "--no_auto_resume", "--seed", "5")) == 0
    assert (out / "previous-1" / "checkpoint-0.pth").read_bytes() == first
    assert (out / "previous-1" / "tensorboard").is_dir()
    assert (out / "checkpoint-0.pth").read_bytes() != first
    second = (out / "checkpoint-0.pth").read_bytes()
    elsewhere = ["--resume", str(trained / "checkpoint-0.pth"), "--epochs", "2"]
    assert main(finetune(scpc, out, *elsewhere)) == 0
    assert (out / "previous-2" / "checkpoint-0.pth").read_bytes() == second
    assert not (out / "checkpoint-0.pth").exists()
    assert main(finetune(scpc, out, "--epochs", "2")) == 0
    assert "nothing left to train" in capsys.readouterr().out
    assert not (out / "previous-3").exists()


@pytest.mark.slow
def test_keep_checkpoints_and_best_through_resume(scpc, tmp_path):
    out = tmp_path / "out"
    assert main(finetune(scpc, out, "--epochs", "3", "--keep_checkpoints", "1", "--stop_after_epochs", "2")) == 0
    assert sorted(path.name for path in out.glob("*.pth")) == ["checkpoint-1.pth", "checkpoint-best.pth"]
    content = torch.load(out / "checkpoint-1.pth")
    save_checkpoint(out / "checkpoint-1.pth", {**content, "best_score": 101.0})  # no epoch can beat that
    best = (out / "checkpoint-best.pth").read_bytes()
    assert main(finetune(scpc, out, "--epochs", "3", "--keep_checkpoints", "1")) == 0
    assert sorted(path.name for path in out.glob("*.pth")) == ["checkpoint-2.pth", "checkpoint-best.pth"]
    assert torch.load(out / "checkpoint-2.pth")["best_score"] == 101.0
    assert (out / "checkpoint-best.pth").read_bytes() == best


@pytest.mark.slow
def test_going_back_an_epoch_keeps_what_came_after(scpc, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(finetune(scpc, out, "--epochs", "3")) == 0
    last = (out / "checkpoint-2.pth").read_bytes()
    back = ["--resume", str(out / "checkpoint-0.pth"), "--epochs", "3", "--keep_checkpoints", "1"]
    assert main(finetune(scpc, out, *back, "--stop_after_epochs", "1")) == 0
    assert "trained again" in capsys.readouterr().out
    assert (out / "previous-1" / "checkpoint-2.pth").read_bytes() == last
    assert [path.name for path in out.glob("checkpoint-?.pth")] == ["checkpoint-1.pth"]


@pytest.mark.slow
def test_resume_weights_only_starts_a_new_optimizer(scpc, trained, tmp_path, capsys):
    resume = finetune(scpc, tmp_path / "out", "--resume", str(trained / "checkpoint-0.pth"), "--epochs", "2")
    assert main([*resume, "--layer_decay", "1.0"]) == 2
    assert "--resume_weights_only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*resume, "--layer_decay", "1.0", "--resume_weights_only"]) == 0
    content = torch.load(trained / "checkpoint-0.pth")
    content["model"]["head.3.weight"], content["model"]["head.3.bias"] = torch.zeros(7, 256), torch.zeros(7)
    content["task_state"] = {"answers": list("ABCDEFG")}
    torch.save(content, tmp_path / "seven.pth")
    other_head = finetune(scpc, tmp_path / "seven", "--resume", str(tmp_path / "seven.pth"), "--epochs", "2")
    assert main(other_head) == 2
    assert "another answer table" in capsys.readouterr().err
    assert main([*other_head, "--resume_weights_only"]) == 0
    assert "head.3.weight (7, 256)" in capsys.readouterr().out
    best = finetune(scpc, tmp_path / "best", "--resume", str(trained / "checkpoint-best.pth"), "--epochs", "3")
    assert main(best) == 2
    assert "for evaluation" in capsys.readouterr().err


@pytest.mark.slow
def test_dry_run_writes_nothing(scpc, tmp_path, capsys):
    assert main(finetune(scpc, tmp_path / "out", "--dry_run")) == 0
    assert not (tmp_path / "out").exists()
    said = capsys.readouterr().out
    for word in ("parameters", "trained", "tokens per example", "memory", "an epoch with validation takes about"):
        assert word in said


@pytest.mark.slow
def test_a_run_from_scratch_is_told_of_rows_that_no_text_uses(scpc, tmp_path, capsys):
    main(finetune(scpc, tmp_path / "out", "--dry_run", "--vocab_size", "5000"))
    assert "--vocab_size 259 leaves out rows that no text ever uses" in capsys.readouterr().out
    main(finetune(scpc, tmp_path / "out", "--dry_run"))
    assert "leaves out rows" not in capsys.readouterr().out


def test_flags_win_over_a_saved_config(scpc, trained, tmp_path):
    again = ["finetune", "--config", str(trained / "config.json"), "--output_dir", str(tmp_path / "out")]
    assert main([*again, "--epochs", "1"]) == 0
    one, two = (json.loads((folder / "config.json").read_text()) for folder in (trained, tmp_path / "out"))
    assert one["model"] == two["model"]
    assert (one["optim"]["epochs"], two["optim"]["epochs"]) == (2, 1)


def test_a_saved_config_starts_any_session(scpc, trained, tmp_path):
    out = tmp_path / "out"
    assert main(finetune(scpc, out, "--epochs", "2", "--stop_after_epochs", "1")) == 0
    assert "stop_after_epochs" not in (out / "config.json").read_text()
    assert main(["finetune", "--config", str(out / "config.json")]) == 0
    assert (out / "checkpoint-1.pth").exists()
    start = ["--finetune", str(trained / "checkpoint-best.pth"), "--epochs", "1"]
    assert main(finetune(scpc, tmp_path / "tuned", *start)) == 0
    evaluate = ["finetune", "--eval", "--split", "val", "--config", str(tmp_path / "tuned" / "config.json")]
    assert main(evaluate) == 0  # what was trained, not what it started from
    metrics = json.loads((tmp_path / "tuned" / "metrics_val.json").read_text())
    assert metrics["accuracy"] == torch.load(tmp_path / "tuned" / "checkpoint-best.pth")["best_score"]


def test_tensorboard_keeps_its_points_through_a_resume(scpc, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(3):
        assert main(finetune(scpc, tmp_path / "out", "--epochs", "3", "--stop_after_epochs", "1")) == 0
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("val/accuracy")) == 3


def test_the_prompt_is_saved_with_the_checkpoint(scpc, tmp_path):
    template = "A. {a} B. {b} C. {c} D. {d} {question}"
    assert main(finetune(scpc, tmp_path / "out", "--epochs", "1", "--prompt_template", template)) == 0
    model = beit3_vqa.load(tmp_path / "out" / "checkpoint-best.pth", device="cpu", precision="fp32")
    assert model.components.processor.prompt.template == template


def test_training_with_bce_has_the_scale_of_upstreams_loss(scpc, tmp_path):
    assert main(finetune(scpc, tmp_path / "out", "--epochs", "1", "--vqa_loss", "bce")) == 0
    loss = json.loads((tmp_path / "out" / "log.txt").read_text())["train_loss"]
    # About 4 ln 2 = 2.77 at the start, four times the mean over classes; cross entropy would be about ln 4 = 1.39.
    assert 2.2 < loss < 3.4


@pytest.mark.slow
def test_a_fold_is_held_out_as_val_and_stays_that_of_the_run(scpc, tmp_path, capsys):
    prepare = ["prepare", "choices", "--train", str(scpc / "train.csv"), "--image_root", str(scpc / "images")]
    assert main([*prepare, "--data_path", str(tmp_path / "data"), "--folds", "3", "--train_tokenizer", "300"]) == 0
    assert main(finetune(tmp_path, tmp_path / "out", "--epochs", "1", "--dry_run")) == 0
    assert "--fold K holds one of them out" in capsys.readouterr().out
    assert main(finetune(tmp_path, tmp_path / "out", "--fold", "1", "--epochs", "1")) == 0
    rows = [json.loads(line) for line in (tmp_path / "data" / "vqacustom.train.jsonl").read_text().splitlines()]
    metrics = json.loads((tmp_path / "out" / "log.txt").read_text())
    assert metrics["val_questions"] == sum(row["fold"] == 1 for row in rows)
    assert main(finetune(tmp_path, tmp_path / "out2", "--fold", "3", "--epochs", "1")) == 2
    assert main(finetune(tmp_path, tmp_path / "out", "--fold", "0", "--epochs", "2")) == 2
    assert main(finetune(tmp_path, tmp_path / "out", "--fold", "1", "--epochs", "2", "--lr", "1e-4")) == 0


def test_the_next_command_runs_where_there_are_training_rows_alone(scpc, tmp_path, capsys):
    shutil.copytree(scpc / "data", tmp_path / "data")
    for split in ("val", "test"):
        (tmp_path / "data" / f"vqacustom.{split}.jsonl").unlink()
    images = ["--image_root", str(scpc / "images")]
    assert main([*finetune(tmp_path, tmp_path / "out", "--epochs", "1"), *images]) == 0
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("trained. Next: "))
    command = shlex.split(told.removeprefix("trained. Next: "))
    assert main([*command[1:], *images, "--device", "cpu"]) == 0


def test_open_ended_data_train_with_their_own_vocabulary(tmp_path, scpc, capsys):
    images = sorted(path.name for path in (scpc / "images").iterdir())
    (tmp_path / "images").mkdir()
    rows = []
    for number, name in enumerate(images):
        (tmp_path / "images" / f"img_{number}.jpg").write_bytes((scpc / "images" / name).read_bytes())
        answer = name.split("_")[1].split(".")[0]
        rows.append({"image_id": f"img_{number}", "question": "What?", "answer": answer, "question_id": f"q{number}"})
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (tmp_path / "test.json").write_text(json.dumps([{k: v for k, v in row.items() if k != "answer"} for row in rows]))
    command = ["prepare", "dacon_json", "--train", str(tmp_path / "train.json"), "--test", str(tmp_path / "test.json")]
    command += ["--image_root", str(tmp_path / "images"), "--data_path", str(tmp_path / "data")]
    assert main([*command, "--train_tokenizer", "300"]) == 0
    assert main(finetune(tmp_path, tmp_path / "out", "--epochs", "1")) == 0
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("trained. Next: "))
    command = shlex.split(told.removeprefix("trained. Next: "))
    assert command[:2] == ["beit3-vqa", "finetune"]  # pytest isn't run_beit3_finetuning.py
    assert main(["finetune", *command[2:]]) == 0
    with (tmp_path / "out" / "submission.csv").open(encoding="utf-8") as file:
        assert [row["ID"] for row in csv.DictReader(file)] == [row["question_id"] for row in rows]
