"""A small SCPC-style data set of real photographs, prepared by the command line."""

import csv
import random
from pathlib import Path

import pytest
import skimage
from hypothesis import HealthCheck, settings
from PIL import Image

from beit3_vqa.cli.main import main
from beit3_vqa.models.clip.scratch import TinyCLIP, write_tiny_clip

# Machines are shared and stall now and then: how long a draw takes says nothing about the code.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

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
TINY = ["--model", "beit3_tiny_patch8_32", "--vocab_size", "300", "--device", "cpu", "--precision", "fp32"]


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


@pytest.fixture(scope="session")
def scpc(tmp_path_factory) -> Path:
    """A folder with images/, train.csv, test.csv and what `prepare choices` made of them in data/."""
    folder = tmp_path_factory.mktemp("scpc")
    (folder / "images").mkdir()
    source = Path(skimage.__file__).parent / "data"
    names = []
    for copy in range(4):
        for name in PHOTOGRAPHS:
            image = Image.open(source / name).convert("RGB")
            image.thumbnail((96 + 8 * copy, 96))
            names.append(f"{copy}_{Path(name).stem}.jpg")
            image.save(folder / "images" / names[-1])
    # SUBJECTS repeat with the photographs, copy by copy.
    train = write_scpc_csv(folder / "train.csv", names[:6], 36, answers=True)
    with train.open(encoding="utf-8") as file:
        lines = file.read().splitlines()
    lines = [lines[0]] + [line.replace(",0_", f",{i % 4}_", 1) for i, line in enumerate(lines[1:])]
    train.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_scpc_csv(folder / "test.csv", names[18:24], 13, answers=False, seed=1)
    arguments = ["prepare", "choices", "--train", str(train), "--test", str(folder / "test.csv")]
    arguments += [
        "--image_root",
        str(folder / "images"),
        "--data_path",
        str(folder / "data"),
        "--train_tokenizer",
        "300",
    ]
    assert main(arguments) == 0
    return folder


@pytest.fixture(scope="session")
def trained(scpc, tmp_path_factory) -> Path:
    """The output folder of two epochs of training on `scpc`."""
    out = tmp_path_factory.mktemp("trained") / "out"
    assert main(finetune(scpc, out, "--epochs", "2")) == 0
    return out


CLIP = TinyCLIP(width=32, layers=2, img_size=32, patch_size=8, max_tokens=48)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A Hugging Face folder with a CLIP of width 32, for `--pretrained`."""
    texts = [f"Question: {question} Answer: {subject}" for question in TEMPLATES for subject in SUBJECTS]
    return write_tiny_clip(tmp_path_factory.mktemp("clip"), texts, CLIP)


def finetune_clip(folder: Path, clip: Path, out: Path, *flags: str) -> list[str]:
    """A command line that trains adapters of a tiny CLIP on a folder's data/."""
    arguments = ["finetune", "--task", "vqacustom", "--model", f"{CLIP.name}_lora", "--pretrained", str(clip)]
    arguments += ["--data_path", str(folder / "data"), "--output_dir", str(out), "--device", "cpu"]
    return [*arguments, "--precision", "fp32", "--batch_size", "8", "--lora_rank", "4", "--num_workers", "0", *flags]


def finetune(folder: Path, out: Path, *flags: str) -> list[str]:
    """A command line that trains a tiny model on a folder's data/."""
    arguments = [
        "finetune",
        "--task",
        "vqacustom",
        *TINY,
        "--data_path",
        str(folder / "data"),
        "--output_dir",
        str(out),
    ]
    return [*arguments, "--batch_size", "8", "--num_workers", "0", *flags]
