"""A tiny CLIP with adapters, and questions to put to it."""

import random
from pathlib import Path

import torch
import transformers

from beit3_vqa.data.types import Example
from beit3_vqa.models.base import TaskShape
from beit3_vqa.models.clip.family import CLIPFamily
from tests.helpers.commands import CLIP
from tests.helpers.options import build_config
from tests.helpers.photographs import SUBJECTS, TEMPLATES

# The one that resizes by Pillow. In transformers 5 the old name stands for one by torchvision, which rounds otherwise.
PillowProcessor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)

FOUR = TaskShape("vqacustom", 4, True)


def family(folder, task=FOUR, **options):
    given = {"model": f"{CLIP.name}_lora", "pretrained": str(folder), "lora_rank": 4, **options}
    return CLIPFamily(build_config(given), task)


def examples(scpc: Path) -> list[Example]:
    """Nine questions about five images, some options the same; texts of several lengths."""
    images = sorted((scpc / "images").iterdir())[:5]
    rng = random.Random(0)
    return [
        Example(str(i), str(images[i % 5]), TEMPLATES[i % 3] + " Really?" * (i % 2), tuple(rng.sample(SUBJECTS, 4)))
        for i in range(9)
    ]


def randomise_adapters(model):
    """B begins at zero, which would hide whatever is wrong with the adapters."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.normal_(std=0.3)
