"""Show the options of a question in other orders, and read answers back in the index's order.

An order is a tuple of positions: place `i` shows the option that the index has at `order[i]`. The index's own order
comes first, then its rotations, then other permutations.

"All of the above" in the first place asks another question. So options that speak of the others keep their place, in
English and in Korean; the options that "both A and B" names keep theirs too.

Nobody can tell options of the same text apart, so they keep their order among themselves, and orders that read the same
are one. Otherwise answers of the same meaning would count once as right and once as wrong.
"""

import dataclasses
import functools
import itertools
import math
import re
import unicodedata
from collections.abc import Sequence

from beit3_vqa.data.rows import LETTERS
from beit3_vqa.data.types import Example, Prediction
from beit3_vqa.errors import InputError

Order = tuple[int, ...]
MAX_CHARACTERS = 200  # only the first so many of an option are looked at
MAX_ORDERS = 120  # of five options; ten have 3,628,800

_OTHERS = "above|below|these|those|them|following|preceding|previous|others?"
_ENDING = r"(?: (?:is|are|applies|apply)(?: (?:right|correct|true))?)?"
_ABOUT_OTHERS = (
    # all of the above, none of these, neither of the other options
    rf"(?:all|none|both|neither|either|any|some|two|not any|more than one)(?: of)?(?: the)? (?:{_OTHERS}){_ENDING}",
    rf"(?:all|none|both|neither|either|any|some|two)(?: of)?(?: the)? (?:(?:{_OTHERS}|given|listed) )?"
    rf"(?:option|choice|answer)s?(?: (?:{_OTHERS}))?{_ENDING}",
    r"both|neither|either",
    r"(?:all|none|both|neither) (?:is|are) (?:right|correct|true|wrong|false)",
    r"no (?:correct|right) (?:answer|option|choice)",
    # 모두 맞다, 위의 보기 모두 정답이다, 둘 다 아니다
    r"(?:\S+ ){0,3}(?:모두|전부|다|둘 ?다) ?(?:맞|옳|정답|해당|아니|아님|틀)\S*",
    # 위의 모두, 보기 전부, 둘 다
    r"(?:위|앞|보기|다음|선택지)\S* ?(?:\S+ ){0,2}(?:모두|전부)",
    r"둘 ?다",
    # 정답 없음, 해당 사항 없음, 위에 맞는 것이 없다
    r"(?:\S+ ){0,3}(?:정답|답|해당|사항|것)(?:이|은|는)? ?(?:없음|없다|없습니다|없어요)",
    # 위에 없음, 보기 중에 없음, 이 중 없음
    r"(?:위|보기|다음|이 ?중)\S*(?: 중\S*)? ?(?:없음|없다|없습니다|없어요)",
)
_BRACKETED = re.compile(r"\(([a-j])\)|\b([a-j])\)")  # (A), a)
_OF_OTHERS = re.compile("|".join(_ABOUT_OTHERS))
_NAME = "(?:[a-j](?![a-z])|[1-9]번)"
_BEFORE = "both|either|neither|only|all of|options?|answers?|choices?|보기"
# Each separator matches in one way only: with two, n of them would be tried in 2^n ways.
_BETWEEN = " ?(?:(?:, ?)?(?:and|or|nor)\\b|&|\\+|,|/|와|과|및|또는|하고) ?"
_AFTER = (
    "(?:가|이|는|은|도)?"
    "(?: ?(?:(?:are|is) )?(?:both|all|only|not|모두|둘 ?다|전부|다|correct|right|true|wrong|false|incorrect))*"
    "(?: ?(?:맞|옳|정답|해당|아니|틀).*)?"
)
_NAMED = re.compile(
    rf"(?:(?:{_BEFORE}) ?)*(?P<names>{_NAME}(?:{_BETWEEN}{_NAME})+){_AFTER}"
    # Bare numbers name options only behind a word that says so: "1 and 2" and "1/2" may be answers themselves.
    rf"|(?:(?:both|either|neither) )?(?:options?|answers?|choices?|보기) (?P<numbers>[1-9](?:{_BETWEEN}[1-9])+){_AFTER}"
    rf"|(?:only|(?:the )?same as)(?: (?:options?|answers?|choices?))? (?P<one>{_NAME}){_AFTER}|(?P<alone>{_NAME}) only"
)
_OWN_LETTER = re.compile(r"[a-j][.:]? ")  # "D. all of the above"
_CIRCLED = {0x2460 + number: f"{number + 1}번" for number in range(9)}


def keeps_its_place(choice: str) -> bool:
    """Return whether an option speaks of the others: "all of the above", "both A and B", "정답 없음"."""
    text = _plain(choice)
    return any(_NAMED.fullmatch(one) or _OF_OTHERS.fullmatch(one) for one in (text, _OWN_LETTER.sub("", text, count=1)))


def _plain(choice: str) -> str:
    """Return lower case with single spaces, no marks at the ends, letters without brackets, composed syllables."""
    text = _BRACKETED.sub(
        r"\1\2", unicodedata.normalize("NFKC", choice.translate(_CIRCLED)).casefold()[:MAX_CHARACTERS]
    )
    return " ".join(text.split()).strip(" .,;:!?()[]\"'")


def movable(choices: Sequence[str]) -> list[int]:
    """Return the places of the options that may move."""
    held: set[int] = set()
    for place, choice in enumerate(choices):
        if keeps_its_place(choice):
            held |= {place, *_named_places(_plain(choice))}
    return [place for place in range(len(choices)) if place not in held]


def _named_places(text: str) -> list[int]:
    """Return the places of the options that an option names."""
    named = _NAMED.fullmatch(text) or _NAMED.fullmatch(_OWN_LETTER.sub("", text, count=1))
    words = "".join(filter(None, named.groups())) if named else ""
    letters = re.findall(r"\b[a-j](?![a-z])", words, flags=re.ASCII)
    return [*(ord(letter) - ord("a") for letter in letters), *(int(digit) - 1 for digit in re.findall("[1-9]", words))]


QUESTIONS = "questions"  # what of `--tta` stands for all wordings of a question


def split_mode(mode: str) -> tuple[str, bool]:
    """Return what a mode of `--tta` (`cyclic+questions`) says of options, see `orders`, and whether of all wordings."""
    named = mode.split("+")
    of_options = [name for name in named if name != QUESTIONS]
    return of_options[0] if of_options else "none", QUESTIONS in named


def orders(choices: Sequence[str], mode: str) -> tuple[Order, ...]:
    """Return the orders in which a question is asked, the index's own first; for an open-ended one that is all.

    Args:
        choices: the options.
        mode: `none`; `cyclic`: the rotations of what may move; `all`: its permutations.
    """
    same = tuple(map(list(choices).index, choices))
    return _orders(same, () if mode == "none" else tuple(movable(choices)), mode)


@functools.cache  # of a million questions most share a few patterns
def _orders(same: Order, places: Order, mode: str) -> tuple[Order, ...]:
    """Return `orders`, given for each option the first of the `same` text, and the `places` that may move."""
    moves = [(*places[shift:], *places[:shift]) for shift in range(len(places))] or [()]
    if mode == "all":
        moves += [moved for moved in itertools.permutations(places) if moved not in moves]
    found: dict[Order, Order] = {}  # by the texts as they are read
    for moved in moves:
        alike = {text: iter([option for option in places if same[option] == text]) for text in same}
        order = list(range(len(same)))
        for place, option in zip(places, moved, strict=True):
            order[place] = next(alike[same[option]])
        found.setdefault(tuple(same[option] for option in order), tuple(order))
    return tuple(found.values())


def rotations(choices: Sequence[str]) -> int:
    """Return how many of a question's orders are rotations; `orders` puts them first."""
    return len(orders(choices, "cyclic"))


def check_orders(options: int, mode: str) -> None:
    """Raise InputError if mode `all` would ask each question more than `MAX_ORDERS` times."""
    if mode == "all" and math.factorial(options) > MAX_ORDERS:
        raise InputError(
            f"--tta all: {options} options have {math.factorial(options):,} orders, more than {MAX_ORDERS}; "
            f"--tta cyclic asks each question {options} times."
        )


def reordered(example: Example, order: Order) -> Example:
    """Return the example with its options in another order, and answer, targets and teacher to match."""
    place = {old: new for new, old in enumerate(order)}
    targets = tuple((place[label], score) for label, score in example.targets)
    return dataclasses.replace(
        example,
        choices=tuple(example.choices[old] for old in order),
        answer=LETTERS[targets[0][0]] if targets else example.answer,
        targets=targets,
        teacher=tuple((place[label], share) for label, share in example.teacher),
    )


def unpermute(prediction: Prediction, order: Order) -> Prediction:
    """Turn a prediction for `reordered(example, order)` into one for `example`: letters mean its options."""
    if not prediction.choices:
        return prediction
    letter = {LETTERS[new]: LETTERS[old] for new, old in enumerate(order)}
    shares = {letter[name]: share for name, share in prediction.probabilities.items()}
    choices = dict(zip(order, prediction.choices, strict=True))
    scores = prediction.answer_scores
    return dataclasses.replace(
        prediction,
        answer=letter[prediction.answer],
        truth=None if prediction.truth is None else letter.get(prediction.truth, prediction.truth),
        probabilities=dict(sorted(shares.items())),
        choices=tuple(choices[place] for place in range(len(order))),
        answer_scores=None if scores is None else {letter[name]: score for name, score in scores.items()},
    )
