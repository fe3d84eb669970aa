"""Read what somebody else's model answered, from any table, and say how each row was understood.

A row has an id and one of: an answer in words or letters, which `stated_answer` reads; or a number for each option, of
which the largest is the answer, in columns (`A`, `B`, ..., `logprob_A`, `p_a`) or in one (a list, or an object by
letters or options' texts). If it has an answer, `A`, `B`, ... are the options as they were shown.

A question that was asked in several orders has a row for each: a column `rotation` holds 0, 1, 2, ..., or the ids end
in `#0`, `#1`, .... Letters are those of the known answers' order, unless the row has the options as they were shown.
"""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from beit3_vqa.data.answers_csv import KnownAnswer
from beit3_vqa.data.given_columns import GivenColumns, find_given_columns
from beit3_vqa.data.rows import LETTERS
from beit3_vqa.data.stated_answer import EMPTY, LIKELIEST, UNREAD, WAYS, Reading, read_stated
from beit3_vqa.data.table_files import Cell, read_table
from beit3_vqa.data.tables import comparable
from beit3_vqa.data.types import Prediction
from beit3_vqa.errors import MAX_PROBLEMS, InputError, short
from beit3_vqa.runtime.files import is_file, one_form

UNREAD_ANSWER = "(not read)"  # of a prediction; no option's letter, and no word that a grader would take
AS_IT_IS = "open answer"
_TOLERANCE = 0.01  # how far from 1 the sum of probabilities may be
_MAX_DIGITS = 9  # of a rotation's number
_NUMBERED_ID = re.compile(r"(?s)(.+)#(\d{1,9})")


@dataclass(frozen=True)
class GivenAnswer:
    """A row of somebody's output.

    Attributes:
        id: id of the question, without the rotation's number.
        origin: where it is, such as `FILE:LINE`.
        text: the answer; None if the row has numbers instead. It may have both.
        numbers: (letter or text of an option, number as it is written) of each option.
        choices: the options as they were shown; empty if the file has none.
        rotation: number of the order in which it was asked; None if the file tells of no orders.
        doubt: what to say if the answer isn't the option of the largest number; empty: nothing, it was said by hand.
    """

    id: str
    origin: str
    text: str | None
    numbers: tuple[tuple[str, str], ...] = ()
    choices: tuple[str, ...] = ()
    rotation: int | None = None
    doubt: str = ""


@dataclass(frozen=True)
class Understood:
    """A row and what it answers.

    Attributes:
        given: the row.
        reading: what it was understood as.
        prediction: the same for the metrics; its answer is `UNREAD_ANSWER` if there is none.
    """

    given: GivenAnswer
    reading: Reading
    prediction: Prediction


def is_given_answers(path: Path) -> bool:
    """Return whether a file is a table of answers rather than a predictions.json of ours, by its content.

    A list of objects that have no `probabilities` as ours do is a table, and so is an object on each line.
    """
    if not is_file(path):  # a pipe would never end
        return False
    try:
        with path.open("rb") as file:
            start = file.read(1_000_000).decode("utf-8", "ignore").removeprefix("\ufeff").lstrip()
    except (OSError, ValueError):
        return False
    if not start.startswith(("[", "{")):
        return path.suffix.lower() != ".json" and bool(start)
    try:
        first, end = json.JSONDecoder().raw_decode(start.removeprefix("[").lstrip())
    except (ValueError, RecursionError):
        return False
    if not isinstance(first, dict):
        return False
    if start.startswith("["):
        return not isinstance(first.get("probabilities"), dict) or "answer" not in first
    return path.suffix.lower() != ".json" or start[end:].lstrip().startswith("{")


def read_given(path: Path, encoding: str = "", said: str = "") -> list[GivenAnswer]:
    """Read the rows of somebody's output, in order.

    Args:
        path: CSV, spreadsheet, Parquet, JSON or JSON lines.
        encoding: of a text file; see `read_text`.
        said: the user's word on the columns, `id=NAME,answer=NAME`.

    Raises:
        InputError: the file is missing or no such table, nobody can tell its columns, or rows (listed) have no id.
    """
    table = read_table(path, encoding)
    columns = find_given_columns(table.header, path, said)
    given: list[GivenAnswer] = []
    problems: list[str] = []
    for origin, cells in table.rows:
        if len(cells) != len(table.header):
            problems.append(
                f"{origin}: {len(cells)} cells where the header has {len(table.header)} (a comma needs quotes)"
            )
        else:
            row = _row(columns, cells, origin)
            given.append(row)
            if not one_form(row.id).strip():
                problems.append(f"{origin}: has no id")
            elif row.rotation is not None and row.rotation < 0:
                problems.append(f"{origin}: rotation must be 0, 1, 2, ...")
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        raise InputError.of_problems(f"{path} can't be used as answers:", problems, "Mend these rows.")
    if not given:
        raise InputError(f"{path} has a header but no rows.")
    return given


def _row(columns: GivenColumns, cells: Sequence[Cell], origin: str) -> GivenAnswer:
    def text(place: int) -> str:
        cell = cells[place]
        return cell if isinstance(cell, str) else "\n".join(cell)

    name, rotation = text(columns.id), None
    if columns.rotation is not None:
        written = one_form(text(columns.rotation)).strip()
        rotation = int(written) if written.isdecimal() and len(written) <= _MAX_DIGITS else -1
    lettered = [text(place) for place in columns.letters]
    while lettered and not one_form(lettered[-1]).strip():  # a question of fewer options than the others
        lettered.pop()
    options = _items(cells[columns.options]) if columns.options is not None else [("", text) for text in lettered]
    choices = tuple(option for _, option in options) if len(options) <= len(LETTERS) else ()
    scores = [text(place) for place in columns.scores]
    while scores and not scores[-1].strip():
        scores.pop()
    numbers = list(zip(LETTERS, scores, strict=False)) if columns.numbers is None else _items(cells[columns.numbers])
    answer = None if columns.answer is None else text(columns.answer)
    return GivenAnswer(name, origin, answer, tuple(numbers), choices, rotation, columns.doubt)


def _is_likeliest(given: str, choices: Sequence[str], numbers: Sequence[tuple[str, str]]) -> bool:
    """Return whether no option has a larger number than the given one; True if nobody can tell."""
    values = {comparable(name): _float(number) for name, number in numbers}
    letter = read_stated(given, choices).answer
    names = (given, letter, *(choices[LETTERS.index(letter) : LETTERS.index(letter) + 1] if letter else ()))
    own = next((values[comparable(name)] for name in names if comparable(name) in values), None)
    return own is None or len(values) < 2 or any(map(math.isnan, values.values())) or own >= max(values.values())


def _items(cell: Cell) -> list[tuple[str, str]]:
    """Return the (name, text) pairs of a list or an object; names of a list are letters. Empty if it is neither."""
    if isinstance(cell, str):
        try:
            content = json.loads(cell, parse_int=str, parse_float=str, parse_constant=str)
        except (ValueError, RecursionError):
            return []
        if isinstance(content, dict):
            return [(name, str(value)) for name, value in content.items()]
        if not isinstance(content, list):
            return []
        cell = list(map(str, content))
    return list(zip(LETTERS, cell, strict=False)) if len(cell) <= len(LETTERS) else []


def understand(given: Sequence[GivenAnswer], known: Sequence[KnownAnswer], path: Path) -> list[Understood]:
    """Say what each row answers, with the options of the known answers; ids may be unknown.

    Args:
        given: rows of `read_given`.
        known: the known answers.
        path: file of the rows, for messages.

    Raises:
        InputError: rows (listed) repeat an id, or were shown other options than the known answers have.
    """
    given = _split_ids(given, {answer.id for answer in known})
    by_id = {answer.id: answer for answer in known}
    open_ended = not any(answer.choices for answer in known) and not all(_is_letter(a.answer) for a in known)
    first: dict[tuple[str, int | None], str] = {}
    problems, understood = [], []
    logs = not all(_are_probabilities(row) for row in given if row.text is None)
    for row in given:
        key = (row.id, row.rotation)
        if first.setdefault(key, row.origin) is not row.origin:
            again = "" if row.rotation is None else f" with rotation {row.rotation}"
            problems.append(f"{row.origin}: the id {short(row.id)}{again} is at {first[key]} too")
        answer = by_id.get(row.id)
        choices = row.choices or (answer.choices if answer else ())
        if row.doubt and row.text is not None and not _is_likeliest(row.text, choices, row.numbers):
            raise InputError(f"{row.origin}: {row.doubt}")
        if open_ended and not choices and row.text is not None:
            text = row.text.strip()
            reading = Reading(text, AS_IT_IS if text else EMPTY)
            shares: dict[str, float] = {}
        elif row.text is not None:
            reading, shares = read_stated(row.text, choices), {}
        else:
            reading, shares = _likeliest(row.numbers, choices, logs)
        if row.choices and answer and answer.choices:
            if list(map(comparable, row.choices)) != list(map(comparable, answer.choices)):
                shares = {}  # by the letters of another order
            reading, problem = _in_their_order(reading, row.choices, answer.choices)
            problems += [f"{row.origin}: {problem}"] if problem else []
        elif row.choices and row.rotation:
            problems.append(
                f"{row.origin}: was shown its options in another order: --answers needs the columns A, B, ..."
            )
        question, image = (answer.question, answer.image) if answer else ("", "")
        options = answer.choices if answer and answer.choices else row.choices
        prediction = Prediction(row.id, question, reading.answer or UNREAD_ANSWER, shares, choices=options, image=image)
        understood.append(Understood(row, reading, prediction))
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        raise InputError.of_problems(f"{path} can't be used as answers:", problems, "Mend these rows.")
    return understood


def _is_letter(text: str) -> bool:
    return len(text) == 1 and one_form(text).upper() in LETTERS


def _split_ids(given: Sequence[GivenAnswer], known: set[str]) -> list[GivenAnswer]:
    """Return the rows with the number at the end of `q1#2` as their rotation, if the known answers have `q1` alone."""
    split = []
    for row in given:
        match = _NUMBERED_ID.fullmatch(row.id) if row.id not in known and row.rotation is None else None
        if match and match[1] in known:
            row = dataclasses.replace(row, id=match[1], rotation=int(match[2]))
        split.append(row)
    return split


def _in_their_order(reading: Reading, shown: Sequence[str], known: Sequence[str]) -> tuple[Reading, str]:
    """Return the letter in the order of the known answers, and what is wrong (empty: nothing)."""
    ours, theirs = list(map(comparable, known)), list(map(comparable, shown))
    if Counter(ours) != Counter(theirs):
        return reading, f"its options aren't those of the known answers: {short(list(shown))}"
    if reading.answer and ours != theirs:
        text = theirs[LETTERS.index(reading.answer)]
        if ours.count(text) > 1:
            return Reading("", UNREAD), ""
        return dataclasses.replace(reading, answer=LETTERS[ours.index(text)]), ""
    return reading, ""


def _float(text: str) -> float:
    try:
        return float(text) if "_" not in text else math.nan
    except ValueError:
        return math.nan


def _are_probabilities(row: GivenAnswer) -> bool:
    values = [_float(text) for _, text in row.numbers]
    return (
        not values
        or any(map(math.isnan, values))
        or (all(0 <= value <= 1 for value in values) and abs(math.fsum(values) - 1) <= _TOLERANCE)
    )


def _likeliest(
    numbers: Iterable[tuple[str, str]], choices: Sequence[str], logs: bool
) -> tuple[Reading, dict[str, float]]:
    """Return the option of the largest number, and the probabilities; nothing is read unless every option has one.

    Args:
        numbers: (letter or text, number as written); other names are passed over.
        choices: texts of the options; empty if they aren't known.
        logs: whether numbers are log-probabilities or logits, of which the softmax is taken.
    """
    unread = Reading("", UNREAD), dict[str, float]()
    letters = LETTERS[: len(choices) or len(LETTERS)]
    values: dict[str, float] = {}
    for name, text in numbers:
        wanted = comparable(name)
        named = {letter for letter in letters if letter.casefold() == wanted}
        named |= {letter for letter, choice in zip(letters, choices, strict=False) if comparable(choice) == wanted}
        one_more = not named and wanted == LETTERS[len(letters) : len(letters) + 1].casefold() != ""
        if len(named) > 1 or named & values.keys() or one_more:
            return unread
        values |= {letter: _float(text) for letter in named}
    options = letters if choices else LETTERS[: len(values)]
    if len(values) < 2 or set(values) != set(options) or any(math.isnan(v) or v == math.inf for v in values.values()):
        return unread
    ordered = {letter: values[letter] for letter in options}
    best = max(ordered.values())
    if best == -math.inf or list(ordered.values()).count(best) > 1:  # nobody knows which one was meant
        return unread
    shares = {letter: math.exp(value - best) for letter, value in ordered.items()} if logs else ordered
    total = math.fsum(shares.values())
    answer = max(ordered, key=lambda letter: ordered[letter])
    return Reading(answer, LIKELIEST), {letter: share / total for letter, share in shares.items()}


def read_submission(path: Path) -> tuple[list[Prediction], dict[str, str]]:
    """Read the answers of a submission as they are, without probabilities, and where each id is.

    Letters in lower case become capitals if the file has letters alone.

    Raises:
        InputError: as `read_given`; or rows (listed) have no answer, numbers instead of one, or repeat an id.
    """
    given = read_given(path)
    if any(row.text is None for row in given):
        raise InputError(f"{path}: has numbers for the options, not answers: give a table with the columns ID,answer.")
    texts = [one_form(row.text or "").strip() for row in given]
    texts = [text.upper() for text in texts] if all(map(_is_letter, texts)) else texts
    origins: dict[str, str] = {}
    problems = []
    for row, text in zip(given, texts, strict=True):
        if origins.setdefault(row.id, row.origin) is not row.origin:
            problems.append(f"{row.origin}: the id {short(row.id)} is at {origins[row.id]} too")
        elif not text:
            problems.append(f"{row.origin}: the answer of {short(row.id)} is empty")
    if problems:
        raise InputError.of_problems(f"{path} can't vote:", problems, "Give every id once, with an answer.")
    return [Prediction(row.id, "", text, {}) for row, text in zip(given, texts, strict=True)], origins


def group_rotations(understood: Sequence[Understood]) -> list[list[int]]:
    """Return for each question the places of its rows, the lowest rotation first, in the order of the questions.

    Raises:
        InputError: some questions were asked in other rotations than the first.
    """
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(understood):
        groups.setdefault(row.given.id, []).append(place)

    def rotation(place: int) -> int:
        return understood[place].given.rotation or 0

    ordered = [sorted(group, key=rotation) for group in groups.values()]
    wanted = list(map(rotation, ordered[0])) if ordered else []
    problems = [
        f"{short(understood[group[0]].given.id)}: {', '.join(map(str, map(rotation, group)))}"
        for group in ordered
        if list(map(rotation, group)) != wanted
    ]
    if problems:
        first = f"{short(understood[ordered[0][0]].given.id)} in {', '.join(map(str, wanted))}"
        raise InputError.of_problems(
            f"questions were asked in other rotations than {first}:", problems, "Give the same ones for every question."
        )
    return ordered


def count_ways(understood: Sequence[Understood]) -> dict[str, int]:
    """Count the rows that were understood in each way, in the order of `WAYS`, without those that are none."""
    counts = Counter(row.reading.way for row in understood)
    return {way: counts[way] for way in (*WAYS, AS_IT_IS) if counts[way]}


def ways_table(understood: Sequence[Understood], counts: Mapping[str, int]) -> str:
    """Return the counts as lines, with the first row of each way that has no answer."""
    lines = [f"{'how rows were understood':<28}{'rows':>9}"]
    for way, count in counts.items():
        first = next(row for row in understood if row.reading.way == way)
        text = dict(first.given.numbers) if first.given.text is None else first.given.text
        example = "" if first.reading.answer else f"  such as {short(first.given.id)}: {short(text)}"
        lines.append(f"  {way:<26}{count:>9,}{example}")
    wrong = sum(not row.reading.answer for row in understood)
    return "\n".join(lines + ([f"  {wrong:,} without an answer count as wrong"] if wrong else []))
