"""Predictions made up for the tests of ensembles."""

import random

from beit3_vqa.apps.ensemble.vote import Question, align_predictions
from beit3_vqa.data.types import Prediction


def answered(name: str, truth: str | None, **probabilities: float) -> Prediction:
    """A multiple-choice prediction: the likeliest of the options, scored against the truth."""
    answer = max(probabilities, key=lambda letter: probabilities[letter])
    score = None if truth is None else float(answer == truth)
    texts = tuple(f"option {letter}" for letter in probabilities)
    return Prediction(name, "What?", answer, dict(probabilities), truth=truth, score=score, choices=texts)


def simulated(count: int, skills: list[float], seed: int, options: str = "ABCD", name: str = "q") -> list[Question]:
    """`count` questions to members that see the truth this much more clearly than noise; 0 guesses."""
    rng = random.Random(seed)
    members: list[list[Prediction]] = [[] for _ in skills]
    for number in range(count):
        truth = rng.choice(options)
        for predictions, skill in zip(members, skills, strict=True):
            marks = {letter: 2.718 ** (rng.gauss(0, 1) + skill * (letter == truth)) for letter in options}
            total = sum(marks.values())
            predictions.append(answered(f"{name}{number}", truth, **{a: mark / total for a, mark in marks.items()}))
    return align_predictions([f"m{number}" for number in range(len(skills))], members)
