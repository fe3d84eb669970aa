"""Tell which columns of what somebody else's model wrote hold the ids, the answers, or a number for each option."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from beit3_vqa.data.column_names import NAMES, plain
from beit3_vqa.data.rows import LETTERS
from beit3_vqa.errors import InputError

_ANSWERS = (
    *NAMES["answer"],
    *("prediction", "pred", "predicted", "predictedanswer", "response", "output", "outputs", "generation", "generated"),
    *("generatedtext", "generatedanswer", "text", "completion", "result"),
    *("modelanswer", "modeloutput", "modelresponse"),
)
_NUMBERS = ("logprobs", "logprob", "logits", "probabilities", "probs", "scores", "logprobabilities", "loglikelihoods")
_NUMBER_WORDS = "p|probs?|probability|logp|logprobs?|logits?|scores?|ll|loglikelihood"
_MEANINGS = ("id", "answer", "rotation", "options", "numbers")
_ROTATION = ("rotation", "rotations", "shift", "circular")


@dataclass(frozen=True)
class GivenColumns:
    """Positions of the columns; None and empty for those that aren't there."""

    id: int
    answer: int | None
    rotation: int | None
    options: int | None
    numbers: int | None
    letters: tuple[int, ...]  # of the options' texts
    scores: tuple[int, ...]  # of the options' numbers
    doubt: str  # see `given_answers.GivenAnswer`


def find_given_columns(header: Sequence[str], path: Path, said: str) -> GivenColumns:
    """Return where a table of answers has what; `said` is the user's word on it, `id=NAME,answer=NAME`.

    Raises:
        InputError: nobody can tell.
    """
    names = list(map(plain, header))
    shown = ", ".join(name.strip() or "(no name)" for name in header[:40])
    by_hand: dict[str, int] = {}
    for part in said.split(",") if said else ():
        meaning, _, name = (text.strip() for text in part.partition("="))
        if meaning not in _MEANINGS or names.count(plain(name)) != 1 or not plain(name):
            raise InputError(
                f"--columns {part}: write id=NAME,answer=NAME (or {', '.join(_MEANINGS[2:])}); {path} has {shown}."
            )
        by_hand[meaning] = names.index(plain(name))

    def found(meaning: str, known: Sequence[str], *, ask: bool = True) -> int | None:
        places = [place for place, name in enumerate(names) if name in known and place not in by_hand.values()]
        if meaning in by_hand or not places:
            return by_hand.get(meaning)
        if len(places) > 1 and ask:
            both = " and ".join(repr(header[place].strip()) for place in places)
            example = f"--columns {meaning}={header[places[0]].strip()}"
            raise InputError(f"{path}: {both} may both be the {meaning}: say which with {example}.")
        return places[0]

    place, answer = found("id", NAMES["id"]), found("answer", _ANSWERS)
    numbers = None if "answer" in by_hand else found("numbers", _NUMBERS, ask=answer is None)
    taken = (place, answer, numbers)
    # logprob_A is a number, option_A a text. A is a number if nothing else is the answer.
    worded = _by_letter(names, f"(?:{_NUMBER_WORDS})([a-z])", ())
    bare = _by_letter(names, "(?:option|choice|opt)?([a-z])", taken)
    if numbers is not None and numbers in worded:  # --columns numbers=logprob_A
        numbers = None
    several = len(worded) > 1
    scores, doubt = worded if several and numbers is None else (), ""
    if answer is not None and "answer" not in by_hand and (scores or numbers is not None):
        if "numbers" in by_hand:
            answer = None
        else:  # a data set's own column may have come along
            named, of_numbers = header[answer].strip(), header[worded[0] if numbers is None else numbers].strip()
            doubt = (
                f"{named!r} isn't the option of the largest number ({of_numbers!r}, ...). Say which is the answer with "
                f"--columns answer={named} or --columns numbers={of_numbers}, or leave one out."
            )
    if answer is None and numbers is None and not several:
        scores, bare = _by_letter(names, "([a-z])", taken), ()
    if place is None or (answer is None and numbers is None and len(scores) < 2):
        lacks = "an id" if place is None else "an answer, or a number for each option (A, B, ...)"
        wanted = "id=NAME" if place is None else "answer=NAME"
        raise InputError(
            f"{path}: no column for {lacks} was recognised; columns found: {shown}. Say which it is with "
            f"--columns {wanted}."
        )
    rotation, options = found("rotation", _ROTATION), found("options", NAMES["options"], ask=answer is not None)
    return GivenColumns(place, answer, rotation, options, numbers, bare if len(bare) > 1 else (), scores, doubt)


def _by_letter(names: Sequence[str], pattern: str, taken: Sequence[int | None]) -> tuple[int, ...]:
    """Return the positions of the columns for A, B, ...: the first of each, as far as the letters have no gap."""
    places: dict[str, int] = {}
    for position, name in enumerate(names):
        match = re.fullmatch(pattern, name)
        if match and position not in taken:
            places.setdefault(match[1].upper(), position)
    return tuple(places[letter] for letter in itertools.takewhile(places.__contains__, LETTERS))
