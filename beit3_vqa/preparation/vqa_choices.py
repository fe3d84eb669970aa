"""Multiple choice out of VQA's open-ended questions: the official files of VQA v1 or VQAv2.

VQA v1's `MultipleChoice_mscoco_*_questions.json` have 18 options for each question; the wrong ones are drawn from
those, of the right answer's kind (number or other) as far as there are any. `--options 18` takes them all.

VQAv2 has no options. The wrong ones are right answers of other questions: of the same answer_type and, as far as there
are any, of the same question_type. They are drawn as often as they are right there; otherwise the right answer would
be the one that is frequent, which needs no image.

An answer that any annotator gave to a question is never a wrong option of it, so a row may have fewer options than
others. A question of yes or no has two options only: `--yes_no` says what becomes of it. Images and splits are those of
`vqav2`. Without answers (test) nobody knows which options may go: only all 18 of VQA v1 can be kept.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from beit3_vqa.data.answers import answer_key
from beit3_vqa.data.rows import LETTERS, Row
from beit3_vqa.errors import MAX_PROBLEMS, plural, short
from beit3_vqa.preparation.table import note_fewer_options
from beit3_vqa.preparation.vqav2 import ANNOTATED, draw_val_images, read_annotations, read_questions
from beit3_vqa.preparation.writer import Prepared, PrepareOptions
from beit3_vqa.runtime.fields import Options, option
from beit3_vqa.runtime.files import is_text

# Edition -> its files of questions and of annotations.
_FILES = {
    "v1": ("MultipleChoice_mscoco_{}_questions.json", "mscoco_{}_annotations.json"),
    "v2": ("v2_OpenEnded_mscoco_{}_questions.json", "v2_mscoco_{}_annotations.json"),
}
_TESTS = {"test2015": "test", "test-dev2015": "test-dev"}
_YES_NO = {"yes": "no", "no": "yes"}
_KINDS = ("yes/no", "number", "other")
_TRIES = 20  # draws for each option, before all answers that are left are counted


@dataclass(frozen=True)
class Arguments(Options):
    """The files to read, and what to make of them."""

    annotations: str = option(MISSING, "folder of the official JSON files of questions and annotations")
    edition: str = option(
        "auto", "which files of the folder to read; auto: those that are there", choices=("auto", *_FILES)
    )
    options: int = option(4, "options of a question at most", low=2, high=len(LETTERS))
    yes_no: str = option(
        "leave_out",
        "questions of yes or no: leave them out, or keep those with two options whose other answer nobody gave",
        choices=("leave_out", "two"),
    )
    val_images: int = option(1000, "images of val2014 to validate on; the others are trained on", low=1)


class _Told(NamedTuple):
    """What annotators say about a question: one of `_KINDS`, question_type, and the keys of all their answers."""

    kind: str
    question_type: str
    given: frozenset[str]


def read(arguments: Arguments, options: PrepareOptions) -> Prepared:
    """Read train, val if its files are there, and all 18 options of VQA v1's tests if they are asked for."""
    prepared = Prepared("vqa_choices", [], options.image_root)
    folder = Path(arguments.annotations)
    there = [edition for edition in _FILES if (folder / _FILES[edition][0].format("train2014")).exists()]
    edition = arguments.edition if arguments.edition != "auto" else there[0] if len(there) == 1 else ""
    if not edition:
        names = [questions.format("train2014") for questions, _ in _FILES.values()]
        which = "has both {} and {}: say which with --edition" if there else "has neither {} nor {}"
        prepared.problems.append(f"{folder} {which.format(*names)}")
        return prepared
    questions, annotations = _FILES[edition]
    rows: dict[str, dict[int, Row]] = {}
    told: dict[str, dict[int, _Told]] = {}
    problem_of = _problem_of_choices if edition == "v1" else None
    for split in (*ANNOTATED, *(_TESTS if edition == "v1" else ())):
        path = folder / questions.format(split)
        if split != "train2014" and not path.exists():
            prepared.notes.append(f"{path.name} isn't there: no such split")
            continue
        rows[split] = read_questions(path, split, prepared, options.encoding, problem_of)
        if split in ANNOTATED:
            path = folder / annotations.format(split)
            told[split] = read_annotations(path, rows[split], prepared, options.encoding, _keep)
    if edition == "v2":
        prepared.notes.append("test has no answers, from which options could be made: no such split")
    _add_rows(prepared, rows, told, arguments, options.seed)
    width = max((len(row["choices"]) for of in prepared.splits.values() for row in of), default=0)
    prepared.answers = list(LETTERS[:width])
    note_fewer_options(prepared, width)
    return prepared


def _problem_of_choices(entry: dict[str, Any]) -> str:
    choices = entry.get("multiple_choices")
    fine = isinstance(choices, list) and all(is_text(choice) and choice.strip() for choice in choices)
    if fine and 2 <= len(choices) <= len(LETTERS):  # type: ignore[arg-type]
        return ""
    return f"multiple_choices must be a list of 2 to {len(LETTERS)} texts, none of them empty"


def _keep(annotation: dict[str, Any]) -> _Told:
    answer, kind = annotation["multiple_choice_answer"], annotation.get("answer_type")
    if kind not in _KINDS or answer_key(answer) in _YES_NO:
        kind = _get_kind(answer)
    asked = annotation.get("question_type")
    given = frozenset(answer_key(text) for text in (answer, *(one["answer"] for one in annotation["answers"])))
    return _Told(kind, asked if isinstance(asked, str) else "", given)


def _get_kind(answer: str) -> str:
    """Return which of `_KINDS` an answer is by its text."""
    key = answer_key(answer)
    return "yes/no" if key in _YES_NO else "number" if key.replace(".", "").isdecimal() else "other"


def _add_rows(
    prepared: Prepared,
    rows: dict[str, dict[int, Row]],
    told: dict[str, dict[int, _Told]],
    arguments: Arguments,
    seed: int,
) -> None:
    """Give each question its options and add it, or count why it is left out."""
    pools = _Pools((rows[split][number]["answer"], one) for split, of in told.items() for number, one in of.items())
    held_out = draw_val_images(rows["val2014"], prepared, arguments.val_images, seed) if "val2014" in rows else set()
    left_out: Counter[str] = Counter()
    for split, of in rows.items():
        for number, row in of.items():
            origin = f"{split}, question {number}"
            rng = random.Random(f"{seed}/{row['id']}")  # nothing depends on the order of the questions
            if split in _TESTS:
                if len(row["choices"]) > arguments.options:
                    left_out[_NO_ANSWER] += 1
                    continue
                rng.shuffle(row["choices"])
                prepared.add(_TESTS[split], row, origin)
            elif number in told[split]:
                reason = _choose(row, told[split][number], pools, arguments, rng)
                if reason in (_YES_OR_NO, _NOTHING_WRONG):
                    left_out[reason] += 1
                    continue
                if reason and len(prepared.problems) < MAX_PROBLEMS:
                    prepared.problems.append(f"{origin}: {reason}")
                prepared.add("val" if row["image_path"] in held_out else "train", row, origin)
    prepared.notes += [f"{plural(count, 'question')} left out: {reason}" for reason, count in left_out.items()]


_YES_OR_NO = "of yes or no, which have two options only (--yes_no two keeps those whose other answer nobody gave)"
_NOTHING_WRONG = "every wrong answer was given by an annotator"
_NO_ANSWER = "of test, whose right option isn't known, so that none may go (--options 18 keeps them)"


def _choose(row: Row, told: _Told, pools: "_Pools", arguments: Arguments, rng: random.Random) -> str:
    """Give a row its options and the letter of its answer; return why it can't have them (empty: it has them)."""
    right, wanted = row["answer"], arguments.options - 1
    own = {answer_key(choice): choice for choice in reversed(row.get("choices", ()))}  # of one key, the first
    if own and answer_key(right) not in own:
        return f"multiple_choice_answer {short(right)} is none of its multiple_choices"
    if told.kind == "yes/no":
        if arguments.yes_no == "leave_out":
            return _YES_OR_NO
        other = _YES_NO.get(answer_key(right), "")
        wrong = [other] if other and other not in told.given else []
    elif own:
        right = own[answer_key(right)]
        left = sorted(key for key in own if key not in told.given)
        rng.shuffle(left)
        left.sort(key=lambda key: _get_kind(key) != _get_kind(right))
        wrong = [own[key] for key in left[:wanted]]
    else:
        wrong = pools.draw(told, wanted, rng)
    if not wrong:
        return _NOTHING_WRONG
    choices = [right, *wrong]
    rng.shuffle(choices)
    row |= {"choices": choices, "answer": LETTERS[choices.index(right)]}
    return ""


class _Pools:
    """The right answers of questions, each as often as it is right, by answer_type and question_type.

    Args:
        answers: pairs of a question's right answer and what annotators say about it.
    """

    def __init__(self, answers: Iterable[tuple[str, _Told]]):
        self._spelling: dict[str, str] = {}
        self._pools: dict[tuple[str, str], list[str]] = defaultdict(list)
        for answer, told in answers:
            key = answer_key(answer)
            self._spelling[key] = min(answer, self._spelling.get(key, answer))
            self._pools[told.kind, told.question_type].append(key)
        for pool in self._pools.values():
            pool.sort()  # so that nothing depends on the order of the questions
        self._of_kind = {
            kind: sorted(key for (of, _), pool in self._pools.items() if of == kind for key in pool) for kind in _KINDS
        }

    def draw(self, told: _Told, count: int, rng: random.Random) -> list[str]:
        """Return up to `count` wrong answers to a question, those to questions of its type first."""
        keys = draw_wrong(
            told.given, (self._pools[told.kind, told.question_type], self._of_kind[told.kind]), count, rng
        )
        return [self._spelling[key] for key in keys]


def draw_wrong(given: Set[str], pools: Sequence[Sequence[str]], count: int, rng: random.Random) -> list[str]:
    """Return up to `count` different answers that aren't among the `given` ones.

    Each is drawn from the first pool that has any left, in proportion to how often it stands there.
    """
    found: list[str] = []
    for pool in pools:
        for _ in range(_TRIES * count if pool else 0):
            if len(found) == count:
                return found
            answer = pool[rng.randrange(len(pool))]
            if answer not in given and answer not in found:
                found.append(answer)
        # Hardly any answer is left, or those that are left are rare.
        left = Counter(answer for answer in pool if answer not in given and answer not in found)
        while left and len(found) < count:
            [answer] = rng.choices(list(left), list(left.values()))
            found.append(answer)
            del left[answer]
    return found
