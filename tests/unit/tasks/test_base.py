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


def test_attributes_set_finds_every_kind_of_assignment():
    source = "class A:\n def __init__(self): self.x = 1\n def f(self):\n"
    source += "  self.a, b = 1, 2; t.task.b += 1; setattr(c, n, 0)"
    assert attributes_set(source, outside="__init__") == {"self.a", "t.task.b", "c.?"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "tasks").glob("*.py")), ids=lambda path: path.name)
def test_no_method_of_a_task_sets_an_attribute(path):
    assert not attributes_set(path.read_text(encoding="utf-8"), outside="__init__")


def test_no_other_code_sets_an_attribute_of_a_task():
    for path in sorted({*PACKAGE.rglob("*.py")} - {*(PACKAGE / "tasks").rglob("*.py")}):
        found = attributes_set(path.read_text(encoding="utf-8"))
        assert not [name for name in found if name.split(".")[-2] == "task"], path


@pytest.mark.parametrize("name", TASKS)
def test_spec_is_frozen_and_names_existing_heads_and_options(name):
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
def test_prepared_folder_can_be_pickled_for_spawned_workers(name, tmp_path):
    folder = find_task(name).prepared_folder(build_config({"data_path": str(tmp_path)}))
    assert pickle.loads(pickle.dumps(folder)).splits() == []


@pytest.mark.parametrize("name", TASKS)
def test_at_most_one_class_stands_between_a_task_and_its_base(name):
    classes = [base for base in find_task(name).__mro__ if base.__module__.startswith("beit3_vqa.tasks")]
    assert len(classes) <= 3, classes
    assert classes[-1] is Task
    assert not find_task(name).__abstractmethods__


def test_abstract_methods_are_the_four_that_every_task_writes():
    assert Task.__abstractmethods__ == {"example", "loss", "predictions", "aggregate"}
