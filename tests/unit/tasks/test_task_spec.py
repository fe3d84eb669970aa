"""What a task may be: a frozen spec, few levels of classes, and nothing that one method sets for another to find."""

import ast
import dataclasses
import pickle
from pathlib import Path

import pytest

from beit3_vqa.config.config import GROUP_OF
from beit3_vqa.models.names import HEADS
from beit3_vqa.tasks import TASKS, find_task
from beit3_vqa.tasks.base import Task, TaskSpec
from tests.helpers.options import build_config

PACKAGE = Path(__file__).parents[3] / "beit3_vqa"


def attributes_set(source: str, *, outside: str = "") -> set[str]:
    """Attributes that are assigned, deleted or set by name, as "owner.name"; not in functions called `outside`."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == outside]
    exempt = {id(node) for function in functions for node in ast.walk(function)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in exempt:
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            found.add(ast.unparse(node))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "object.__setattr__"):
            found.add(f"{ast.unparse(node.args[0])}.?")
    return found


def test_the_walk_finds_what_it_looks_for():
    source = "class A:\n def __init__(self): self.x = 1\n def f(self):\n"
    source += "  self.a, b = 1, 2; t.task.b += 1; setattr(c, n, 0)"
    assert attributes_set(source, outside="__init__") == {"self.a", "t.task.b", "c.?"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "tasks").glob("*.py")), ids=lambda path: path.name)
def test_a_task_is_made_once_and_never_changed(path):
    assert not attributes_set(path.read_text(encoding="utf-8"), outside="__init__")


def test_nobody_changes_a_task():
    for path in sorted({*PACKAGE.rglob("*.py")} - {*(PACKAGE / "tasks").rglob("*.py")}):
        found = attributes_set(path.read_text(encoding="utf-8"))
        assert not [name for name in found if name.split(".")[-2] == "task"], path


@pytest.mark.parametrize("name", TASKS)
def test_a_spec_says_what_a_task_is(name):
    spec = find_task(name).spec
    assert isinstance(spec, TaskSpec)
    assert spec.name == name
    assert spec.head in HEADS
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.unit = "rows"
    assert type(spec.defaults) is dict
    build_config(spec.defaults)  # options there are, of values they may have
    assert {GROUP_OF[option] for option in spec.own_options} <= {"of_task"}


@pytest.mark.parametrize("name", TASKS)
def test_workers_that_are_spawned_get_its_data(name, tmp_path):
    folder = find_task(name).prepared_folder(build_config({"data_path": str(tmp_path)}))
    assert pickle.loads(pickle.dumps(folder)).splits() == []


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_one_class_at_most_between_it_and_task(name):
    classes = [base for base in find_task(name).__mro__ if base.__module__.startswith("beit3_vqa.tasks")]
    assert len(classes) <= 3, classes
    assert classes[-1] is Task
    assert not find_task(name).__abstractmethods__


def test_what_every_task_must_write():
    assert Task.__abstractmethods__ == {"example", "loss", "predictions", "aggregate", "chance"}
