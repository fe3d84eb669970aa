"""Runs to report on, and the browser in which reports are looked at."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from beit3_vqa.cli.main import main
from beit3_vqa.data.predictions import write_info, write_predictions
from beit3_vqa.data.types import Prediction, PredictionsInfo
from tests.conftest import SUBJECTS, finetune
from tests.helpers.browser import chromium

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=1</script></script><!-- &amp; \u2028 \u202e'
QUESTIONS = ("What is in the picture?", "Where was this taken?", "무엇이 보이나요?", "How many are there?")


def some_predictions(images: list[str], rows: int, seed: int, *, hostile: bool = True) -> list[Prediction]:
    """Answers of a model that is often right; every fifth row's texts want to be markup."""
    truths, rng = random.Random(0), random.Random(seed)
    found = []
    for number in range(rows):
        bad = hostile and number % 5 == 4
        choices = [HOSTILE if bad else subject for subject in truths.sample(SUBJECTS, 3)] + [
            f"the thing number {number}"
        ]
        choices = [f"{text} {place}" if bad else text for place, text in enumerate(choices)]
        truth = truths.choice("ABCD")
        odds = [rng.random() ** 2 + 1.2 * (letter == truth) * rng.random() + 1e-3 for letter in "ABCD"]
        probabilities = {letter: odd / sum(odds) for letter, odd in zip("ABCD", odds, strict=True)}
        answer = max(probabilities, key=probabilities.__getitem__)
        question = HOSTILE if bad else QUESTIONS[number % len(QUESTIONS)]
        score = float(answer == truth)
        image = images[number % len(images)]
        found.append(
            Prediction(
                f"q{number}", question, answer, probabilities, truth, score, None, None, None, tuple(choices), image
            )
        )
    return found


def write_run(folder: Path, predictions: list[Prediction], image_root: Path, **info: object) -> Path:
    """A folder with predictions.json and the file beside it."""
    folder.mkdir(exist_ok=True)
    file = write_predictions(predictions, folder / "predictions.json")
    write_info(
        PredictionsInfo(
            **{
                "task": "vqacustom",
                "model": "beit3_tiny_patch8_32",
                "parameters": 9_600_388,
                "split": "test",
                "image_root": str(image_root),
                "best_metric": "accuracy",
                "chance": 25.0,
                **info,
            }
        ),
        file,
    )  # type: ignore[arg-type]
    return file


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
