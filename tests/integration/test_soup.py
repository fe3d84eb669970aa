"""`beit3-vqa soup` by the command line: both families, with adapters and without, and what can't be averaged."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import beit3_vqa
from beit3_vqa.apps.soup.members import Member
from beit3_vqa.apps.soup.mixer import Mixer
from beit3_vqa.cli.main import main
from beit3_vqa.data.predictions import read_info
from beit3_vqa.engine.checkpoint.manifest import get_sha256, verify
from beit3_vqa.engine.run_lock import run_lock
from tests.helpers.captioned import write_captioned
from tests.helpers.commands import finetune, finetune_clip, train_on
from tests.helpers.processes import start

ON_CPU = ["--device", "cpu", "--precision", "fp32", "--num_workers", "0"]


def soup(scpc, out, *members, flags=()):
    data = ["--data_path", str(scpc / "data"), "--output_dir", str(out)]
    return ["soup", *map(str, members), *data, *ON_CPU, *flags]


def weights(path, key="model"):
    return torch.load(path, weights_only=True)[key]


def equal(one, two):
    assert one.keys() == two.keys()
    return all(one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def two(trained):
    return trained / "checkpoint-0.pth", trained / "checkpoint-1.pth"


def test_a_soup_of_one_checkpoint_is_that_checkpoint_bit_for_bit(scpc, two, tmp_path, capsys):
    content = torch.load(two[0], weights_only=True)
    content["model"]["head.0.bias"][:2] = torch.tensor([-0.0, 0.0])
    torch.save(content, tmp_path / "one.pth")
    shutil.copy(two[0].parent / "tokenizer.spm", tmp_path)
    for method in ("uniform", "greedy", "learned"):
        out = tmp_path / method
        assert main(soup(scpc, out, tmp_path / "one.pth", flags=["--method", method])) == 0
        ours = weights(out / "checkpoint-best.pth")
        assert equal(ours, content["model"])
        assert torch.signbit(ours["head.0.bias"][:2]).tolist() == [True, False]


def test_two_checkpoints_become_their_mean_and_serve_as_one_everywhere(scpc, two, tmp_path, capsys):
    out = tmp_path / "soup"
    assert main(soup(scpc, out, *two, flags=["--method", "uniform", "--keep_anyway"])) == 0
    said = capsys.readouterr().out
    best = out / "checkpoint-best.pth"
    assert f"wrote {best}: the uniform soup" in said
    one, other, ours = weights(two[0]), weights(two[1]), weights(best)
    mean = {name: ((one[name].double() + other[name].double()) / 2).float() for name in one}
    assert equal(ours, mean)
    assert {path.name for path in out.iterdir()} == {
        "checkpoint-best.pth",
        "checkpoint-best.json",
        "soup.json",
        "tokenizer.spm",
    }
    content = torch.load(best, weights_only=True)
    made = [{"file": str(p), "sha256": get_sha256(p), "weights_of": "model", "weight": 0.5} for p in two]
    assert content["soup"]["members"] == made
    assert json.loads((out / "checkpoint-best.json").read_text())["soup"] == content["soup"]
    assert verify(best) == ""
    # The table: each member's score is what --eval finds, and so is the soup's.
    table = json.loads((out / "soup.json").read_text())
    assert table["sha256"] == get_sha256(best)
    found = [single["score"] for single in table["singles"]] + [table["soups"]["uniform"]["score"]]
    for number, (path, score) in enumerate(zip([*two, best], found, strict=True)):
        folder = tmp_path / f"eval-{number}"
        evaluate = finetune(scpc, folder, "--eval", "--split", "val", "--resume", str(path))
        assert main(evaluate) == 0
        metrics = json.loads((folder / "metrics_val.json").read_text())
        assert metrics["accuracy"] == score
        assert f"{score:6.2f}" in said
    # As any checkpoint: single questions, an ensemble, an export, a new training.
    image = next((scpc / "images").iterdir())
    predictor = beit3_vqa.load(best, device="cpu", precision="fp32")
    answer = predictor.predict(image, "What is it?", list("wxyz"))
    assert answer.answer in "ABCD"
    submission = tmp_path / "e" / "submission.csv"
    assert main(["ensemble", str(out), "--output", str(submission), "--data_path", str(scpc / "data"), *ON_CPU]) == 0
    parameters = read_info(tmp_path / "e" / "predictions.json").parameters
    assert parameters == sum(value.numel() for value in one.values())
    assert main(["export", "--checkpoint", str(best), "--output_dir", str(tmp_path / "x")]) == 0
    again = beit3_vqa.load(tmp_path / "x", device="cpu", precision="fp32").predict(image, "What is it?", list("wxyz"))
    assert again.probabilities == answer.probabilities
    assert main(finetune(scpc, tmp_path / "new", "--finetune", str(best), "--epochs", "1")) == 0
    # A soup of soups, and of what export wrote.
    flags = ["--method", "uniform", "--keep_anyway"]
    assert main(soup(scpc, tmp_path / "again", tmp_path / "x", two[0], flags=flags)) == 0


def test_training_does_not_go_on_from_a_soup(scpc, two, tmp_path, capsys):
    assert main(soup(scpc, tmp_path / "soup", *two, flags=["--keep_anyway"])) == 0
    best = str(tmp_path / "soup" / "checkpoint-best.pth")
    assert main(finetune(scpc, tmp_path / "out", "--resume", best)) == 2
    assert f"--resume {best}: is a soup of checkpoints, which has no optimizer" in (said := capsys.readouterr().err)
    assert "start from it with --finetune" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_moving_average_is_taken_as_evaluation_takes_it(scpc, two, tmp_path, capsys):
    shutil.copy(two[0].parent / "tokenizer.spm", tmp_path)
    paths, contents = [], [torch.load(path, weights_only=True) for path in two]
    for number, (content, other) in enumerate(zip(contents, reversed(contents), strict=True)):
        content = {**content, "model_ema": {name: value + 0.25 for name, value in other["model"].items()}}
        paths.append(tmp_path / f"{number}.pth")
        torch.save(content, paths[-1])
    for flags, key in ([], "model_ema"), (["--model_key", "model"], "model"):
        out = tmp_path / key
        assert main(soup(scpc, out, *paths, flags=["--method", "uniform", "--keep_anyway", *flags])) == 0
        assert (capsys.readouterr().out.count("its moving average") == 2) is (key == "model_ema")
        one, other = (weights(path, key) for path in paths)
        mean = {name: ((one[name].double() + other[name].double()) / 2).float() for name in one}
        assert equal(weights(out / "checkpoint-best.pth"), mean)
        made = torch.load(out / "checkpoint-best.pth", weights_only=True)["soup"]["members"]
        assert [member["weights_of"] for member in made] == [key, key]


@pytest.mark.slow
def test_greedy_and_learned_leave_a_useless_checkpoint_out(scpc, two, tmp_path, capsys):
    """One that answers the opposite of what a good one does: with it the soup knows nothing."""
    shutil.copy(two[0].parent / "tokenizer.spm", tmp_path)
    good = torch.load(two[1], weights_only=True)
    bad = {**good, "model": {**good["model"], "head.3.weight": -8 * good["model"]["head.3.weight"]}}
    torch.save(bad, tmp_path / "bad.pth")
    out = tmp_path / "soup"
    assert main(soup(scpc, out, tmp_path / "bad.pth", *two, flags=["--method", "all", "--split", "train"])) == 0
    said = capsys.readouterr().out
    assert "was trained on 30 of the 30 rows of train: its score flatters" in said
    table = json.loads((out / "soup.json").read_text())
    singles, soups = table["singles"], table["soups"]
    assert singles[0]["loss"] == max(single["loss"] for single in singles)
    assert min(soups, key=lambda name: soups[name]["loss"]) == "learned"
    assert soups["learned"]["loss"] <= min(single["loss"] for single in singles)
    assert soups["learned"]["weights"][0] < 0.2  # an even share is a third
    assert soups["greedy"]["score"] >= max(single["score"] for single in singles)
    assert table["kept"] == max(soups, key=lambda name: (soups[name]["score"], -soups[name]["loss"]))
    for found in [*singles, *soups.values()]:
        told = found["difference"]
        if told is not None:
            best = next(single for single in singles if single["file"] == table["best_single"])
            assert told["points"]["mean"] == pytest.approx(found["score"] - best["score"])
            assert told["points"]["low"] <= told["points"]["mean"] <= told["points"]["high"]
            assert 0 < told["p"] <= 1


@pytest.mark.slow
def test_a_soup_that_is_worse_is_kept_only_if_the_user_insists(scpc, two, tmp_path, capsys):
    """A head and -3 times that head become -1 times that head, which answers as the second one does."""
    shutil.copy(two[0].parent / "tokenizer.spm", tmp_path)
    for sign in (1, -1):  # one of the two signs is the better
        members = [tmp_path / f"{sign}-{times}.pth" for times in (1, -3)]
        for path, times in zip(members, (sign, -3 * sign), strict=True):
            altered(path, two[1], weight=("head.3.weight", lambda w, times=times: w * times))
        out = tmp_path / f"soup{sign}"
        command = soup(scpc, out, *members, flags=["--method", "uniform", "--split", "train"])
        capsys.readouterr()
        assert main(command) == 0
        said = capsys.readouterr().out
        table = json.loads((out / "soup.json").read_text())
        if table["kept"] is None:
            break
    assert f"no soup is as good as {members[0]}, so none is written; --keep_anyway insists" in said
    assert table["kept"] is None
    assert table["soups"]["uniform"]["score"] < table["singles"][0]["score"]
    assert [path.name for path in out.iterdir()] == ["soup.json"]
    assert main([*command, "--keep_anyway"]) == 0
    assert json.loads((out / "soup.json").read_text())["kept"] == "uniform"
    assert (out / "checkpoint-best.pth").is_file()
    # What the table no longer speaks of doesn't stay beside it.
    assert main(command) == 0
    assert not (out / "checkpoint-best.pth").exists()
    assert (out / "previous-1" / "checkpoint-best.pth").is_file()


def altered(path, source, **entries):
    content = torch.load(source, weights_only=True)
    content = {**content, **{name: value for name, value in entries.items() if name != "weight"}}
    if "weight" in entries:
        name, value = entries["weight"]
        content["model"] = {**content["model"], name: value(content["model"][name])}
    torch.save(content, path)
    return path


def saved(source, **options):
    return {**torch.load(source, weights_only=True)["args"], **options}


HEAD = "head.3.weight"  # (4, 2D)
# What is wrong with a second checkpoint -> how it is made, and what is said.
FOREIGN = {
    "a NaN": (lambda p, s: altered(p, s, weight=(HEAD, lambda w: w / 0)), "not finite: head.3.weight"),
    "another shape": (lambda p, s: altered(p, s, weight=(HEAD, lambda w: w[:3])), "shape of head.3.weight: (3, 256)"),
    "a weight more": (
        lambda p, s: altered(p, s, model={**weights(s), "x": torch.zeros(1)}),
        "unexpected: x (1,)",
    ),
    "a weight less": (
        lambda p, s: altered(p, s, model={n: v for n, v in weights(s).items() if n != HEAD}),
        "missing: head.3.weight",
    ),
    "integers": (lambda p, s: altered(p, s, weight=(HEAD, torch.Tensor.int)), "not a plain tensor"),
    "sparse": (lambda p, s: altered(p, s, weight=(HEAD, torch.Tensor.to_sparse)), "isn't a readable checkpoint"),
    "one number for all": (
        lambda p, s: altered(p, s, weight=(HEAD, lambda w: torch.zeros(1).expand(w.shape))),
        "not a plain tensor",
    ),
    "another task": (lambda p, s: altered(p, s, args=saved(s, task="vqarank")), "task: 'vqarank' in"),
    "another model": (
        lambda p, s: altered(p, s, args=saved(s, model="beit3_tiny_patch8_64")),
        "model: 'beit3_tiny_patch8_64' in",
    ),
    "another prompt": (
        lambda p, s: altered(p, s, args=saved(s, prompt_template="{a} {b} {c} {d} {question}")),
        "prompt_template: '{a} {b} {c} {d} {question}' in",
    ),
    "adapters": (lambda p, s: altered(p, s, args=saved(s, lora_rank=4)), "lora_rank: 4 in"),
    "other answers": (lambda p, s: altered(p, s, task_state={"answers": ["A", "B", "D", "C"]}), "answer table of"),
    "another tokenizer": (lambda p, s: altered(p, s, tokenizer_sha256="0" * 64), "tokenizer of"),
    "no weights": (lambda p, s: altered(p, s, model={}), "no weights under"),
    "a damaged entry": (lambda p, s: altered(p, s, task_state=[1]), "its 'task_state' is"),
    "no checkpoint": (lambda p, s: p.write_text("x"), "isn't a readable checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused_by_what_differs(scpc, two, tmp_path, capsys, what):
    make, says = FOREIGN[what]
    make(tmp_path / "other.pth", two[1])
    assert main(soup(scpc, tmp_path / "soup", two[0], tmp_path / "other.pth")) == 2
    said = capsys.readouterr().err
    assert says in said
    assert str(tmp_path / "other.pth") in said
    assert said.count("error:") == 1
    assert not (tmp_path / "soup").exists()


@pytest.mark.parametrize(
    ("members", "flags", "says"),
    [
        (["one", "one"], [], "is the same file as"),
        (["one", "link"], [], "is the same file as"),
        (["one"] * 9, [], "9 checkpoints: a soup takes at most 8"),
        (["one", "nowhere.pth"], [], "there is no run folder or checkpoint"),
        (["one", "."], [], "has no checkpoint-best.pth"),
        (["one", "two"], ["--method", "greedly"], "--method greedly: must be one of uniform, greedy, learned, all"),
        (["one", "two"], ["--split", "vall"], "Did you mean 'val'"),
        (["one", "two"], ["--split", "test"], "no answer is known there"),
        (["one", "two"], ["--split", "test", "--method", "learned"], "no answer is known there"),
        (["one", "two"], ["--passes", "0"], "--passes 0"),
        (["one", "two"], ["--data_path", "nowhere"], "nowhere"),
        (["one", "two"], ["--data_path", ""], "--data_path: say on which prepared folder"),
        (["one", "two"], ["--output_dir", "run"], "holds a run's checkpoints"),
        (["best/checkpoint-best.pth", "two"], ["--output_dir", "best"], "would overwrite a file that is read"),
    ],
)
def test_what_cannot_be_a_soup_is_refused(scpc, two, tmp_path, monkeypatch, capsys, members, flags, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.pth").symlink_to(two[0])
    for name in ("run/checkpoint-0.pth", "best/checkpoint-best.pth"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(two[0], tmp_path / name)
    files = {"one": two[0], "two": two[1], "link": "link.pth"}
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert main(soup(scpc, "soup", *(files.get(name, name) for name in members), flags=flags)) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("error:") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_soup_works_on_one_device_and_in_a_folder_of_its_own(scpc, two, tmp_path, monkeypatch, capsys):
    with run_lock(tmp_path / "soup"):
        assert main(soup(scpc, tmp_path / "soup", *two)) == 2
        assert "is in use by another run" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(soup(scpc, tmp_path / "soup", *two)) == 2
    assert "without torchrun" in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_that_is_replaced_meanwhile_is_noticed(scpc, two, tmp_path, monkeypatch, capsys):
    for path in two:
        shutil.copy(path, tmp_path)
    shutil.copy(two[0].parent / "tokenizer.spm", tmp_path)
    ours = [tmp_path / path.name for path in two]
    fill = Mixer.fill

    def replaced(self, shares):
        shutil.copy(two[0], tmp_path / "new.pth")
        (tmp_path / "new.pth").rename(ours[1])
        fill(self, shares)

    monkeypatch.setattr(Mixer, "fill", replaced)
    assert main(soup(scpc, tmp_path / "soup", *ours)) == 2
    assert f"{ours[1]}: was replaced while the soup was made" in capsys.readouterr().err
    assert not (tmp_path / "soup").exists()


@pytest.fixture(scope="module")
def adapted(scpc, trained, clip_folder, tmp_path_factory):
    """Two runs with adapters of each family, of different seeds."""
    folder = tmp_path_factory.mktemp("adapted")
    start = [
        "--finetune",
        str(trained / "checkpoint-best.pth"),
        "--lora_rank",
        "4",
        "--layer_decay",
        "1",
        "--lr",
        "1e-2",
    ]
    for seed in ("1", "2"):
        flags = ["--epochs", "1", "--seed", seed]
        assert main(finetune(scpc, folder / f"beit3-{seed}", *start, *flags)) == 0
        assert main(finetune_clip(scpc, clip_folder, folder / f"clip-{seed}", "--lr", "1e-2", *flags)) == 0
    return folder


@pytest.mark.parametrize("family", ["beit3", "clip"])
@pytest.mark.slow
def test_adapters_become_a_model_without_any(scpc, adapted, tmp_path, capsys, family):
    members = [adapted / f"{family}-{seed}" / "checkpoint-0.pth" for seed in "12"]
    out = tmp_path / "soup"
    assert main(soup(scpc, out, *members, flags=["--method", "all", "--keep_anyway", "--passes", "3"])) == 0
    best = out / "checkpoint-best.pth"
    content = torch.load(best, weights_only=True)
    assert not any("lora" in name for name in content["model"])
    assert content["args"]["lora_rank"] == 0
    assert not content["args"]["model"].endswith("_lora")
    assert content["soup"]["adapters_merged"] is True
    table = json.loads((out / "soup.json").read_text())
    for number, path in enumerate([*members, best]):
        folder = tmp_path / f"eval-{number}"
        evaluate = ["finetune", "--eval", "--split", "val", "--resume", str(path), "--output_dir", str(folder)]
        assert main([*evaluate, "--data_path", str(scpc / "data"), *ON_CPU]) == 0
        accuracy = json.loads((folder / "metrics_val.json").read_text())["accuracy"]
        assert accuracy == (table["singles"][number] if number < 2 else table["soups"][table["kept"]])["score"]
    image = next((scpc / "images").iterdir())
    assert beit3_vqa.load(best, device="cpu").predict(image, "What is it?", list("wxyz")).answer in "ABCD"
    merge = ["--merge"] if family == "clip" else []
    assert main(["export", "--checkpoint", str(best), "--output_dir", str(tmp_path / "x"), *merge]) == 0
    # Adapters, and everything, can be trained on from it.
    parts = json.loads(json.dumps(content["args"]))
    train = ["finetune", "--finetune", str(best), "--data_path", str(scpc / "data"), *ON_CPU, "--epochs", "1"]
    train += ["--batch_size", "8", "--model", parts["model"], "--vocab_size", "300"]
    train += ["--pretrained", parts["pretrained"]] if family == "clip" else []
    assert main([*train, "--output_dir", str(tmp_path / "all")]) == 0
    if family == "beit3":
        assert main([*train, "--output_dir", str(tmp_path / "new"), "--lora_rank", "2"]) == 0


@pytest.mark.slow
def test_adapters_on_other_weights_are_refused(scpc, adapted, tmp_path, capsys):
    one, two = (adapted / f"clip-{seed}" / "checkpoint-0.pth" for seed in "12")
    altered(tmp_path / "other.pth", two, base_sha256="0" * 64)
    assert main(soup(scpc, tmp_path / "soup", one, tmp_path / "other.pth")) == 2
    assert f"the pretrained weights of {tmp_path / 'other.pth'} isn't" in capsys.readouterr().err
    assert main(soup(scpc, tmp_path / "soup", one, adapted / "beit3-1" / "checkpoint-0.pth")) == 2
    assert "the checkpoints aren't of one model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_soup_that_is_killed_leaves_no_half_written_checkpoint(scpc, two, tmp_path):
    out, log = tmp_path / "soup", tmp_path / "log"
    command = soup(scpc, out, *two, flags=["--keep_anyway"])
    stages = [
        lambda: "uniform soup" in log.read_text(),
        lambda: list(out.glob(".checkpoint-best.pth.*.tmp")) or (out / "checkpoint-best.pth").exists(),
    ]
    for happened in stages:
        process = start(command, log)
        while not happened() and process.poll() is None:
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        best = out / "checkpoint-best.pth"
        if best.exists():
            assert verify(best) == ""
            assert torch.load(best, weights_only=True)["soup"]
            best.with_suffix(".json").unlink(missing_ok=True)  # the kill may have come before it was written
    assert main(command) == 0
    assert verify(out / "checkpoint-best.pth") == ""
    assert not list(out.glob(".*"))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux which files are mapped")
@pytest.mark.slow
def test_no_more_than_two_files_are_in_memory_and_none_between_mixtures(scpc, two, tmp_path, monkeypatch):
    members = [tmp_path / f"member-{number}.pth" for number in range(4)]
    for number, path in enumerate(members):
        altered(path, two[0], weight=("head.3.bias", lambda w, number=number: w + number))
    shutil.copy(two[0].parent / "tokenizer.spm", tmp_path)

    def mapped():
        maps = Path("/proc/self/maps").read_text()
        return sum(str(path) in maps for path in members)

    fill, read, most = Mixer.fill, Member.weights, []

    def filled(self, shares):
        assert mapped() == 0
        fill(self, shares)
        assert mapped() == 0

    def weights_of(self):
        found = read(self)
        most.append(mapped())
        return found

    monkeypatch.setattr(Mixer, "fill", filled)
    monkeypatch.setattr(Member, "weights", weights_of)
    flags = ["--method", "all", "--keep_anyway", "--passes", "2"]
    assert main(soup(scpc, tmp_path / "soup", *members, flags=flags)) == 0
    assert 1 <= max(most) <= 2


@pytest.mark.slow
def test_checkpoints_of_different_folds_have_seen_each_others_validation_rows(scpc, two, tmp_path, capsys):
    prepare = ["prepare", "choices", "--train", str(scpc / "train.csv"), "--image_root", str(scpc / "images")]
    prepare += ["--sentencepiece_model", str(scpc / "data" / "tokenizer.spm")]
    assert main([*prepare, "--data_path", str(tmp_path / "data"), "--folds", "2"]) == 0
    paths = [
        altered(tmp_path / f"{number}.pth", path, args=saved(path, fold=fold))
        for number, (path, fold) in enumerate(((two[0], 0), (two[1], 1), (two[1], 0)))
    ]
    shutil.copy(two[0].parent / "tokenizer.spm", tmp_path)
    assert main(soup(tmp_path, tmp_path / "soup", *paths[:2])) == 2
    said = capsys.readouterr().err
    assert f"fold: 1 in {paths[1]}, 0 in {paths[0]}; each was trained on the other's validation rows" in said
    assert not (tmp_path / "soup").exists()
    assert main(soup(tmp_path, tmp_path / "soup", paths[0], paths[2], flags=["--keep_anyway"])) == 0
    assert torch.load(tmp_path / "soup" / "checkpoint-best.pth", weights_only=True)["args"]["fold"] == 0
    # The rows of this val were trained on by checkpoints that say so, and the command tells.
    assert "was trained on" in capsys.readouterr().out


@pytest.mark.slow
def test_captions_and_retrieval_are_averaged_by_their_own_metric(tmp_path, capsys):
    """Tasks without a score for each row: no paired test, and no learned weights."""
    source = write_captioned(tmp_path / "images", train=8, val=4, test=4)
    prepare = ["prepare", "flickr30k", "--json", str(source / "dataset_flickr30k.json")]
    prepare += ["--image_root", str(source), "--data_path", str(tmp_path / "data")]
    assert main([*prepare, "--train_tokenizer", "60"]) == 0
    assert main(train_on(tmp_path / "data", "flickr30k", tmp_path / "out", "--epochs", "2")) == 0
    members = [tmp_path / "out" / f"checkpoint-{epoch}.pth" for epoch in range(2)]
    assert main(soup(tmp_path, tmp_path / "soup", *members, flags=["--method", "learned"])) == 2
    assert "flickr30k has no loss of a single row" in capsys.readouterr().err
    assert main(soup(tmp_path, tmp_path / "soup", *members, flags=["--keep_anyway"])) == 0
    table = json.loads((tmp_path / "soup" / "soup.json").read_text())
    assert table["metric"] == "average_score"
    assert table["soups"]["uniform"]["difference"] is None
