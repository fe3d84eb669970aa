"""Searches with Optuna: trials to their end, killed, shared, pruned; spaces that can't be used."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from beit3_vqa.apps.search import run as search_run
from beit3_vqa.apps.search import study
from beit3_vqa.apps.search.space import Choice, Range, read_space
from beit3_vqa.cli.main import _parse, main
from beit3_vqa.config.resolve import GivenOptions
from beit3_vqa.engine.api import train
from beit3_vqa.engine.checkpoint.save import TrainState
from beit3_vqa.engine.loop import TrainingDiverged
from beit3_vqa.errors import InputError
from tests.helpers.commands import TINY
from tests.helpers.pages import ROOT
from tests.helpers.processes import ENVIRONMENT, ended, start, wait_until

optuna = pytest.importorskip("optuna")
SPACE = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "drop_path": [0.0, 0.1]}

JOURNAL = ["--storage", "journal"]  # what SQLite does takes a second for each test


def command(scpc, out, space, *flags, trials=3):
    file = out.parent / "space.json"
    file.write_text(json.dumps(space))
    words = ["search", "--space", str(file), "--trials", str(trials), "--data_path", str(scpc / "data"), *TINY]
    return [*words, "--output_dir", str(out), "--batch_size", "8", "--num_workers", "0", "--task", "vqacustom", *flags]


@pytest.fixture(autouse=True)
def _without_collecting(monkeypatch):
    """Collecting garbage between trials takes a second among everything that the tests have loaded."""
    monkeypatch.setattr(search_run, "gc", SimpleNamespace(collect=lambda: 0))


def found(out):
    return json.loads((out / "search.json").read_text())


def states(out, storage="sqlite:///{}/search.db"):
    study = optuna.load_study(study_name="search", storage=storage.format(out))
    return [trial.state.name for trial in study.trials]


class Trainings:
    """In the place of `train`: trials of which a test decides what they score, validation by validation."""

    def __init__(self, monkeypatch, outcomes):
        self.outcomes, self.given = list(outcomes), []
        monkeypatch.setattr(search_run, "train", self)

    def __call__(self, given, *, say_next, judge):
        self.given.append(given)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        state = TrainState(best_score=0.0)
        for epoch, score in enumerate(outcome):
            state.best_score, state.best_epoch = max((state.best_score, state.best_epoch), (score, epoch))
            state.over = judge(epoch + 1.0, score)
            if state.over:
                break
        return state


@pytest.mark.slow
def test_a_search_ends_with_the_best_options(scpc, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--epochs", "1", "--no_save_ckpt", "--sentencepiece_model", str(scpc / "data" / "tokenizer.spm")]
    assert main(command(scpc, out, SPACE, *flags)) == 0
    said = capsys.readouterr().out
    content = found(out)
    assert [row["state"] for row in content["trials"]] == ["complete"] * 3
    assert {row["folder"] for row in content["trials"]} == {"trial-0", "trial-1", "trial-2"}
    scores = []
    for row in content["trials"]:
        groups = json.loads((out / row["folder"] / "config.json").read_text())
        used = {**groups["optim"], **groups["compute"], **groups["model"], **groups["init"]}
        assert {name: used[name] for name in row["options"]} == row["options"]
        (line,) = (out / row["folder"] / "log.txt").read_text().splitlines()
        assert json.loads(line)["val_accuracy"] == row["score"]
        scores.append(row["score"])
    assert scores == sorted(scores, reverse=True)
    assert len({row["options"]["lr"] for row in content["trials"]}) == 3
    best = content["best"]["command"]
    assert best in said
    assert f"--lr {content['trials'][0]['options']['lr']!r}" in best
    assert "--no_save_ckpt" in best
    assert main([*shlex.split(best)[1:], "--dry_run"]) == 0
    # The same command has nothing left to do; one with other options isn't of this search.
    assert main(command(scpc, out, SPACE, *flags)) == 0
    assert len(states(out)) == 3
    capsys.readouterr()
    assert main(command(scpc, out, SPACE, *flags, "--seed", "1")) == 2
    assert "--seed: None there, 1 here" in capsys.readouterr().err
    assert main(command(scpc, out, {**SPACE, "epochs": [1, 2]}, *flags[2:])) == 2
    assert "epochs in --space: None there, [1, 2] here" in capsys.readouterr().err
    assert main(command(scpc, out, SPACE, *flags, "--storage", "journal")) == 2
    assert "holds the search search.db" in capsys.readouterr().err


@pytest.mark.parametrize("storage", ["sqlite", pytest.param("journal", marks=pytest.mark.slow)])
def test_a_trial_that_was_interrupted_goes_on_with_its_options_in_its_folder(
    scpc, tmp_path, monkeypatch, capsys, storage
):
    out = tmp_path / "out"
    words = command(scpc, out, SPACE, "--storage", storage)
    first = Trainings(monkeypatch, [[50.0], KeyboardInterrupt()])
    assert main(words) == 130
    (out / "trial-1").mkdir()
    (out / "trial-1" / "checkpoint-0.pth").touch()
    second = Trainings(monkeypatch, [[60.0], [40.0]])
    assert main(words) == 0
    assert f"{out / 'trial-1'} goes on from its last checkpoint" in capsys.readouterr().out
    again, before = second.given[0], first.given[1]
    assert [again[n] for n in ("lr", "drop_path", "output_dir")] == [
        before[n] for n in ("lr", "drop_path", "output_dir")
    ]
    assert [(row["folder"], row["score"]) for row in found(out)["trials"]] == [
        ("trial-1", 60.0),
        ("trial-0", 50.0),
        ("trial-2", 40.0),
    ]
    if storage == "sqlite":
        assert states(out) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


@pytest.mark.slow
def test_a_trial_below_the_median_ends_early(scpc, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    Trainings(monkeypatch, [*([10.0 * n, 90.0] for n in range(1, 6)), [20.0, 99.0], [40.0, 95.0]])
    assert main(command(scpc, out, SPACE, *JOURNAL, trials=7)) == 0
    rows = found(out)["trials"]
    assert [(row["folder"], row["state"]) for row in rows if row["state"] != "complete"] == [("trial-5", "pruned")]
    assert rows[0]["folder"] == "trial-6"
    assert rows[-1]["score"] == 20.0
    assert "below the median" in rows[-1]["reason"]


def test_trials_that_fail_do_not_end_a_search(scpc, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    diverged = TrainingDiverged("no finite gradient for 10 steps")
    Trainings(monkeypatch, [InputError("--min_lr 1e-3 is above --lr 2e-4"), diverged, InputError("x"), [70.0]])
    assert main(command(scpc, out, SPACE, *JOURNAL, trials=4)) == 0
    rows = found(out)["trials"]
    assert [row["state"] for row in rows] == ["complete", "fail", "fail", "fail"]
    assert [row["reason"] for row in rows[1:]] == [
        "--min_lr 1e-3 is above --lr 2e-4",
        "no finite gradient for 10 steps",
        "x",
    ]
    assert "trial-1 failed: no finite gradient" in capsys.readouterr().out


def test_a_search_ends_if_its_first_three_trials_fail_alike(scpc, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    errors = [InputError(f"{out}/trial-{n}: --min_lr 1e-3 is above --lr {n}e-4") for n in range(3)]
    Trainings(monkeypatch, errors)
    assert main(command(scpc, out, SPACE, *JOURNAL, trials=5)) == 2
    said = capsys.readouterr().err
    assert "the first 3 trials all failed alike: the folder: --min_lr 1e-3 is above" in said
    assert len(found(out)["trials"]) == 3
    Trainings(monkeypatch, [[1.0], [2.0]])  # once that is mended, the same command goes on
    assert main(command(scpc, out, SPACE, *JOURNAL, trials=5)) == 0


def test_max_hours_begins_no_trial_that_would_not_end_in_time(scpc, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    Trainings(monkeypatch, [[1.0], [2.0], [3.0]])
    hours = iter(range(10))
    monkeypatch.setattr(search_run, "time", SimpleNamespace(monotonic=lambda: 3600 * next(hours)))
    assert main(command(scpc, out, SPACE, *JOURNAL, "--max_hours", "2.5")) == 0
    assert [row["folder"] for row in found(out)["trials"]] == ["trial-1", "trial-0"]
    assert "2 of 3 trials have ended, --max_hours is used up; the same command goes on" in capsys.readouterr().out
    monkeypatch.setattr(search_run, "time", SimpleNamespace(monotonic=lambda: 0.0))
    # The trials so far took longer than that.
    assert main(command(scpc, out, SPACE, *JOURNAL, "--max_hours", "1e-9")) == 0
    assert len(found(out)["trials"]) == 2


def test_a_judge_ends_training_after_a_validation_inside_an_epoch(scpc, tmp_path):
    values = {"task": "vqacustom", "data_path": str(scpc / "data"), "output_dir": str(tmp_path / "out"), "epochs": 2}
    values |= {"model": "beit3_tiny_patch8_32", "vocab_size": 300, "device": "cpu", "precision": "fp32"}
    seen = []

    def judge(epochs, score):
        seen.append(epochs)
        return "enough" if len(seen) == 2 else ""

    given = GivenOptions({**values, "batch_size": 8, "num_workers": 0, "eval_steps": 2})
    state = train(given, say_next=False, judge=judge)
    assert seen == [0.5, 1.0]
    assert (state.epoch, state.over) == (1, "enough")


@pytest.mark.slow
def test_a_search_that_is_killed_in_its_second_trial_ends_with_all_of_them(scpc, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    words = command(scpc, out, {"lr": SPACE["lr"]}, "--epochs", "6")
    process = start(words, log)
    wait_until(lambda: (out / "trial-1" / "checkpoint-1.pth").exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    code, said = ended(start(words, log), log)
    assert code == 0, said
    assert f"{out / 'trial-1'} goes on from its last checkpoint" in said
    assert states(out) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert {row["folder"] for row in found(out)["trials"]} == {"trial-0", "trial-1", "trial-2"}
    epochs = [json.loads(line)["epoch"] for line in (out / "trial-1" / "log.txt").read_text().splitlines()]
    assert epochs == list(range(6))


@pytest.mark.slow
def test_two_processes_share_a_search(scpc, tmp_path):
    out = tmp_path / "out"
    words = command(scpc, out, SPACE, "--epochs", "4", trials=4)
    logs = [tmp_path / "one", tmp_path / "two"]
    processes = [start(words, log) for log in logs]
    texts = []
    for process, log in zip(processes, logs, strict=True):
        code, said = ended(process, log)
        assert code == 0, said
        texts.append(said)
    assert states(out) == ["COMPLETE"] * 4
    assert all("=== trial-" in text for text in texts)
    rows = found(out)["trials"]
    assert {row["folder"] for row in rows} == {f"trial-{number}" for number in range(4)}
    assert len({row["options"]["lr"] for row in rows}) == 4


def test_a_trial_that_ends_while_the_dead_are_looked_for_is_not_taken_for_dead(tmp_path, monkeypatch):
    one, two = (study.SharedStudy(tmp_path, "journal", {}, 0) for _ in range(2))
    space = [Range("lr", 1e-4, 1e-2, log=True)]
    with one.begin(2, space, None) as begun:

        def end_first(lock):
            one.end(begun, study.COMPLETE, 50.0)
            return True

        monkeypatch.setattr(study, "_is_free", end_first)
        with two.begin(2, space, None) as second:
            assert second.folder == "trial-1"
    assert [trial.state.name for trial in two.trials()] == ["COMPLETE", "RUNNING"]


def test_the_slurm_array_of_the_page_is_a_command_of_ours():
    page = (ROOT / "get_started" / "search.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```\n(#!/bin/bash\n.*?)```", page, flags=re.S)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    words = shlex.split(script.replace("\\\n", " "), comments=True)
    assert words[:2] == ["beit3-vqa", "search"]
    parsed = vars(_parse(words[1:]))
    assert (parsed["storage"], parsed["max_hours"], parsed["trials"]) == ("journal", 8, 40)


@pytest.mark.slow
def test_rays_example_on_the_page_runs(scpc, tmp_path):
    pytest.importorskip("ray")
    page = (ROOT / "get_started" / "search.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, flags=re.S)[1]
    here = 'epochs=1, vocab_size=300, device="cpu", num_workers=0, batch_size=8,'
    (tmp_path / "example.py").write_text(code.replace("epochs=2,", here))
    for name in ("data", "images"):
        (tmp_path / name).symlink_to(scpc / name)
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "example.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^\{'lr': [\d.e-]+, 'drop_path': 0\.[01]\}$", done.stdout, flags=re.M)
    assert len(list((tmp_path / "ray").glob("trial_*/checkpoint-best.pth"))) == 2


def test_without_optuna_the_command_says_what_to_install(scpc, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(command(scpc, tmp_path / "out", SPACE)) == 2
    assert 'pip install "beit3_vqa[search]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_machine_may_have_other_options_of_its_own(scpc, tmp_path, monkeypatch):
    out = tmp_path / "out"
    Trainings(monkeypatch, [[1.0], [2.0], [3.0]])
    assert main(command(scpc, out, SPACE, *JOURNAL, trials=1)) == 0
    own = ["--image_root", str(scpc / "images"), "--log_interval", "5", "--keep_checkpoints", "1"]
    assert main(command(scpc, out, SPACE, *JOURNAL, *own, trials=3)) == 0
    assert len(found(out)["trials"]) == 3


def test_a_space_is_read_as_options_take_it(tmp_path):
    file = tmp_path / "space.json"
    space = {"epochs": {"low": 1, "high": 3}, "opt_betas": [[0.9, 0.98], [0.9, 1e-3]], "batch_size": [8, "auto"]}
    file.write_text(json.dumps({**space, "lr": {"low": 1e-5, "high": 1, "log": True}}))
    assert read_space(file, frozenset()) == [
        Choice("batch_size", {8: 8, "auto": "auto"}),
        Range("epochs", 1, 3),
        Range("lr", 1e-5, 1.0, log=True),
        Choice("opt_betas", {"[0.9, 0.98]": (0.9, 0.98), "[0.9, 0.001]": (0.9, 0.001)}),
    ]


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ("{", "isn't JSON"),
        ("[]", "expected an object of options"),
        ("{}", "expected an object of options"),
        ('{"learning": [1]}', "unknown option 'learning'"),
        ('{"lr": [1], "lr": [2]}', "'lr' is there twice"),
        ('{"output_dir": ["a"]}', "output_dir: is of the whole search"),
        ('{"max_hours": [1]}', "max_hours: is of the whole search"),
        ('{"weight_decay": [0.1]}', "weight_decay: is fixed on the command line too"),
        ('{"lr": {"low": 1, "high": 0.1}}', "lr: low 1 must be less than high 0.1"),
        ('{"lr": {"low": 0, "high": 0.1, "log": true}}', "lr: low 0 must be more than 0"),
        ('{"lr": {"low": 0.1}}', "lr: a range needs low and high"),
        ('{"lr": {"low": 0.1, "high": 1, "base": 2}}', "lr: unknown 'base'"),
        ('{"lr": {"low": "a", "high": 1}}', "lr: low can't be 'a'; expected float"),
        ('{"lr": {"low": -1, "high": 1}}', "lr: --lr"),
        ('{"lr": {"low": 0.1, "high": 1, "step": 2}}', "lr: step 2 must be"),
        ('{"lr": []}', "lr: can't be []"),
        ('{"lr": 1}', "lr: can't be 1; give a list"),
        ('{"lr": ["high"]}', "lr can't be 'high'; expected float"),
        ('{"lr": [0.1, 0.1]}', "lr: has a value twice"),
        ('{"epochs": {"low": 1, "high": 2.5}}', "epochs: high can't be 2.5; expected int"),
        ('{"opt_betas": {"low": 0, "high": 1}}', "opt_betas: isn't one number"),
        ('{"sched": {"low": 0, "high": 1}}', "sched: isn't one number"),
        ('{"sched": ["sine"]}', "sched: --sched sine: must be one of"),
    ],
)
def test_a_bad_space_is_one_error_with_file_and_option(scpc, tmp_path, capsys, space, says):
    words = command(scpc, tmp_path / "out", {}, "--weight_decay", "0.01")
    (tmp_path / "space.json").write_text(space)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"error: --space {tmp_path / 'space.json'}: " in said
    assert says in said
    assert said.count("error: ") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--dry_run"], "--dry_run: belongs to one run"),
        (["--stop_after_epochs", "1"], "--stop_after_epochs: belongs to one run"),
        (["--trials", "0"], "--trials 0: must be at least 1"),
        (["--max_hours", "0"], "--max_hours 0.0: must be more than 0"),
        (["--data_path", "nowhere"], "nowhere"),
        (["--storage", "files"], "--storage files: must be one of sqlite, journal"),
    ],
)
def test_bad_options_of_a_search_are_one_error(scpc, tmp_path, capsys, flags, says):
    assert main(command(scpc, tmp_path / "out", SPACE, *flags)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, []), (True, ["--x"]), (False, ["--no_x"]), (1.5, ["--x", "1.5"]), ([1, 2], ["--x", "1", "2"])],
)
def test_the_best_options_are_words_that_finetune_reads(value, words):
    assert search_run.flag_words("x", value) == words
