"""Normalise answers as VQA does, keep the table of answers and labels, and give soft scores.

Source of the rules: the answer processing of the VQA evaluation (https://visualqa.org/evaluation.html).
tests/golden/vqa_answer_processing.json holds its tables and 395 input/output pairs.
"""

import json
import logging
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from beit3_vqa.errors import MAX_PROBLEMS, InputError, plural
from beit3_vqa.runtime.files import missing, one_form, require_bounded, write_text

logger = logging.getLogger(__name__)

MAX_TABLE = 100_000_000  # bytes of answer2label.txt
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset({"a", "an", "the"})
_COUNTING = "zero one two three four five six seven eight nine ten"
NUMBER_WORDS = {"none": "0"} | {word: str(number) for number, word in enumerate(_COUNTING.split())}

_LOST_EVERY_APOSTROPHE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's
    I'm I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't
    should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's
    there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't
    y'all you'd you'll you're you've
"""

_RESPELT = {
    "couldn't've": "couldn'tve couldnt've",
    "hadn't've": "hadnt've hadn'tve",
    "he'd've": "hed've he'dve",
    "I'd've": "Id've I'dve",
    "it'd've": "itd've it'dve",
    "let's": "let's",
    "mightn't've": "mightnt've mightn'tve",
    "'ow's'at": "ow's'at 'ows'at 'ow'sat",
    "she'd've": "shed've she'dve",
    "she's": "she's",
    "shouldn't've": "shouldnt've shouldn'tve",
    "somebodyd": "somebody'd",
    "somebody'd've": "somebodyd've somebody'dve",
    "someone'd've": "someoned've someone'dve",
    "something'd've": "somethingd've something'dve",
    "there'd've": "thered've there'dve",
    "they'd've": "theyd've they'dve",
    "we'd've": "wed've we'dve",
    "who'd've": "whod've who'dve",
    "wouldn't've": "wouldnt've wouldn'tve",
    "y'all'll": "yall'll y'allll",
    "y'all'd've": "yall'd've y'alld've y'all'dve",
    "you'd've": "youd've you'dve",
}

# As found -> as written out. Keys with a capital are the official table's; they never match lower-cased text.
CONTRACTIONS = {word.replace("'", ""): word for word in _LOST_EVERY_APOSTROPHE.split()} | {
    found: word for word, spellings in _RESPELT.items() for found in spellings.split()
}

# The official pattern has a look-behind for a digit too, written so that it always holds.
_PERIOD = re.compile(r"\.(?!\d)")
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")

# The official script passes the flag re.UNICODE, which is 32, where re.sub expects a count.
_MAX_PERIODS = 32

_SOFT_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)


def normalize_word(text: str) -> str:
    """Normalise an answer as the official VQA evaluation does, quirks included.

    Punctuation goes first, then periods, case, number words, articles and contractions. The result may be empty:
    "A" is an article. To compare answers in which letters matter, use `answer_key`.
    """
    words = without_marks(text).lower().split()
    words = [NUMBER_WORDS.get(word, word) for word in words]
    words = [CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES]
    return " ".join(words)


def without_marks(text: str) -> str:
    """Remove punctuation and periods, as the first step of `normalize_word` does."""
    return _PERIOD.sub("", _without_punctuation(text), count=_MAX_PERIODS)


def _without_punctuation(text: str) -> str:
    """Remove marks that stand beside a space anywhere in `text` (all, if it has a "1,000"); make spaces of others."""
    has_grouped_number = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or has_grouped_number else " ")
    return result


# Marks that the official rules drop though they make another answer: -5 and 5, B+ and B-, 1,5 and 15, <5 and >5.
_MEANT = (
    (re.compile(r"(?:^|(?<=[\s(\[<>=]))[-\u2212](?=\.?\d)|^- (?=\.?\d)"), "minus "),
    # A comma before three digits stands at the thousands.
    (re.compile(r"^([^,]*\d),(?!\d{3}(?!\d))(\d[^,]*)$"), r"\1 comma \2"),
    # A fraction; a date has two of them.
    (re.compile(r"^([^/]*\d) ?/ ?(\d[^/]*)$"), r"\1 over \2"),
    # A+ needs a word before it: the rules drop "a".
    (re.compile(r"^(ab|[a-z]) ?\+$", re.IGNORECASE), r"grade \1 plus"),
    (re.compile(r"^(ab|[a-z]) ?-$", re.IGNORECASE), r"grade \1 minus"),
    (re.compile(r"(?<=[\w+])\+(?!\w)|(?<=\w) \+$"), " plus"),
    (re.compile(r"<(?=[= ]*[-+.]?\d)"), "less than "),
    (re.compile(r">(?=[= ]*[-+.]?\d)"), "more than "),
)


@lru_cache(2**17)  # the same few thousand answers are given millions of times
def answer_key(text: str) -> str:
    """Return the key under which two answers count as the same: `normalize_word`, or if that is empty, lower case.

    Without the second rule the letter "A" would be no answer at all. Text beyond ASCII gets its `one_form` first, so
    that answers that look alike are the same; the official rules compare code points. And signs, decimal commas,
    fractions and the marks of grades, which the official rules drop, are read as words.
    """
    text = one_form(text)
    meant = text
    for mark, word in _MEANT:
        meant = mark.sub(word, meant)
    return normalize_word(meant) or text.strip().lower()


def soft_score(count: int) -> float:
    """Return VQAv2's score of an answer that `count` of the ten annotators gave: 0, 0.3, 0.6, 0.9; 1 from four on."""
    return _SOFT_SCORES[min(count, len(_SOFT_SCORES) - 1)]


class AnswerTable:
    """The answers a classifier chooses from; an answer's label is its place in `answers`.

    Upstream's table for VQAv2 is normalised, so one entry may be the empty string: it stands for every answer that
    normalises to nothing and has no entry of its own. Forks' tables aren't normalised: if answers share a key (see
    `answer_key`), each is found by its exact text, and any other spelling means the first of them.

    Args:
        answers: the answers in label order, as they are to be written out.

    Raises:
        InputError: there are none, one is not Unicode text, or one is there twice.
    """

    def __init__(self, answers: Sequence[str]) -> None:
        self.answers = tuple(answers)
        self._labels: dict[str, int] = {}  # by `answer_key`
        self._exact = {answer: label for label, answer in enumerate(self.answers)}
        if not self.answers:
            raise InputError("The answer table holds no answers; give it at least one.")
        for label, answer in enumerate(self.answers):
            self._add(answer, label)

    def _add(self, answer: str, label: int) -> None:
        if any("\ud800" <= character <= "\udfff" for character in answer):
            raise InputError(f"The answer {answer!r} (label {label}) holds half a surrogate pair; write it as text.")
        if self._exact[answer] != label:
            raise InputError(f"The answer {answer!r} has two labels, {label} and {self._exact[answer]}; keep one.")
        self._labels.setdefault(answer_key(answer), label)

    @property
    def alike(self) -> list[tuple[str, str]]:
        """Return pairs of answers that share a key: the first with that key, and each later one."""
        firsts = [(self.answers[self._labels[answer_key(answer)]], answer) for answer in self.answers]
        return [(first, answer) for first, answer in firsts if first != answer]

    def __len__(self) -> int:
        return len(self.answers)

    def __repr__(self) -> str:
        return f"AnswerTable({list(self.answers)!r})"

    def label(self, answer: str) -> int | None:
        """Return the label of `answer`, compared by `answer_key`; None if the table doesn't hold it."""
        if answer in self._exact:
            return self._exact[answer]
        label = self._labels.get(answer_key(answer))
        return self._labels.get("") if label is None and not normalize_word(one_form(answer)) else label

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "AnswerTable":
        """Read answer2label.txt: one JSON object {"answer": ..., "label": i} a line, labels 0, 1, 2, ... in order.

        Raises:
            InputError: the file can't be read, lines (each is named) are something else, or the answers make no table.
        """
        path = Path(path)
        answers, problems = [], []
        for label, line in enumerate(_read_text(path).rstrip().split("\n")):
            answer, problem = _parse_line(line, label)
            answers.append(answer)
            if problem:
                problems.append(f"line {label + 1}: {problem}")
            if len(problems) == MAX_PROBLEMS:
                break
        if problems:
            raise InputError.of_problems(
                f"{path} is not a table of answers:",
                problems,
                'Each line must be {"answer": "text", "label": i} with i = 0 on the first line, 1 on the next, ...',
            )
        try:
            table = cls(answers)
        except InputError as error:
            raise InputError(f"{path} (line = label + 1): {error}") from None
        if table.alike:
            pairs = ", ".join(f"{first!r} and {other!r}" for first, other in table.alike[:3])
            logger.info(
                f"{path}: {plural(len(table.alike), 'answer')} equal{'s' * (len(table.alike) == 1)} others but "
                f"for spelling ({pairs}); each keeps its label"
            )
        return table

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file that `read` reads; replace an existing file whole or not at all.

        Raises:
            InputError: the folder doesn't exist or can't be written to.
        """
        rows = ({"answer": answer, "label": label} for label, answer in enumerate(self.answers))
        write_text(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _read_text(path: Path) -> str:
    """Read UTF-8 text of at most `MAX_TABLE` bytes; InputError if it can't be read."""
    require_bounded(path, MAX_TABLE)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(missing("answer table", path)) from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}") from error


def _parse_line(line: str, expected_label: int) -> tuple[str, str]:
    """Return the answer on a line of answer2label.txt, and what is wrong with the line (empty: nothing)."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "", f"not JSON: {line[:80]!r}"
    if not isinstance(row, dict) or not isinstance(row.get("answer"), str) or "label" not in row:
        return "", f'no text "answer" beside a "label": {line[:80]!r}'
    # `type` rather than isinstance or ==: true and 1.0 are equal to 1.
    if type(row["label"]) is not int or row["label"] != expected_label:
        return "", f"the label isn't {expected_label}: {line[:80]!r}"
    return row["answer"], ""
