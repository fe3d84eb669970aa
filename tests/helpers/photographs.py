"""Questions about real photographs, and what each of them shows."""

import csv
import random
from importlib.util import find_spec
from pathlib import Path

import pytest

# A parameter for tests of image formats.
AVIF = pytest.param(
    "avif", marks=pytest.mark.skipif(find_spec("PIL.AvifImagePlugin") is None, reason="Pillow before 11.3")
)

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
)
SUBJECTS = ("an astronaut", "a cat", "a cup of coffee", "a rocket", "a motorcycle", "galaxies")
TEMPLATES = ("What is in the picture?", "Which of these does the photograph show?", "How would you call this?")


def write_scpc_csv(path: Path, images: list[str], rows: int, *, answers: bool, seed: int = 0) -> Path:
    """`rows` questions about what the photographs show, options shuffled."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "img_path", "Question", "A", "B", "C", "D", *(["answer"] if answers else [])])
        for number in range(rows):
            subject = number % len(images)
            options = [SUBJECTS[subject], *rng.sample([s for s in SUBJECTS if s != SUBJECTS[subject]], 3)]
            rng.shuffle(options)
            row = [f"{path.stem}_{number:03}", images[subject], rng.choice(TEMPLATES), *options]
            writer.writerow(row + (["ABCD"[options.index(SUBJECTS[subject])]] if answers else []))
    return path
