"""Several folders of --data_path: what an epoch shows of each, what validates, and runs that go on exactly."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

import beit3_vqa
from beit3_vqa.cli.main import main
from beit3_vqa.engine.checkpoint.save import Saver
from beit3_vqa.errors import InputError
from tests.faults.kills import differences
from tests.helpers.captioned import prepare_captioned
from tests.helpers.commands import CLIP, TINY
from tests.helpers.generated import write_imagenet, write_nlvr2, write_vqav2
from tests.helpers.photographs import write_scpc_csv
from tests.helpers.processes import ended, start, torchrun, wait_until

FLAGS = ["--batch_size", "3", "--update_freq", "2", "--num_workers", "0", "--drop_path", "0.2", "--epochs", "2"]
MIX = ["--mix", "1,2,0.5"]
FLAGS += ["--prompt_template", "{question} Choices: {options}"]


@pytest.fixture(scope="module")
def sources(scpc, tmp_path_factory):
    """Three prepared folders: 30 rows of four options, 17 of three options with images of their own, 10 of four."""
    folder = tmp_path_factory.mktemp("sources")
    names = sorted(path.name for path in (scpc / "images").iterdir())
    (folder / "small").mkdir()
    for name in names[:6]:
        shutil.copy(scpc / "images" / name, folder / "small" / f"own_{name}")
    prepared = []
    for name, rows, images, prefix in (("three", 20, folder / "small", "own_"), ("last", 12, scpc / "images", "")):
        table = write_scpc_csv(folder / f"{name}.csv", [prefix + n for n in names[:6]], rows, answers=True, seed=rows)
        if name == "three":
            drop_fourth_option(table)
        arguments = ["--train", str(table), "--image_root", str(images), "--data_path", str(folder / name)]
        assert main(["prepare", "choices", *arguments]) == 0
        prepared.append(str(folder / name))
    return [str(scpc / "data"), *prepared]


def drop_fourth_option(table: Path):
    """Leave three options in each row, one of them the answer."""
    lines = [line.split(",") for line in table.read_text(encoding="utf-8").splitlines()]
    place = lines[0].index("D")
    for line in lines[1:]:
        answer = lines[0].index(line[lines[0].index("answer")])
        if answer == place:
            line[place - 1] = line[place]
            line[lines[0].index("answer")] = "C"
    table.write_text("".join(",".join(c for i, c in enumerate(line) if i != place) + "\n" for line in lines))


def command(sources, out, *flags):
    return ["finetune", *TINY, "--data_path", *sources, "--output_dir", str(out), *FLAGS, *flags]


def read_log(out):
    return [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]


def same(one, two, *names):
    for name in names:
        contents = [torch.load(folder / name) for folder in (one, two)]
        for content in contents:
            content["args"] = None
        assert differences(*contents) == [], name
    logs = [[{k: v for k, v in line.items() if k != "examples_per_second"} for line in read_log(f)] for f in (one, two)]
    assert logs[0] == logs[1]


@pytest.fixture
def killed(monkeypatch):
    """Return a function that lets a run end, as by SIGKILL, as soon as its so-many-th checkpoint in an epoch is there.

    Nothing that the run would have done after it is done.
    """
    save, saved, wanted = Saver.save_step, 0, 0

    def save_and_end(saver):
        nonlocal saved
        save(saver)
        saver.settle()
        saved += 1
        if saved == wanted:
            raise KeyboardInterrupt

    def arm(count):
        nonlocal saved, wanted
        saved, wanted = 0, count
        monkeypatch.setattr(Saver, "save_step", save_and_end)
        return monkeypatch

    return arm


@pytest.fixture(scope="module")
def straight(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "out"
    assert main(command(sources, out, *MIX)) == 0
    return out


def test_validation_is_on_the_last_source_and_the_others_are_told_beside_it(straight, sources):
    for line in read_log(straight):
        by_source = line["val_accuracy_by_source"]
        assert {name: of["questions"] for name, of in by_source.items()} == {"data": 6, "three": 3, "last": 2}
        assert by_source["last"]["accuracy"] == line["val_accuracy"]
    best = max(line["val_accuracy"] for line in read_log(straight))
    assert torch.load(straight / "checkpoint-best.pth")["best_score"] == best
    assert json.loads((straight / "config.json").read_text())["data"]["data_path"] == sources


@pytest.mark.parametrize("saves", [pytest.param(1, marks=pytest.mark.slow), 4])  # in the first epoch, in the second
def test_a_run_that_is_killed_in_an_epoch_goes_on_bitwise(straight, sources, tmp_path, killed, capsys, saves):
    out = tmp_path / "out"
    monkeypatch = killed(saves)
    assert main(command(sources, out, *MIX, "--save_steps", "5")) == 130
    monkeypatch.undo()
    capsys.readouterr()
    assert main(command(sources, out, *MIX)) == 0
    assert f"{5 * (2 - saves % 2) * 6} of 70 examples of the next done" in capsys.readouterr().out
    same(out, straight, "checkpoint-0.pth", "checkpoint-1.pth", "checkpoint-best.pth")


@pytest.mark.slow
def test_another_mix_begins_the_epoch_again(sources, tmp_path, killed, capsys):
    out = tmp_path / "out"
    monkeypatch = killed(1)
    assert main(command(sources, out, *MIX, "--save_steps", "5")) == 130
    monkeypatch.undo()
    assert main(command(sources, out, "--mix", "2,2,1", "--epochs", "1")) == 0
    said = capsys.readouterr().out
    assert "mix '1,2,0.5' -> 2,2,1, epochs 2 -> 1" in said
    assert "(rows 70 -> 50, mix [20, 40, 10] -> [20, 20, 10])" in said


def test_without_a_mix_every_row_of_all_sources_comes_once(sources, tmp_path, capsys):
    assert main(command(sources, tmp_path, "--dry_run")) == 0
    said = capsys.readouterr().out
    assert "training: 57 questions, 10 steps of 6 an epoch" in said
    assert f"an epoch: 30 of 30 questions of {sources[0]}, 17 of 17 questions of {sources[1]}, 10 of 10" in said
    assert list(tmp_path.iterdir()) == []


def test_validation_rows_that_another_source_trains_on_are_told(sources, tmp_path, capsys):
    shutil.copytree(sources[2], tmp_path / "leaky")
    shutil.copy(tmp_path / "leaky" / "vqacustom.val.jsonl", tmp_path / "leaky" / "vqacustom.train.jsonl")
    leaky = [sources[0], str(tmp_path / "leaky"), sources[2]]
    assert main(command(leaky, tmp_path / "out", "--dry_run")) == 0
    said = capsys.readouterr().out
    assert "val: 2 of 2 rows are trained on too" in said
    assert "val: images that another --data_path trains on: 1." in said
    assert main(command(sources, tmp_path / "out", "--dry_run")) == 0
    assert "train" not in capsys.readouterr().out.partition("val: 2 questions")[2].partition("val of data")[0]


@pytest.mark.parametrize(
    ("flags", "draws", "validated"),
    [
        pytest.param(["--mix", "1,2,0.5"], (20, 40, 10), 2, marks=pytest.mark.slow),
        pytest.param(["--mix", "0,1,0"], (0, 17, 0), 2, marks=pytest.mark.slow),
        pytest.param(["--mix", "1,2,0.5", "--val_from", "1"], (30, 60, 15), 6, marks=pytest.mark.slow),
        pytest.param(["--mix", "1,1,1", "--val_from", "SECOND"], (17, 17, 17), 3, marks=pytest.mark.slow),
    ],
)
def test_an_epoch_shows_the_source_that_is_validated_on_once(sources, tmp_path, capsys, flags, draws, validated):
    flags = [sources[1] if flag == "SECOND" else flag for flag in flags]
    assert main(command(sources, tmp_path, "--dry_run", *flags)) == 0
    said = capsys.readouterr().out
    counts = [
        f"{count} of {rows} questions of {folder}" if count else f"none of {folder}"
        for count, rows, folder in zip(draws, (30, 17, 10), sources, strict=True)
    ]
    assert f"an epoch: {', '.join(counts)}\n" in said
    assert f"\nval: {validated} questions" in said


def test_evaluation_tells_the_other_sources_too(straight, sources, tmp_path, capsys):
    evaluate = ["finetune", "--eval", "--split", "val", "--resume", str(straight / "checkpoint-1.pth")]
    evaluate += ["--data_path", *sources, "--device", "cpu", "--num_workers", "0"]
    last = read_log(straight)[-1]["val_accuracy_by_source"]
    for number, name in ((3, "last"), (2, "three")):
        assert main([*evaluate, "--val_from", str(number), "--output_dir", str(tmp_path / name)]) == 0
        metrics = json.loads((tmp_path / name / "metrics_val.json").read_text())
        assert metrics["accuracy_by_source"] == last
        assert metrics["accuracy"] == last[name]["accuracy"]
        assert len(json.loads((tmp_path / name / "predictions_val.json").read_text())) == last[name]["questions"]
    assert "val accuracy by source: data" in capsys.readouterr().out


@pytest.mark.slow
def test_images_come_from_each_sources_root_or_from_the_one_that_is_given(sources, scpc, tmp_path, capsys):
    images = str(scpc / "images")
    own = str(Path(sources[1]).parent / "small")
    assert main(command(sources, tmp_path, "--dry_run", "--image_root", images, own, images)) == 0
    assert main(command([sources[0], sources[2]], tmp_path, "--dry_run", "--image_root", images)) == 0
    assert main(command(sources, tmp_path, "--dry_run", "--image_root", images)) == 2
    assert "own_0_astronaut.jpg" in capsys.readouterr().err
    assert main(command(sources, tmp_path, "--dry_run", "--image_root", images, own)) == 2
    assert "--image_root: has 2 folders for 3 folders of --data_path" in capsys.readouterr().err


@pytest.mark.slow
def test_what_has_changed_in_any_source_is_told(straight, sources, tmp_path, capsys):
    out, changed = tmp_path / "out", tmp_path / "data"
    shutil.copytree(straight, out)
    shutil.copytree(sources[0], changed)
    info = json.loads((changed / "dataset.json").read_text())
    (changed / "dataset.json").write_text(json.dumps({**info, "image_root": str(Path(sources[0]).parent / "images")}))
    for split in ("train", "val"):
        file = changed / f"vqacustom.{split}.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join(lines[1:]), encoding="utf-8")
    again = command([str(changed), *sources[1:]], out, *MIX, "--epochs", "3")
    assert main(again) == 0
    assert "changed since the checkpoint; train: 1 removed; val 1: 1 removed" in capsys.readouterr().out
    # Another source that validates makes scores that can't be compared.
    assert main([*again, "--val_from", "1"]) == 2
    assert "the validation split has changed" in capsys.readouterr().err


@pytest.fixture(scope="module")
def unfit(sources, tmp_path_factory):
    """Folders that can't be trained on together with the others."""
    folder = tmp_path_factory.mktemp("unfit")
    shutil.copytree(sources[2], folder / "open")
    for file in (folder / "open").glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        open_ended = [{k: v for k, v in row.items() if k != "choices"} | {"answer": "a cat"} for row in rows]
        file.write_text("".join(f"{json.dumps(row)}\n" for row in open_ended))
    (folder / "open" / "answer2label.txt").write_text('{"answer": "a cat", "label": 0}\n')
    (folder / "empty").mkdir()
    shutil.copy(Path(sources[2]) / "answer2label.txt", folder / "empty")
    shutil.copytree(sources[2], folder / "tokenizer")
    (folder / "tokenizer" / "tokenizer.spm").write_bytes(b"another")
    return folder


@pytest.mark.parametrize(
    ("name", "flags", "says"),
    [
        ("open", [], "open: its answers or classes aren't those of "),
        ("empty", [], "empty: has no train split; it has none at all"),
        ("tokenizer", [], "is another tokenizer than"),
        ("nowhere", [], "there is no folder"),
    ],
)
def test_a_folder_that_does_not_fit_is_named(sources, unfit, tmp_path, capsys, name, flags, says):
    assert main(command([str(unfit / name), sources[0]], tmp_path / "out", *flags)) == 2
    said = capsys.readouterr().err
    assert says in said
    assert str(unfit / name) in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_prompt_for_four_options_is_refused_if_a_source_has_three(sources, tmp_path, capsys):
    flags = ["--prompt_template", "{question} Choices: A. {a} B. {b} C. {c} D. {d}", "--dry_run"]
    assert main(command(sources, tmp_path, *flags)) == 2
    assert "is for 4 options, and a question has 3" in capsys.readouterr().err


@pytest.mark.slow
def test_a_source_without_training_rows_may_validate_if_its_share_is_none(sources, tmp_path, capsys):
    only_val = tmp_path / "only_val"
    shutil.copytree(sources[2], only_val)
    info = json.loads((only_val / "dataset.json").read_text())
    images = str((Path(sources[2]) / info["image_root"]).resolve())
    (only_val / "dataset.json").write_text(json.dumps({**info, "image_root": images}))
    (only_val / "vqacustom.train.jsonl").unlink()
    assert main(command([sources[0], str(only_val)], tmp_path, "--dry_run", "--mix", "1,0")) == 0
    assert f"30 of 30 questions of {sources[0]}, none of {only_val}" in capsys.readouterr().out
    assert main(command([sources[0], str(only_val)], tmp_path, "--dry_run")) == 2
    assert "has no train split" in capsys.readouterr().err


def prepare(task, folder):
    """Return a prepared folder for a task."""
    if task in ("coco_retrieval", "coco_captioning"):
        return prepare_captioned(folder, train=9)
    write = {"vqav2": write_vqav2, "nlvr2": write_nlvr2, "imagenet": write_imagenet}[task]
    raw = str(write(folder / "raw", 12))
    own = [] if task == "imagenet" else ["--annotations", raw, "--train_tokenizer", "60"]
    own += ["--val_images", "6", "--min_count", "2"] if task == "vqav2" else []
    assert main(["prepare", task, *own, "--image_root", raw, "--data_path", str(folder / "data")]) == 0
    return folder / "data"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["vqav2", "nlvr2", "imagenet", "coco_retrieval", "coco_captioning", "vqarank", "clip"])
def test_every_task_and_family_trains_on_sources(task, sources, clip_folder, tmp_path):
    """On a folder and its copy, so that both must score the same."""
    own = task in ("vqarank", "clip")
    data = Path(sources[0]) if own else prepare(task, tmp_path)
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(data, copy)
    images = json.loads((data / "dataset.json").read_text())["image_root"]
    run = ["finetune", *TINY, "--num_workers", "0", "--batch_size", "4", "--epochs", "1", "--output_dir", str(out)]
    if task == "clip":
        run += ["--model", f"{CLIP.name}_lora", "--pretrained", str(clip_folder), "--lora_rank", "4"]
    run += ["--task", "vqacustom" if task == "clip" else task, "--data_path", str(copy), str(data), "--mix", "1,1"]
    assert main([*run, "--image_root", str((data / images).resolve())]) == 0
    (line,) = read_log(out)
    (metric,) = (name for name in line if name.endswith("_by_source"))
    one, other = line[metric].values()
    assert set(line[metric]) == {"copy", "data"}
    assert one == other
    assert one[metric.removeprefix("val_").removesuffix("_by_source")] == line[metric.removesuffix("_by_source")]


@pytest.mark.slow
def test_a_source_with_fewer_options_is_evaluated_alone_with_the_longer_table(straight, sources, tmp_path, capsys):
    evaluate = ["finetune", "--eval", "--split", "val", "--resume", str(straight / "checkpoint-1.pth"), "--device"]
    evaluate += ["cpu", "--num_workers", "0", "--data_path", sources[1], "--output_dir", str(tmp_path)]
    assert main(evaluate) == 2
    assert "was trained with another answer table" in capsys.readouterr().err
    assert main([*evaluate, "--answer2label", f"{sources[0]}/answer2label.txt"]) == 0
    accuracy = read_log(straight)[-1]["val_accuracy_by_source"]["three"]["accuracy"]
    assert json.loads((tmp_path / "metrics_val.json").read_text())["accuracy"] == accuracy


@pytest.mark.slow
def test_an_image_that_can_not_be_read_is_skipped_in_any_source(sources, tmp_path, capsys):
    small = tmp_path / "small"
    shutil.copytree(Path(sources[1]).parent / "small", small)
    (small / "own_0_chelsea.jpg").write_bytes(b"no image")
    images = str(Path(sources[0]).parent / "images")
    run = command(sources, tmp_path / "out", *MIX, "--epochs", "1", "--image_root", images, str(small), images)
    assert main(run) == 2
    assert "own_0_chelsea.jpg" in capsys.readouterr().err
    assert main([*run, "--skip_bad_images", "1"]) == 0
    assert "bad image 1 of 1 allowed" in capsys.readouterr().out


@pytest.mark.slow
def test_python_takes_several_folders(sources, scpc, tmp_path):
    flags = {"model": "beit3_tiny_patch8_32", "vocab_size": 300, "device": "cpu", "num_workers": 0, "dry_run": True}
    roots = [scpc / "images", scpc / "images"]
    run = beit3_vqa.fit([Path(sources[0]), sources[2]], mix="1,1", image_root=roots, batch_size=4, **flags)
    assert run.checkpoint is None
    with pytest.raises(InputError, match=r"fit: data_path can't be .*, 5\]"):
        beit3_vqa.fit([sources[0], 5], **flags)


@pytest.mark.slow
def test_a_run_that_gets_a_real_sigkill_goes_on_bitwise(sources, tmp_path):
    straight, out, log = tmp_path / "straight", tmp_path / "out", tmp_path / "log"
    code, said = ended(start(command(sources, straight, *MIX), log), log)  # with as many threads as the others
    assert code == 0, said
    run = command(sources, out, *MIX, "--save_steps", "2", "--log_interval", "0", "--num_workers", "1")
    process = start(run, log)
    wait_until(lambda: (out / "checkpoint-1-step4.pth").exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    code, said = ended(start(run, log), log)
    assert code == 0, said
    same(out, straight, "checkpoint-0.pth", "checkpoint-1.pth", "checkpoint-best.pth")


@pytest.mark.slow
def test_two_processes_go_on_bitwise(sources, tmp_path):
    """Stopped by a signal in an epoch, which the run saves."""
    log = tmp_path / "log"
    straight, out = tmp_path / "straight", tmp_path / "out"
    code, said = ended(start(["-m", "beit3_vqa", *command(sources, straight, *MIX)], log, *torchrun(2)), log)
    assert code == 0, said
    run = command(sources, out, *MIX, "--log_interval", "0")
    process = start(["-m", "beit3_vqa", *run, "--save_steps", "1"], log, *torchrun(2))
    wait_until(lambda: (out / "checkpoint-0-step2.pth").exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    code, said = ended(start(["-m", "beit3_vqa", *run], log, *torchrun(2)), log)
    assert code == 0, said
    same(out, straight, "checkpoint-0.pth", "checkpoint-1.pth", "checkpoint-best.pth")


@pytest.fixture(scope="module")
def judged(sources, straight, tmp_path_factory):
    """The predictions of a model for the training rows of the last source, some of them right."""
    folder = tmp_path_factory.mktemp("judged")
    evaluate = ["finetune", "--eval", "--split", "train", "--resume", str(straight / "checkpoint-1.pth"), "--device"]
    assert main([*evaluate, "cpu", "--num_workers", "0", "--data_path", sources[2], "--output_dir", str(folder)]) == 0
    file = folder / "predictions_train.json"
    rows = json.loads(file.read_text())
    for number, row in enumerate(rows):  # three wrong ones, whatever the model said
        row["answer"] = row["truth"] if number > 2 else next(c for c in "ABCD" if c != row["truth"])
        row["probabilities"] = {letter: float(letter == row["answer"]) for letter in "ABCD"}
        del row["score"]
    (folder / "predictions.json").write_text(json.dumps(rows))
    return folder / "predictions.json"


@pytest.mark.parametrize("alone", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_hard_examples_come_in_the_asked_proportion_and_go_on_bitwise(sources, judged, tmp_path, killed, capsys, alone):
    flags = ["--hard_examples", str(judged), *([] if alone else MIX), "--epochs", "2", "--sentencepiece_model"]
    folders = sources[2:] if alone else sources
    run = [*flags, f"{sources[0]}/tokenizer.spm"]
    assert main(command(folders, tmp_path / "straight", *run)) == 0
    said = capsys.readouterr().out
    assert f"{judged}: 3 wrong and 7 right rows of last; an epoch has 5 and 5 of them\n" in said
    assert f"training: {10 if alone else 70} questions" in said
    out = tmp_path / "out"
    monkeypatch = killed(2 if alone else 7)
    assert main(command(folders, out, *run, "--save_steps", "1")) == 130
    monkeypatch.undo()
    capsys.readouterr()
    assert main(command(folders, out, *run)) == 0
    assert "examples of the next done" in capsys.readouterr().out
    same(out, tmp_path / "straight", "checkpoint-0.pth", "checkpoint-1.pth", "checkpoint-best.pth")


@pytest.mark.slow
def test_other_hard_examples_begin_the_epoch_again(sources, judged, tmp_path, killed, capsys):
    file = tmp_path / "predictions.json"
    shutil.copy(judged, file)
    run = ["--hard_examples", str(file), "--sentencepiece_model", f"{sources[0]}/tokenizer.spm"]
    monkeypatch = killed(1)
    assert main(command(sources[2:], tmp_path / "out", *run, "--save_steps", "1")) == 130
    monkeypatch.undo()
    rows = json.loads(file.read_text())
    rows[0] |= {"answer": rows[0]["truth"], "probabilities": {c: float(c == rows[0]["truth"]) for c in "ABCD"}}
    file.write_text(json.dumps(rows))
    assert main(command(sources[2:], tmp_path / "out", *run, "--dry_run")) == 0
    assert (
        "the epoch begins again, since its examples come in another order now (hard_examples "
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--hard_examples", "nowhere.json"], "nowhere.json"),
        (["--hard_examples", "JUDGED", "--hard_ratio", "0"], "--hard_ratio 0.0: must be more than 0"),
        (["--hard_examples", "JUDGED", "--hard_ratio", "nan"], "--hard_ratio nan: must be more than 0"),
        (["--hard_examples", "JUDGED", "--balance_answers", "1"], "--balance_answers and --hard_examples both say"),
    ],
)
def test_bad_hard_examples_are_one_error(sources, judged, tmp_path, capsys, flags, says):
    flags = [str(judged) if flag == "JUDGED" else flag for flag in flags]
    assert main(command(sources, tmp_path / "out", *flags)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
