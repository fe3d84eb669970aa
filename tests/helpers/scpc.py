"""A small folder in the SCPC format, on real photographs, for the tests of `prepare`."""

import csv
import shutil
from pathlib import Path

import skimage

PHOTOGRAPHS = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")
HEADER = ["ID", "img_path", "Question", "A", "B", "C", "D", "answer"]
ANIMALS = ["a cat", "a cup", "a rocket", "a woman"]


def copy_photographs(folder: Path) -> Path:
    folder.mkdir()
    for name in PHOTOGRAPHS:
        shutil.copy(Path(skimage.__file__).parent / "data" / name, folder / name)
    return folder


def csv_rows(count, name="TRAIN"):
    return [
        [f"{name}_{number:03}", PHOTOGRAPHS[number % 4], "What is this?", *ANIMALS, "ABCD"[number % 4]]
        for number in range(count)
    ]


def write_csv(path: Path, rows, header=None, encoding="utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([header or HEADER, *rows])
    return path
