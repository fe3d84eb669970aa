"""Kinds of tasks, found by name; a new one is a file here and a line in `TASKS`."""

from importlib import import_module
from typing import TYPE_CHECKING

from beit3_vqa.errors import InputError, nearest

if TYPE_CHECKING:
    from beit3_vqa.tasks.base import Task

TASKS = {"vqacustom": "beit3_vqa.tasks.vqa:VQACustom"}


def find_task(name: str) -> "type[Task]":
    """The class of a task.

    Raises:
        InputError: unknown, with the known names and the nearest.
    """
    if name not in TASKS:
        raise InputError(f"--task {name}: the tasks are {', '.join(TASKS)}.{nearest(name, TASKS)}")
    module, class_name = TASKS[name].split(":")
    return getattr(import_module(module), class_name)
