"""A small SCPC-style data set of real photographs, prepared by the command line."""

from pathlib import Path

import pytest
import skimage
from hypothesis import HealthCheck, settings
from PIL import Image

from beit3_vqa.cli.main import main
from beit3_vqa.models.clip.scratch import write_tiny_clip
from tests.helpers.commands import CLIP, finetune
from tests.helpers.photographs import PHOTOGRAPHS, SUBJECTS, TEMPLATES, write_scpc_csv

# Machines are shared and stall now and then: how long a draw takes says nothing about the code.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


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


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A Hugging Face folder with a CLIP of width 32, for `--pretrained`."""
    texts = [f"Question: {question} Answer: {subject}" for question in TEMPLATES for subject in SUBJECTS]
    return write_tiny_clip(tmp_path_factory.mktemp("clip"), texts, CLIP)
