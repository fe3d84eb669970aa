"""Runs to report on, and the browser in which reports are looked at."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from beit3_vqa.cli.main import main
from tests.helpers.browser import chromium
from tests.helpers.commands import finetune
from tests.helpers.runs import some_predictions, write_run


@pytest.fixture(scope="session")
def images(scpc) -> list[str]:
    return sorted(path.name for path in (scpc / "images").iterdir())


@pytest.fixture(scope="session")
def evaluated(scpc, trained, tmp_path_factory) -> Path:
    """A whole run: curves, and a real model's predictions of the training rows, whose answers are known."""
    out = tmp_path_factory.mktemp("evaluated") / "real"
    shutil.copytree(trained, out)
    known = tmp_path_factory.mktemp("known")
    shutil.copytree(scpc / "data", known / "data")
    shutil.copy(known / "data" / "vqacustom.train.jsonl", known / "data" / "vqacustom.test.jsonl")
    weights, pictures = str(out / "checkpoint-best.pth"), str(scpc / "images")
    assert main(finetune(known, out, "--eval", "--resume", weights, "--image_root", pictures)) == 0
    return out


@pytest.fixture(scope="session")
def page(evaluated, scpc, images, tmp_path_factory) -> Path:
    """A report on a real run and two invented ones that answered the same questions, hostile texts among them."""
    folder = tmp_path_factory.mktemp("report")
    for name, seed in (("first", 1), ("second", 2)):
        write_run(folder / name, some_predictions(images, 60, seed), scpc / "images")
    output = folder / "report.html"
    assert (
        main(
            [
                "report",
                str(evaluated),
                str(folder / "first"),
                str(folder / "second"),
                "--output",
                str(output),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    return output


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium() as started:
        yield started
