"""Predictions and metrics as JSON, whole or not at all, and back.

Ids, questions and answers are in there as they are in the data; as JSON they survive exactly, and looking at the file
in a terminal is harmless, since every control character is written as an escape."""

import csv
import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from beit3_vqa.data.answers import answer_key, normalize_word
from beit3_vqa.data.rows import LETTERS, MAX_WEIGHT
from beit3_vqa.data.types import Prediction, PredictionsInfo
from beit3_vqa.errors import CONTROL, InputError, short
from beit3_vqa.runtime.files import (
    is_text,
    parse_json,
    publish,
    read_bounded,
    read_json,
    require_replaceable,
    write_text,
)

MAX_PREDICTIONS = 2_000_000_000  # bytes of predictions.json
MAX_INFO = 1_000_000  # bytes of the file beside it
MAX_PARAMETERS = 10**18
ROUNDING = 1e-6  # of probabilities and scores


def json_text(value: Any, indent: int | None = None, *, allow_nan: bool = False) -> str:
    """JSON that shows every script as it is written, and control characters (C1 and direction marks too) as escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=allow_nan)
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def write_predictions(predictions: Sequence[Prediction], path: Path) -> Path:
    """predictions.json: one object per row, in input order, what isn't known left out, and the loss."""
    unknown: tuple[Any, ...] = (None, (), "")
    rows = [
        {
            name: value
            for name, value in vars(p).items()
            # VQAv2's table holds an empty answer.
            if (value not in unknown and name != "loss") or (name in ("answer", "truth") and value is not None)
        }
        for p in predictions
    ]
    return write_json_rows(rows, path)


def read_predictions(path: Path, info: PredictionsInfo | None = None) -> list[Prediction]:
    """Read the rows of a predictions.json, each checked; names that aren't known are passed over.

    A score isn't believed but computed from answer and truth, and one that is another is an error. VQAv2's scores need
    more than one truth: `answer_scores`. Files of 0.1.0 don't hold these, which is said where scores show it.

    Args:
        path: the file.
        info: what `read_info` said of it, for whoever believes that.

    Raises:
        InputError: no such file, no JSON, not the file that `info` is of, or rows (listed by number, from 1) that
            aren't predictions, repeat an id or contradict themselves.
    """
    content = read_bounded(path, MAX_PREDICTIONS)
    if info and info.predictions_sha256 and info.predictions_sha256 != hashlib.sha256(content).hexdigest():
        raise InputError(
            f"{path} isn't what {info_file(path)} is of (SHA-256): an evaluation was killed while it wrote them, or "
            "one was replaced. Evaluate again; if you changed the predictions yourself, delete the info."
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
        print(f"{path}: has scores between 0 and 1, not the answers that make them; they are taken as they are")
    return [replace(p, score=plain_score(p)) if p.score is None and p.truth is not None else p for p in predictions]


def get_suffix(split: str) -> str:
    """What the names of a split's result files end in: those of the test split are plain."""
    return "" if split == "test" else f"_{split}"


def predictions_file(folder: Path, split: str) -> Path:
    """Where an evaluation of a split leaves its predictions."""
    return folder / f"predictions{get_suffix(split)}.json"


def info_file(predictions: Path) -> Path:
    """The file beside a predictions.json that says where it comes from."""
    return predictions.with_suffix(".info.json")


def publish_results(
    info: PredictionsInfo, predictions: Path, others: Sequence[Path], folder: Path, stale: Sequence[str] = ()
) -> list[Path]:
    """Put the results of an evaluation, written elsewhere, into a folder, and return their paths.

    Whenever the process is killed, predictions don't lie there under another evaluation's name or beside its results.
    Earlier results go first. Then comes the info, which disowns the predictions that are still there, if these are
    others (see `read_predictions`). Then come the predictions, and the rest.

    Args:
        info: where the predictions come from.
        predictions: their file.
        others: what else comes with them.
        folder: where all go.
        stale: names of results that an earlier evaluation may have left and this one may not have.

    Raises:
        InputError: one of the files can't take its place; then none does.
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
                print(f"removed {folder / name}, which was of earlier predictions")
    return publish([described, predictions, *others], folder)


def write_info(info: PredictionsInfo, predictions: Path) -> Path:
    """Writes `info_file(predictions)`."""
    return write_text(info_file(predictions), json_text(dataclasses.asdict(info), indent=2) + "\n")


def read_info(predictions: Path) -> PredictionsInfo | None:
    """What `info_file(predictions)` says; None where it isn't there.

    Raises:
        InputError: it is there, and can't be used.
    """
    path = info_file(predictions)
    if not path.exists():
        return None
    content = read_json(path, MAX_INFO)
    fields = {f.name: f.type for f in dataclasses.fields(PredictionsInfo)}
    known = {name: value for name, value in content.items() if name in fields} if isinstance(content, dict) else {}
    kinds = {
        str: is_text,
        int: _is_parameters,
        float | None: lambda v: v is None or _is_number(v),
    }
    wrong = [name for name, value in known.items() if not kinds[fields[name]](value)]  # type: ignore[index]
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


# A field of a row -> what it must be, and the test for that.
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
    "answer_scores": (
        "an object of numbers from 0 to 1",
        lambda v: isinstance(v, dict) and all(map(is_text, v)) and all(map(_is_share, v.values())),
    ),
    "probabilities": (
        "an object of numbers from 0 to 1",
        lambda v: isinstance(v, dict) and all(map(is_text, v)) and all(map(_is_share, v.values())),
    ),
}


def answer_problem(p: Prediction) -> str:
    """Return what is wrong with an answer: it is no option, or another is likelier; else an empty string.

    Rounded probabilities may be level. An open answer may be missing from the likeliest few, if these are level too.
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
    """Return what the answer scores by what the row holds: `answer_scores`, else 1 for the same answer as the truth."""
    if p.answer_scores is not None:
        return p.answer_scores.get(p.answer, 0.0)
    truth = p.truth or ""
    return float(p.answer == truth or answer_key(p.answer) in (answer_key(truth), normalize_word(truth)))


def score_problem(p: Prediction, *, untold: bool) -> str:
    """Return what is wrong with a score; else an empty string.

    Args:
        p: the row.
        untold: scores between 0 and 1 are in the file, and not what they are computed from.
    """
    if p.score is None:
        return ""
    if p.truth is None and p.answer_scores is None and p.choices:
        return f"scores {p.score:g}, but doesn't say the truth"
    if p.answer_scores is None:
        same_text = p.answer == (p.truth or "")
        if untold and (p.score or not same_text):
            return ""
        if p.score == 0.0 and not same_text:
            return ""  # whether a table of answers tells two spellings apart isn't known here
    right = plain_score(p)
    if abs(p.score - right) <= ROUNDING:
        return ""
    if p.truth is None and p.answer_scores is None:
        return f"scores {p.score:g}, but doesn't say the truth"
    return f"scores {p.score:g}, but its answer {short(p.answer)} to the truth {short(p.truth or '')} is {right:g}"


def _problem(row: object) -> str:
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
    """Upstream's result file: `[{"question_id": ..., "answer": ...}, ...]`; ids that are numbers stay numbers."""
    return write_json_rows([{"question_id": number_or_text(p.id), "answer": p.answer} for p in predictions], path)


def number_or_text(name: str) -> int | str:
    """An id as the JSON of the data set had it."""
    return int(name) if name.isdecimal() and str(int(name)) == name else name


def write_metrics(metrics: dict[str, Any], path: Path) -> Path:
    """metrics.json."""
    return write_text(path, json_text(metrics, indent=2) + "\n")


def write_json_rows(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """A JSON list with a row on each line."""
    lines = ",\n".join(json_text(row) for row in rows)
    return write_text(path, f"[\n{lines}\n]\n")


# The file that is handed in.

HEADER = "ID,answer"
_FORMULA = re.compile(r"\s*[=+\-@]")  # how a cell begins that a spreadsheet calculates
_NUMBER = re.compile(r"\s*[+-]?[\d.,]+%?\s*")


def write_submission(predictions: Sequence[Prediction], path: Path) -> Path:
    """submission.csv: `ID,answer`, every row once, in input order.

    Ids and answers are written as they are, character for character. The competition's grader compares text: an
    apostrophe before `=1+1`, which keeps a spreadsheet from calculating it, would make the row wrong. The file is for
    the grader; that a spreadsheet would take some cells for formulas is said on the terminal, not mended in the file.
    """
    buffer = io.StringIO()
    plain = csv.writer(buffer, lineterminator="\n")
    quoted = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(HEADER.split(","))
    for p in predictions:
        # Python before 3.13 doesn't quote a lone carriage return, which ends a row for whoever reads the file.
        (quoted if "\r" in p.id + p.answer else plain).writerow((p.id, p.answer))
    write_text(path, buffer.getvalue())
    formulas = sum(is_formula(p.id) or is_formula(p.answer) for p in predictions)
    if formulas:
        print(f"{path.name}: a spreadsheet would take {formulas} rows for formulas; hand it in as it is, unopened")
    return path


def is_formula(text: str) -> bool:
    """Whether a spreadsheet would calculate the text instead of showing it; plain numbers aren't formulas."""
    return bool(_FORMULA.match(text)) and not _NUMBER.fullmatch(text)
