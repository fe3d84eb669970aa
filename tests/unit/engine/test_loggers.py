"""Loggers that go on with a run, fail, or are left out: with one that keeps its points in memory."""

import json

import pytest

from beit3_vqa.engine import loggers as module
from beit3_vqa.engine.loggers import LoggedRun, Loggers


class Memory:
    """Keep points; fail where it is told to."""

    fails_in = ""
    points: list[tuple[int, str, float]]

    def __init__(self, run, id):
        self._fail("start")
        self.id = id or "run-1"
        self.closed = []

    def scalars(self, values, step):
        self._fail("scalars")
        self.points.extend((step, name, value) for name, value in values.items())

    def flush(self):
        self._fail("flush")

    def close(self, failed):
        self._fail("close")
        self.closed.append(failed)

    def _fail(self, where):
        if where == self.fails_in:
            raise RuntimeError("no network\nmore of it")


class Other(Memory):
    """A second one."""


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    monkeypatch.setattr(module, "LOGGERS", {"wandb": Memory, "mlflow": Other})
    for kind in (Memory, Other):
        monkeypatch.setattr(kind, "points", [], raising=False)
        monkeypatch.setattr(kind, "fails_in", "")
    return Memory


def opened(folder, *, first_step=0, goes_on=False, names=("wandb", "mlflow")):
    return Loggers(names, LoggedRun(folder, folder, {}, first_step, goes_on))


def test_a_run_that_goes_on_writes_no_point_twice_and_leaves_none_out(tmp_path, capsys):
    first = opened(tmp_path)
    first.scalars({"train/loss": 1.0}, 50)
    first.scalars({"val/loss": 2.0}, 50)
    first.scalars({"train/loss": 3.0}, 100)  # killed before val/loss of the same step
    again = opened(tmp_path, first_step=50, goes_on=True)
    assert "wandb has its points up to step 100 already" in capsys.readouterr().out
    for step in (100, 150):
        again.scalars({"train/loss": 3.0}, step)
        again.scalars({"val/loss": 4.0}, step)
    expected = [(50, "train/loss", 1.0), (50, "val/loss", 2.0), (100, "train/loss", 3.0), (100, "val/loss", 4.0)]
    expected += [(150, "train/loss", 3.0), (150, "val/loss", 4.0)]
    assert Memory.points == Other.points == expected


def test_the_run_id_is_kept_for_a_run_that_goes_on_and_for_no_other(tmp_path, capsys):
    opened(tmp_path)
    state = json.loads((tmp_path / "loggers.json").read_text())
    state["wandb"]["id"] = "run-7"
    (tmp_path / "loggers.json").write_text(json.dumps(state))
    kept = opened(tmp_path, goes_on=True, names=("mlflow",))  # a session without wandb between
    assert kept.state["wandb"]["id"] == "run-7"
    assert opened(tmp_path, goes_on=True).open["wandb"].id == "run-7"
    assert opened(tmp_path).open["wandb"].id == "run-1"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", ["{", "[]", '{"wandb": 3}', '{"wandb": {"id": 3, "written": {}}}',
                                     '{"wandb": {"id": "x", "written": {"a": "b"}}}', '{"other": {}}'])  # fmt: skip
def test_a_damaged_state_begins_new_runs(content, tmp_path):
    (tmp_path / "loggers.json").write_text(content)
    again = opened(tmp_path, goes_on=True)
    assert again.open["wandb"].id == "run-1"
    assert set(json.loads((tmp_path / "loggers.json").read_text())) == {"wandb", "mlflow"}


@pytest.mark.parametrize("place", ["start", "scalars", "flush", "close"])
def test_a_logger_that_fails_says_one_line_and_the_other_goes_on(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Memory, "fails_in", place)
    both = opened(tmp_path)
    other = both.open["mlflow"]
    for step in (1, 2):
        both.scalars({"loss": 0.5}, step)
        both.flush()
    both.close(failed=True)
    said = capsys.readouterr().out
    assert said == "--log_with wandb: fails (no network); the training goes on without it\n"
    assert Other.points == [(1, "loss", 0.5), (2, "loss", 0.5)]
    assert other.closed == [True]


def test_only_the_main_process_has_loggers(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "is_main", lambda: False)
    elsewhere = opened(tmp_path)
    elsewhere.scalars({"loss": 0.5}, 1)
    elsewhere.close()
    assert Memory.points == []
    assert list(tmp_path.iterdir()) == []
