"""Trainings with `--log_with`: what TensorBoard, W&B and MLflow then hold, read by their own readers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from beit3_vqa.cli.main import main
from beit3_vqa.engine.loggers import _mlflow_name
from tests.helpers.commands import finetune


def tensorboard_points(out: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard")).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def assert_same(points, expected):
    """TensorBoard keeps 32 bits of a value."""
    assert points.keys() == expected.keys()
    for name, values in expected.items():
        assert [step for step, _ in points[name]] == [step for step, _ in values], name
        assert [value for _, value in points[name]] == pytest.approx([value for _, value in values], rel=1e-6), name


def steps_of_epochs(points) -> list[int]:
    return [step for step, _ in points["val/accuracy"]]


def test_tensorboard_has_the_config(scpc, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(finetune(scpc, tmp_path / "out", "--epochs", "1", "--clip_grad", "0.125")) == 0
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    (text,) = events.Tensors("config/text_summary")
    assert b'"clip_grad": 0.125' in text.tensor_proto.string_val[0]


@pytest.fixture
def wandb_offline(monkeypatch):
    pytest.importorskip("wandb", reason="W&B isn't installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)


def read_wandb(out: Path) -> list[tuple[str, dict[str, str], dict[str, list[tuple[int, float]]]]]:
    """Read (id, config, points) of each session, as `wandb leet inspect` shows them."""
    found = []
    for file in sorted((out / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        command = [shutil.which("wandb", path=str(Path(sys.executable).parent)), "leet", "inspect", "--json", str(file)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout
        records = [json.loads(line) for line in printed.splitlines()]
        run = next(record["run"] for record in records if record["type"] == "run")
        points: dict[str, list[tuple[int, float]]] = {}
        for item in (record["history"]["item"] for record in records if record["type"] == "history"):
            for name in item.keys() - {"step"}:
                if not name.startswith("_"):
                    points.setdefault(name, []).append((item["step"], item[name]))
        found.append((run["run_id"], run["config"]["update"], points))
    return found


@pytest.mark.slow
def test_wandb_offline_has_the_same_points_through_a_resume(scpc, tmp_path, wandb_offline):
    out = tmp_path / "out"
    command = finetune(scpc, out, "--epochs", "3", "--stop_after_epochs", "2", "--log_with", "tensorboard,wandb")
    assert main(command) == 0
    assert main([*command, "--clip_grad", "0.125"]) == 0
    (first, config, before), (second, changed, after) = read_wandb(out)
    assert first == second == json.loads((out / "loggers.json").read_text())["wandb"]["id"]
    assert (config["clip_grad"], changed["clip_grad"]) == (None, 0.125)
    assert config["model"] == "beit3_tiny_patch8_32"
    joined = {name: before[name] + after[name] for name in before}
    assert_same(joined, tensorboard_points(out))
    assert len(steps_of_epochs(joined)) == 3


@pytest.fixture
def mlflow_files(monkeypatch):
    pytest.importorskip("mlflow", reason="MLflow isn't installed")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")  # so that what the training sets is gone after the test
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")


def read_mlflow(out: Path):
    """Read the one run of a store, and its points."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(out / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("beit3_vqa").experiment_id])
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return run, {name: [(point.step, point.value) for point in points] for name, points in history.items()}


def test_mlflow_has_the_same_points_through_a_resume(scpc, tmp_path, mlflow_files):
    out = tmp_path / "out"
    command = finetune(scpc, out, "--epochs", "3", "--stop_after_epochs", "2", "--log_with", "mlflow,tensorboard")
    assert main(command) == 0
    assert main([*command, "--clip_grad", "0.125"]) == 0
    run, points = read_mlflow(out)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "out"
    assert run.data.params["model"] == "beit3_tiny_patch8_32"
    assert run.data.params["clip_grad"] == "None"
    assert run.data.tags["resumed.clip_grad"] == "0.125"
    assert_same(points, {_mlflow_name(name): values for name, values in tensorboard_points(out).items()})
    assert len(steps_of_epochs(points)) == 3


@pytest.mark.slow
def test_epochs_that_are_trained_again_are_written_once(scpc, tmp_path, mlflow_files, capsys):
    out = tmp_path / "out"
    command = finetune(scpc, out, "--epochs", "3", "--log_with", "mlflow", "--save_steps", "1")
    assert main([*command, "--stop_after_epochs", "2"]) == 0
    _, before = read_mlflow(out)
    capsys.readouterr()
    assert main([*command, "--resume", str(out / "checkpoint-0.pth")]) == 0
    assert "mlflow has its points up to step" in capsys.readouterr().out
    _, after = read_mlflow(out)
    assert len(steps_of_epochs(after)) == 3
    for name, values in before.items():
        assert after[name][: len(values)] == values
    assert not (out / "tensorboard").exists()


def test_a_new_run_in_the_folder_is_a_new_run_of_the_logger(scpc, tmp_path, mlflow_files):
    command = finetune(scpc, tmp_path / "out", "--epochs", "1", "--log_with", "mlflow")
    assert main(command) == 0
    first, _ = read_mlflow(tmp_path / "out")
    assert main([*command, "--no_auto_resume"]) == 0
    second, _ = read_mlflow(tmp_path / "out")
    assert first.info.run_id != second.info.run_id
    assert (tmp_path / "out" / "previous-1" / "mlruns").is_dir()


def test_mlflow_begins_a_new_run_if_the_store_has_lost_it(scpc, tmp_path, mlflow_files):
    command = finetune(scpc, tmp_path / "out", "--epochs", "2", "--stop_after_epochs", "1", "--log_with", "mlflow")
    assert main(command) == 0
    shutil.rmtree(tmp_path / "out" / "mlruns")
    assert main(command) == 0
    _, points = read_mlflow(tmp_path / "out")
    assert len(steps_of_epochs(points)) == 1


def test_a_training_survives_loggers_that_fail(scpc, tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlflow", reason="MLflow isn't installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it weren't installed
    (tmp_path / "file").write_text("")
    command = finetune(scpc, tmp_path / "out", "--epochs", "1", "--log_with", "mlflow,wandb,tensorboard")
    assert main(command) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--log_with")]
    assert len(said) == 2
    assert said[0].startswith("--log_with mlflow: fails (")
    assert said[1] == "--log_with wandb: fails (pip install 'beit3_vqa[wandb]'); the training goes on without it"
    assert (tmp_path / "out" / "checkpoint-best.pth").exists()
    assert len(steps_of_epochs(tensorboard_points(tmp_path / "out"))) == 1
