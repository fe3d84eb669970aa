"""Runs made up for reports: predictions without a model."""

import random
from pathlib import Path

from beit3_vqa.data.predictions import write_info, write_predictions
from beit3_vqa.data.types import Prediction, PredictionsInfo
from tests.helpers.photographs import SUBJECTS

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
