"""Write and read predictions and metrics as JSON, and write the submission; each file whole or not at all.

Ids, questions and answers survive JSON exactly as they are in the data. Every control character is written as an
escape, so that showing the file in a terminal is harmless."""

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from beit3_vqa.data.answers import answer_key, normalize_word
from beit3_vqa.data.rows import LETTERS, MAX_WEIGHT
from beit3_vqa.data.tables import csv_line
from beit3_vqa.data.types import Example, Prediction, PredictionsInfo
from beit3_vqa.errors import CONTROL, InputError, plural, short
from beit3_vqa.runtime.files import (
    is_text,
    move_into,
    parse_json,
    read_bounded,
    read_json,
    require_replaceable,
    write_text,
)

logger = logging.getLogger(__name__)

MAX_PREDICTIONS = 2_000_000_000  # bytes of predictions.json
MAX_INFO = 1_000_000  # bytes of the file beside it
MAX_PARAMETERS = 10**18
ROUNDING = 1e-6  # of probabilities and scores


def json_text(value: object, indent: int | None = None, *, allow_nan: bool = False) -> str:
    """Return `value` as JSON: all scripts as they are, control characters (C1 and direction marks too) as escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=allow_nan)
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def write_predictions(predictions: Sequence[Prediction], path: Path) -> Path:
    """Write predictions.json: one object per row, in input order, without what isn't known and without the loss."""
    unknown: tuple[object, ...] = (None, (), "")
    rows = [
        {
            name: value
            for name, value in vars(p).items()
            # An empty answer stays: VQAv2's table holds one.
            if (value not in unknown and name != "loss") or (name in ("answer", "truth") and value is not None)
        }
        for p in predictions
    ]
    return write_json_rows(rows, path)


def read_predictions(path: Path, info: PredictionsInfo | None = None) -> list[Prediction]:
    """Read the rows of a predictions.json and check each; unknown fields are ignored.

    Scores are computed from answer and truth; a row with a different score is an error. VQAv2's scores need more than
    one truth: `answer_scores`. Files of 0.1.0 don't hold these; a line says so if scores between 0 and 1 show it.

    Args:
        path: the file.
        info: what `read_info` returned, to check that it belongs to this file.

    Raises:
        InputError: the file is missing, isn't JSON or doesn't match `info`, or rows (listed by number, from 1) aren't
            predictions, repeat an id or contradict themselves.
    """
    content = read_bounded(path, MAX_PREDICTIONS)
    if info and info.predictions_sha256 and info.predictions_sha256 != hashlib.sha256(content).hexdigest():
        raise InputError(
            f"{path} doesn't match {info_file(path)} (SHA-256). Either an evaluation was killed while it wrote them or "
            "one of the files was replaced. Evaluate again, or delete the info if you changed the predictions yourself."
        )
    rows = parse_json(content, path)
    if not isinstance(rows, list):
        raise InputError(f"{path} isn't a list of predictions, as `--eval` writes it.")
    first_row: dict[str, int] = {}
    problems = []
    for number, row in enumerate(rows, start=1):
        problem = _problem(row)
        if not problem and first_row.setdefault(row["id"], number) != number:
            problem = f"the id {short(row['id'])} is in row {first_row[row['id']]} too"
        if problem:
            problems.append(f"{path}, row {number}: {problem}")
    predictions = [] if problems else [_prediction(row) for row in rows]
    untold = any(p.answer_scores is None and p.score not in (None, 0.0, 1.0) for p in predictions)
    for number, p in enumerate(predictions, start=1):
        problem = answer_problem(p) or score_problem(p, untold=untold)
        problems += [f"{path}, row {number} ({short(p.id)}): {problem}"] if problem else []
    if problems:
        raise InputError.of_problems(f"{path} isn't a predictions.json that can be used:", problems)
    if untold:
        logger.warning(f"{path}: has scores between 0 and 1, but not the answers behind them; they are taken unchecked")
    return [replace(p, score=plain_score(p)) if p.score is None and p.truth is not None else p for p in predictions]


def get_suffix(split: str) -> str:
    """Return the ending of the names of a split's result files: `_SPLIT`, but empty for the test split."""
    return "" if split == "test" else f"_{split}"


def predictions_file(folder: Path, split: str) -> Path:
    """Return the path of the predictions of a split."""
    return folder / f"predictions{get_suffix(split)}.json"


def info_file(predictions: Path) -> Path:
    """Return the path of the file beside a predictions.json that says where the predictions come from."""
    return predictions.with_suffix(".info.json")


def publish_results(
    info: PredictionsInfo, predictions: Path, others: Sequence[Path], folder: Path, stale: Sequence[str] = ()
) -> list[Path]:
    """Move the results of an evaluation, written elsewhere, into a folder, and return their new paths.

    Whenever the process is killed, the folder never shows predictions with the info or the results of another
    evaluation. First the earlier results are deleted. Then comes the info: `read_predictions` refuses older predictions
    beside it. Then come the predictions, and the rest.

    Args:
        info: where the predictions come from.
        predictions: their file.
        others: further files that go with them.
        folder: folder for all of them.
        stale: names of results that an earlier evaluation may have left and this one may lack.

    Raises:
        InputError: a file can't take its place; it is checked before anything is changed.
    """
    checksum = hashlib.sha256(predictions.read_bytes()).hexdigest()
    described = write_info(replace(info, predictions_sha256=checksum), predictions)
    names = [path.name for path in others]
    for name in [described.name, predictions.name, *names, *stale]:
        require_replaceable(folder / name)
    for name in dict.fromkeys([*names, *stale]):
        if (folder / name).exists():
            (folder / name).unlink()
            if name not in names:
                logger.info(f"removed {folder / name}, which belonged to earlier predictions")
    return move_into([described, predictions, *others], folder)


def write_info(info: PredictionsInfo, predictions: Path) -> Path:
    """Write `info_file(predictions)` and return its path."""
    return write_text(info_file(predictions), json_text(dataclasses.asdict(info), indent=2) + "\n")


def read_info(predictions: Path) -> PredictionsInfo | None:
    """Read `info_file(predictions)`; None if there is none.

    Raises:
        InputError: it is there and can't be used.
    """
    path = info_file(predictions)
    if not path.exists():
        return None
    content = read_json(path, MAX_INFO)
    fields = {f.name: f.type for f in dataclasses.fields(PredictionsInfo)}
    known = {name: value for name, value in content.items() if name in fields} if isinstance(content, dict) else {}
    fits: dict[object, Callable[[object], bool]] = {
        str: is_text,
        int: _is_parameters,
        float: _is_number,
        float | None: lambda v: v is None or _is_number(v),
    }
    wrong = [name for name, value in known.items() if not fits[fields[name]](value)]
    if wrong or not {"task", "model", "parameters"} <= set(known):
        raise InputError(f"{path}: {', '.join(wrong) or 'task, model or parameters'} can't be used; evaluate again.")
    return PredictionsInfo(**known)


def _is_parameters(value: object) -> bool:
    return type(value) is int and 0 < value < MAX_PARAMETERS


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_WEIGHT  # type: ignore[arg-type]


def _is_share(value: object) -> bool:
    return _is_number(value) and 0 <= value <= 1  # type: ignore[operator]


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def _are_shares(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_text, value)) and all(map(_is_share, value.values()))


# Field of a row -> its description for messages, and its test.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "id": ("text", lambda v: is_text(v) and bool(v)),
    "answer": ("text", is_text),
    "question": ("text", is_text),
    "truth": ("text", is_text),
    "problem": ("text", is_text),
    "image": ("text", is_text),
    "choices": ("a list of texts", _is_texts),
    "score": ("a number from 0 to 1", _is_share),
    "weight": (f"a number from 0 to {MAX_WEIGHT:g}", lambda v: _is_number(v) and v >= 0),
    "answer_scores": ("an object of numbers from 0 to 1", _are_shares),
    "probabilities": ("an object of numbers from 0 to 1", _are_shares),
}


def answer_problem(p: Prediction) -> str:
    """Return what is wrong with an answer (it is no option, or another is likelier), or an empty string.

    Rounding may make probabilities equal. If all of the likeliest few are equal, an open answer may be missing there.
    """
    letters = LETTERS[: len(p.choices)]
    stray = [name for name in (p.answer, *p.probabilities) if p.choices and name not in tuple(letters)]
    if stray:
        return f"{short(stray[0])} is none of its {len(p.choices)} options, {', '.join(letters)}"
    if not p.probabilities:
        return ""
    likeliest = max(p.probabilities, key=lambda name: p.probabilities[name])
    given = p.probabilities.get(p.answer, 0.0 if p.choices else min(p.probabilities.values()))
    if p.probabilities[likeliest] <= given + ROUNDING:
        return ""
    return f"answers {short(p.answer)}, but {short(likeliest)} has the highest probability"


def plain_score(p: Prediction) -> float:
    """Return the score of the answer: by `answer_scores` if the row has them; else 1 if it equals the truth."""
    if p.answer_scores is not None:
        return p.answer_scores.get(p.answer, 0.0)
    truth = p.truth or ""
    # The empty answer of VQAv2's table stands for all that normalise to nothing.
    return float(answer_key(p.answer) == answer_key(truth) or not (p.choices or p.answer or normalize_word(truth)))


def score_problem(p: Prediction, *, untold: bool) -> str:
    """Return what is wrong with a score, or an empty string.

    Args:
        p: the row.
        untold: True if the file has scores between 0 and 1 without the answers behind them.
    """
    if p.score is None:
        return ""
    if p.truth is None and p.answer_scores is None and p.choices:
        return f"has the score {p.score:g}, but no truth to check it by"
    if p.answer_scores is None:
        same_text = p.answer == (p.truth or "")
        if untold and (p.score or not same_text):
            return ""
        if p.score == 0.0 and not same_text:
            return ""  # a table of answers may keep two spellings apart; it isn't known here
    right = plain_score(p)
    if abs(p.score - right) <= ROUNDING:
        return ""
    if p.truth is None and p.answer_scores is None:
        return f"has the score {p.score:g}, but no truth to check it by"
    truth = short(p.truth or "")
    return f"has the score {p.score:g}, but its answer {short(p.answer)} scores {right:g} (truth: {truth})"


def _problem(row: object) -> str:
    """Return what is wrong with the fields of a row, or an empty string."""
    if not isinstance(row, dict):
        return "isn't an object"
    lacking = [name for name in ("id", "answer", "probabilities") if name not in row]
    if lacking:
        return f"has no {', no '.join(lacking)}"
    for name, (kind, fits) in _FIELDS.items():
        if name in row and not fits(row[name]):
            return f"{name} must be {kind}, not {short(row[name])}"
    return ""


def _prediction(row: dict[str, Any]) -> Prediction:
    known = {name: row[name] for name in _FIELDS if name in row}
    return Prediction(**{"question": "", **known, "choices": tuple(row.get("choices", ()))})


def write_upstream_results(predictions: Sequence[Prediction], path: Path) -> Path:
    """Write upstream's result file, `[{"question_id": ..., "answer": ...}, ...]`; ids that are numbers stay numbers."""
    return write_json_rows([{"question_id": number_or_text(p.id), "answer": p.answer} for p in predictions], path)


def number_or_text(name: str) -> int | str:
    """Return an id as the JSON of the data set had it: as a number if it reads as one."""
    return int(name) if name.isdecimal() and str(int(name)) == name else name


def write_metrics(metrics: Mapping[str, object], path: Path) -> Path:
    """Write metrics.json and return its path."""
    return write_text(path, json_text(metrics, indent=2) + "\n")


def write_json_rows(rows: Sequence[Mapping[str, object]], path: Path) -> Path:
    """Write a JSON list with one row on each line, and return its path."""
    lines = ",\n".join(json_text(row) for row in rows)
    return write_text(path, f"[\n{lines}\n]\n")


def difference(example: Example, prediction: Prediction) -> str:
    """Return what a row of a prepared folder has otherwise than the row that was predicted; empty if it is the same."""
    same = {
        "question": example.question == prediction.question,
        "list of options": example.choices == prediction.choices,
        "image": not prediction.image or example.image == prediction.image,
    }
    return next((name for name, is_same in same.items() if not is_same), "")


# The file that is handed in.

HEADER = "ID,answer"
_FORMULA = re.compile(r"\s*[=+\-@]")  # how a cell begins that a spreadsheet calculates
_NUMBER = re.compile(r"\s*[+-]?[\d.,]+%?\s*")


def write_submission(predictions: Sequence[Prediction], path: Path) -> Path:
    """Write submission.csv: `ID,answer`, every row once, in input order.

    Ids and answers are written character for character. The competition's grader compares text: an apostrophe before
    `=1+1`, which keeps a spreadsheet from calculating it, would make the row wrong. So a line on the terminal says how
    many rows a spreadsheet would take for formulas; the file stays as it is.
    """
    write_text(path, [csv_line(HEADER.split(",")), *(csv_line((p.id, p.answer)) for p in predictions)])
    formulas = sum(is_formula(p.id) or is_formula(p.answer) for p in predictions)
    if formulas:
        logger.info(
            f"{path.name}: a spreadsheet would see formulas in {plural(formulas, 'row')}; "
            "submit it without opening it in one"
        )
    return path


def is_formula(text: str) -> bool:
    """Return whether a spreadsheet would calculate the text instead of showing it; plain numbers aren't formulas."""
    return bool(_FORMULA.match(text)) and not _NUMBER.fullmatch(text)
