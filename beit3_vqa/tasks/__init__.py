"""Kinds of tasks: a task is a class in a file here, and a line in `TASKS`."""

from importlib import import_module
from typing import TYPE_CHECKING

from beit3_vqa.errors import InputError, nearest

if TYPE_CHECKING:
    from beit3_vqa.tasks.base import Task

# Name -> file and class; a file is imported when its task is asked for, since torch takes seconds.
TASKS: dict[str, str] = {
    "coco_captioning": "captioning:COCOCaptioning",
    "coco_retrieval": "retrieval:COCORetrieval",
    "flickr30k": "retrieval:Flickr30k",
    "imagenet": "imagenet:ImageNet",
    "nlvr2": "nlvr2:NLVR2",
    "nocaps": "captioning:NoCaps",
    "vqacustom": "vqa:VQACustom",
    "vqarank": "vqa_rank:VQARank",
    "vqav2": "vqav2:VQAv2",
}


def without_task(model: str, task: str) -> str:
    """Return a model's name without the task at its end."""
    spec = find_task(task).spec
    return model.removesuffix(f"_{spec.name}").removesuffix(f"_{spec.head}")


def find_task(name: str) -> "type[Task]":
    """Return the class of a task.

    Raises:
        InputError: unknown, with the known names and the nearest.
    """
    if name not in TASKS:
        raise InputError(f"--task {name}: the tasks are {', '.join(TASKS)}.{nearest(name, TASKS)}")
    module, class_name = TASKS[name].split(":")
    task: type[Task] = getattr(import_module(f"{__name__}.{module}"), class_name)
    return task
