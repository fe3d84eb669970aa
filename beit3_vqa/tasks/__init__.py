"""Kinds of tasks, found by name: a task is a file here of that name, whose `TASK` is the task's class."""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from beit3_vqa.errors import InputError, nearest

if TYPE_CHECKING:
    from beit3_vqa.tasks.base import Task

# What several tasks have in common, and is none.
_SHARED_FILES = {"base", "indexed", "classes", "vqa", "retrieval", "recall", "captioning", "caption_rows"}

TASKS = tuple(sorted(module.name for module in iter_modules(__path__) if module.name not in _SHARED_FILES))


def find_task(name: str) -> "type[Task]":
    """The class of a task.

    Raises:
        InputError: unknown, with the known names and the nearest.
    """
    if name not in TASKS:
        raise InputError(f"--task {name}: the tasks are {', '.join(TASKS)}.{nearest(name, TASKS)}")
    return import_module(f"{__name__}.{name}").TASK
