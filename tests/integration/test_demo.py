"""The demo, as a stranger starts it; minutes long, so not part of the default run. `.ci/run` runs the quick one."""

import csv
import json
import os
import signal
import subprocess
import sys

import pytest

from beit3_vqa.apps import demo
from beit3_vqa.apps.demo import CLIPRecipe, clip_steps, take
from beit3_vqa.cli.main import main
from beit3_vqa.errors import InputError
from beit3_vqa.models.clip.scratch import TinyCLIP
from tests.helpers.processes import ended, start, wait_until

CHANCE = 25.0


@pytest.mark.parametrize("flags", [pytest.param([], marks=pytest.mark.slow), ["--no_such_flag"]])
def test_clips_demo_runs_from_end_to_end(tmp_path, capsys, flags):
    """With a model and data so small that it learns nothing; a command that fails ends it."""
    recipe = CLIPRecipe(epochs=2, sizes=TinyCLIP(width=16, layers=1, heads=2, img_size=16), train_images=20)
    steps = clip_steps(recipe, tmp_path, 0)
    steps = [(title, [*s, *flags] if isinstance(s, list) and "--eval" in s else s) for title, s in steps]
    assert take(steps, main, tmp_path) == (2 if flags else 0)
    said = capsys.readouterr().out
    assert "1 epoch done, 1 to go" in said
    assert (tmp_path / "clip" / "model.safetensors").is_file()
    assert ("Test accuracy with four options" in said) is not bool(flags)
    assert (tmp_path / "report.html").is_file() is not bool(flags)
    if not flags:
        assert json.loads((tmp_path / "choices" / "metrics.json").read_text())["questions"] == 9673


@pytest.mark.parametrize(
    ("model", "absent", "extras"), [("clip", "transformers", "demo,clip"), ("beit3", "jinja2", "demo")]
)
def test_a_missing_package_is_named_before_anything_is_done(tmp_path, monkeypatch, capsys, model, absent, extras):
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == absent else object())
    folder = tmp_path / "demo"
    assert main(["demo", "--model", model, "--output_dir", str(folder)]) == 2
    assert f'the demo needs {absent}: pip install "beit3_vqa[{extras}]"' in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "floor"), [(["--quick"], CHANCE + 15), ([], 75.0)])
def test_clips_demo_learns(tmp_path, flags, floor):
    command = [sys.executable, "-W", "error", "-m", "beit3_vqa", "demo", "--model", "clip", *flags]
    result = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "demo")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "demo" / "choices" / "metrics.json").read_text())["accuracy"] >= floor


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "floor"), [(["--quick"], CHANCE + 15), ([], 75.0)])
def test_demo_learns(tmp_path, flags, floor):
    command = [sys.executable, "-W", "error", "-m", "beit3_vqa", "demo", *flags, "--output_dir", str(tmp_path / "demo")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    out = tmp_path / "demo" / "choices"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["questions"] == 9673
    assert metrics["accuracy"] >= floor
    with (out / "submission.csv").open(encoding="utf-8") as file:
        assert len({row["ID"] for row in csv.DictReader(file)}) == 9673
    assert list((out / "tensorboard").iterdir())
    assert '"attention":{' in (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "1 epoch done" in result.stdout  # it stopped and resumed on the way
    assert "kept of the checkpoint's head: head.0.weight" in result.stdout
    assert f"Test accuracy with four options: {metrics['accuracy']:.1f}% (chance: 25%)" in result.stdout


def test_an_interrupted_demo_goes_on_at_the_step_where_it_stopped(tmp_path, monkeypatch, capsys):
    """Commands are only recorded here: which are called again is what matters."""
    called: list[str] = []

    def steps(quick, folder, seed):
        return [("1. first", ["one"]), ("2. second", ["two"])]

    def run(code):
        def stand_in(arguments):
            called.append(arguments[0])
            return code if arguments == ["two"] else 0

        called.clear()
        return demo.demo(stand_in, tmp_path / "demo", model="beit3", quick=True)

    monkeypatch.setitem(demo.PIPELINES, "beit3", steps)
    monkeypatch.setattr(demo, "find_spec", lambda name: object())
    monkeypatch.setattr(demo, "_print_outcome", lambda out, seconds: print("outcome"))
    assert run(130) == 130
    assert called == ["one", "two"]
    assert run(0) == 0
    assert called == ["two"]
    assert "1. first: done before" in capsys.readouterr().out
    with pytest.raises(InputError, match="nor one in which this demo was begun"):  # another demo's folder
        demo.demo(lambda arguments: 0, tmp_path / "demo", model="beit3", quick=False)


@pytest.mark.slow
def test_a_demo_that_is_killed_in_its_first_training_goes_on_and_ends(tmp_path):
    words, log = ["demo", "--quick", "--output_dir", str(tmp_path / "demo")], tmp_path / "log"
    process = start(words, log)
    wait_until(lambda: "ex/s" in log.read_text(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert "=== 3. train from scratch" in log.read_text()
    code, said = ended(start(words, log), log, 900)
    assert code == 0, said
    assert "=== 2. prepare: open-ended questions: done before\n\n=== 3. train from scratch" in said
    assert "Test accuracy with four options: " in said
    assert f"{tmp_path / 'demo' / 'report.html'}: open it in a browser" in said
    assert "curves: tensorboard --logdir" in said.splitlines()[-1]
