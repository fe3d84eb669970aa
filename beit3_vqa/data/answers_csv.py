"""Read known answers from a table: `ID,answer[,weight]`, the options `A,B,C,D`, image and question if it has them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from beit3_vqa.data.answers import answer_key
from beit3_vqa.data.column_names import NAMES, plain
from beit3_vqa.data.rows import LETTERS, MAX_WEIGHT
from beit3_vqa.data.table_files import read_table
from beit3_vqa.data.tables import comparable, match_answer, named_columns, read_weight, require_same_ids
from beit3_vqa.data.types import Prediction
from beit3_vqa.errors import MAX_PROBLEMS, InputError, short
from beit3_vqa.runtime.files import one_form

REQUIRED = ("ID", "answer")
OTHERS = ("weight", "image", "question")
OPTIONAL = (*OTHERS, *LETTERS)


@dataclasses.dataclass(frozen=True)
class KnownAnswer:
    """A row of the table.

    Attributes:
        id: id of the question.
        answer: a letter, an option's text, or an open answer.
        weight: how much the row counts; None if the file has no weights.
        choices: the options; empty if the file has none.
        origin: where it is, such as `FILE:LINE`, for messages.
        image: its image; empty if the file has none.
        question: its text; empty if the file has none.
    """

    id: str
    answer: str
    weight: float | None
    choices: tuple[str, ...]
    origin: str
    image: str = ""
    question: str = ""


def read_answers(path: Path, encoding: str = "") -> list[KnownAnswer]:
    """Read the rows of a table of answers, in order; an id may occur twice. For `encoding` see `read_text`.

    Raises:
        InputError: the file is missing or no such table, or rows (listed) have no id, no answer or a bad weight.
    """
    table = read_table(path, encoding)
    columns = named_columns(_usual_names(table.header), path, REQUIRED, OPTIONAL)
    letters = _option_columns(columns, path)
    answers, problems = [], []
    for origin, cells in table.rows:
        texts = [cell if isinstance(cell, str) else ", ".join(cell) for cell in cells]
        if len(texts) != len(table.header):
            problems.append(
                f"{origin}: {len(texts)} cells where the header has {len(table.header)} (a comma needs quotes)"
            )
        else:
            answer, problem = _read_row({name: texts[place] for name, place in columns.items()}, letters, origin)
            answers.append(answer)
            problems += [f"{origin}: {problem}"] if problem else []
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        raise InputError.of_problems(f"{path} can't be used as answers:", problems)
    if not answers:
        raise InputError(f"{path} has a header but no rows")
    return answers


def _usual_names(header: Sequence[str]) -> list[str]:
    """Return the header with what people call these columns as we do, unless a column has our name already."""
    found = list(map(plain, header))
    usual = list(header)
    for name in (*REQUIRED, *OTHERS):
        # One letter is an option's column, Q too.
        others = [place for place, other in enumerate(found) if other in NAMES[plain(name)] and len(other) > 1]
        if plain(name) not in found and (name in REQUIRED or len(others) == 1):
            usual = [name if place in others else other for place, other in enumerate(usual)]
    return usual


def _option_columns(columns: Mapping[str, int], path: Path) -> str:
    """Return the letters of the option columns, from A on; InputError if one of A to J is missing before another."""
    count = next((place for place, letter in enumerate(LETTERS) if letter not in columns), len(LETTERS))
    later = [letter for letter in LETTERS[count:10] if letter in columns]
    if later:  # a column named A to J is hardly ever anything but an option
        raise InputError(f"{path}:1: a column {later[0]} but no column {LETTERS[count]}; name options A, B, C, ...")
    return LETTERS[:count]


def _read_row(cells: Mapping[str, str], letters: str, origin: str) -> tuple[KnownAnswer, str]:
    """Return a row, and what is wrong with it (empty: nothing)."""
    weight = read_weight(cells["weight"]) if "weight" in cells else None
    empty = [name for name in REQUIRED if not one_form(cells[name]).strip()]
    problem = f"{' and '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty" if empty else ""
    if "weight" in cells and weight is None:
        problem = problem or f"weight {short(cells['weight'].strip())} isn't a number from 0 to {MAX_WEIGHT:g}"
    choices = [cells[letter] for letter in letters]
    while choices and not one_form(choices[-1]).strip():  # a question of fewer options than the others
        choices.pop()
    more = {name: cells.get(name, "").strip() for name in ("image", "question")}
    return KnownAnswer(cells["ID"], cells["answer"].strip(), weight, tuple(choices), origin, **more), problem


def with_answers(predictions: Sequence[Prediction], answers: Sequence[KnownAnswer], where: Path) -> list[Prediction]:
    """Return the predictions, in their order, with the truths, scores and weights of the file `where`.

    Multiple choice scores 1 for the right letter; an open answer for the same text after the official normalisation.

    Raises:
        InputError: the questions differ, an answer is none of the options, or the options differ.
    """
    by_id: dict[str, KnownAnswer] = {}
    doubled = [a.id for a in answers if by_id.setdefault(a.id, a) is not a]
    require_same_ids(predictions, by_id, where, list(dict.fromkeys(doubled)))
    found, problems = [], []
    for p in predictions:
        known = by_id[p.id]
        truth, problem = _truth(p, known)
        problems += [f"{known.origin}: {problem}"] if problem else []
        right = p.answer == truth if _choices(p, known) else answer_key(p.answer) == answer_key(truth)
        weight = p.weight if known.weight is None else known.weight
        # The file has one truth.
        p = dataclasses.replace(p, answer_scores=None, image=known.image or p.image)
        found.append(dataclasses.replace(p, truth=truth, score=float(right), weight=weight, choices=_choices(p, known)))
    if problems:
        raise InputError.of_problems(f"{where} doesn't go with the predictions:", problems)
    return found


def _choices(prediction: Prediction, known: KnownAnswer) -> tuple[str, ...]:
    """Return the options from whichever has them; none if the answers aren't letters."""
    choices = prediction.choices or known.choices
    return choices if set(prediction.probabilities) <= set(LETTERS[: len(choices)]) else ()


def _truth(prediction: Prediction, known: KnownAnswer) -> tuple[str, str]:
    """Return the true letter or text, and what is wrong with it (empty: nothing)."""
    both = bool(prediction.choices and known.choices)
    if both and [*map(comparable, prediction.choices)] != [*map(comparable, known.choices)]:
        return known.answer, f"its options aren't those of the prediction: {short(list(prediction.choices))}"
    choices = _choices(prediction, known)
    given = one_form(known.answer).strip()
    if choices:
        return match_answer(given, choices)
    if given.upper() in prediction.probabilities:  # letters whose options nobody tells
        return given.upper(), ""
    return known.answer, ""
