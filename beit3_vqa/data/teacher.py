"""Read the probabilities of another model that a training learns from (`--teacher`)."""

import logging
from collections.abc import Iterable
from pathlib import Path

from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.index import ANSWERS_FILE
from beit3_vqa.data.predictions import difference, read_info, read_predictions
from beit3_vqa.data.types import Example
from beit3_vqa.errors import InputError, one_line, plural

logger = logging.getLogger(__name__)

Shares = tuple[tuple[int, float], ...]  # (label, probability) pairs


def read_teacher(path: Path, examples: Iterable[Example], answers: AnswerTable) -> dict[str, Shares]:
    """Return what a predictions.json says about each of the training rows, by row id, and print how many it has.

    Raises:
        InputError: it can't be read, lacks a row, has one with another question, image or list of options, or no
            probability for an answer of the table; rows are listed.
    """
    predictions = {p.id: p for p in read_predictions(path, read_info(path))}
    taught: dict[str, Shares] = {}
    problems, partly = [], 0
    for example in examples:
        name = one_line(example.id)
        prediction = predictions.get(example.id)
        if prediction is None:
            problems.append(f"row {name} isn't there")
        elif differs := difference(example, prediction):
            problems.append(f"row {name} has another {differs} there")
        else:
            shares = ((answers.label(answer), share) for answer, share in prediction.probabilities.items())
            taught[example.id] = tuple((label, share) for label, share in shares if label is not None)
            partly += len(taught[example.id]) < len(prediction.probabilities)
            if not sum(share for _, share in taught[example.id]):
                problems.append(f"row {name} has no probability there for an answer of {ANSWERS_FILE}")
    if problems:
        raise InputError.of_problems(
            f"--teacher {path}: doesn't fit the training rows:",
            problems,
            "`--eval --split train` of the teacher, on the same --data_path, writes such a file.",
        )
    logger.info(f"--teacher {path}: probabilities for {plural(len(taught), 'training row')}")
    if partly:
        logger.info(
            f"--teacher {path}: {plural(partly, 'row')} with answers that {ANSWERS_FILE} lacks; the probabilities "
            "of the others are scaled up to sum to 1"
        )
    return taught
