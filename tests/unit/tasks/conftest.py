"""Coloured shapes with captions, prepared for every task on captions."""

from pathlib import Path

import pytest

from beit3_vqa.cli.main import main
from tests.helpers.captioned import write_captioned


def prepare_captioned(folder: Path, train: int) -> Path:
    """`folder` with raw/ and data/, which has the index files of COCO's tasks, of Flickr30k and of nocaps."""
    raw = str(write_captioned(folder / "raw", train=train, val=12, test=12))
    places = ["--image_root", raw, "--data_path", str(folder / "data")]
    lists = ["--val", f"{raw}/nocaps_val_4500_captions.json", "--test", f"{raw}/nocaps_test_image_info.json"]
    assert main(["prepare", "nocaps", *lists, *places]) == 0
    for name in ("flickr30k", "coco"):
        arguments = ["--json", f"{raw}/dataset_{name}.json", *places, "--train_tokenizer", "300"]
        assert main(["prepare", name, *arguments]) == 0
    return folder / "data"


@pytest.fixture(scope="session")
def captioned(tmp_path_factory) -> Path:
    """The prepared folder of 48 training images, two captions each."""
    return prepare_captioned(tmp_path_factory.mktemp("captioned"), train=48)


def train_on(data: Path, task: str, out: Path, *flags: str) -> list[str]:
    """A command line that trains a tiny model on a task."""
    arguments = ["finetune", "--task", task, "--model", "beit3_tiny_patch8_32", "--vocab_size", "160"]
    arguments += ["--data_path", str(data), "--output_dir", str(out), "--device", "cpu", "--precision", "fp32"]
    arguments += ["--batch_size", "16", "--lr", "1e-3", "--layer_decay", "1", "--flip", "0", "--crop_scale", "0.9"]
    return [*arguments, "--num_workers", "0", *flags]


def evaluate_on(data: Path, task: str, checkpoint: Path, out: Path, *flags: str) -> list[str]:
    """A command line that evaluates."""
    arguments = ["finetune", "--eval", "--task", task, "--data_path", str(data), "--resume", str(checkpoint)]
    return [*arguments, "--output_dir", str(out), "--device", "cpu", "--num_workers", "0", *flags]
