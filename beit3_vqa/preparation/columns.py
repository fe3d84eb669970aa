"""Find out which column of a table means what, by its name or as the user says."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from beit3_vqa.data.column_names import NAMES, plain
from beit3_vqa.data.rows import LETTERS
from beit3_vqa.errors import InputError, nearest, short

REQUIRED = ("image", "question")
# What stands before the letter or number of an option's own column; A and a alone are options too.
_OPTION = re.compile(r"(?:option|choice|opt|candidate|answer|선택지|보기|ans)?([a-z])")
_NUMBERED = re.compile(r"(?:option|choice|opt|candidate|선택지|보기)(\d{1,2})")
_MOST_SHOWN = 40


@dataclass(frozen=True)
class Columns:
    """Positions of the columns of a table, from 0.

    Attributes:
        places: meaning -> position; `options` is a column that holds all options of a row as a list.
        options: positions of the columns of one option each, A first.
        ignored: names of the columns without a meaning.
        wordings: positions of the columns that hold the question in other words, in order.
    """

    places: Mapping[str, int]
    options: tuple[int, ...]
    ignored: tuple[str, ...]
    wordings: tuple[int, ...] = ()

    @property
    def has_options(self) -> bool:
        """Return whether the table is of multiple-choice questions."""
        return bool(self.options) or "options" in self.places

    def shown(self, header: Sequence[str]) -> str:
        """Return in one line what was understood, such as `id=ID image=img_path ... options=A,B,C,D`."""
        more = "".join(f",{header[place].strip()}" for place in self.wordings)
        parts = [
            f"{meaning}={header[place].strip()}{more if meaning == 'question' else ''}"
            for meaning, place in self.places.items()
        ]
        if self.options:
            parts.append(f"options={','.join(header[place].strip() for place in self.options)}")
        return "  ".join(parts)


def as_flag(columns: str | Mapping[str, str | Sequence[str]]) -> str:
    """Return a mapping of meanings to columns as the text of `--columns`; a text stays as it is.

    Options are one column that holds a list, or a list of columns, of which the first and the last are named. So are
    the wordings of a question.

    Raises:
        InputError: a column's name can't be written in that text.
    """
    if isinstance(columns, str):
        return columns
    said = {meaning: list(name) if isinstance(name, (list, tuple)) else [name] for meaning, name in columns.items()}
    for meaning, names in said.items():
        if not names or not all(isinstance(name, str) and "," not in name for name in names):
            raise InputError(f"columns: {meaning} is {short(columns[meaning])}: give a column's name, without a comma.")
    return ",".join(f"{m}={names[0]}" + (f":{names[-1]}" if len(names) > 1 else "") for m, names in said.items())


def find_columns(
    header: Sequence[str],
    where: str,
    said: str = "",
    *,
    needs_answer: bool = True,
    needs_options: bool = False,
    own: Mapping[str, str] = MappingProxyType({}),
) -> Columns:
    """Return what each column means.

    Args:
        header: names of the columns.
        where: file and line, for messages.
        said: the user's own words, `id=qid,image=file,question=q,options=opt1:opt5,answer=gt`; what they name isn't
            looked for. Other wordings of the question are in columns with its name and a number from 2 (`Question_2`),
            or said as `question=FIRST:LAST`.
        needs_answer: whether there must be an answer column.
        needs_options: whether there must be options.
        own: meaning -> name of a column that wins over others of that meaning.

    Raises:
        InputError: a column is missing, or two may have the same meaning.
    """
    by_hand, options, wordings = _said(said, header, where)
    taken = {*by_hand.values(), *options, *wordings}
    if not options and "options" not in by_hand:
        options = _option_columns(header, taken, where)
        taken.update(options)
    places = dict(by_hand)
    for meaning, names in NAMES.items():
        found = [place for place, name in enumerate(header) if place not in taken and plain(name) in names]
        if meaning in places or (meaning == "options" and options):
            continue
        winners = [place for place in found if plain(header[place]) == plain(own.get(meaning, ""))]
        found = winners if len(winners) == 1 else found
        if len(found) > 1:
            both = " and ".join(repr(header[place].strip()) for place in found)
            example = header[found[0]].strip()
            raise InputError(f"{where}: {both} may both be the {meaning}: say which with --columns {meaning}={example}")
        if found:
            places[meaning] = found[0]
            taken.add(found[0])
    needed = (*REQUIRED, *(["answer"] if needs_answer else []))
    missing = [meaning for meaning in needed if meaning not in places]
    missing += ["options"] if needs_options and not options and "options" not in places else []
    if missing:
        listed = ", ".join(name.strip() or "(no name)" for name in header[:_MOST_SHOWN])
        raise InputError(
            f"{where}: no column for {', '.join(missing)} was recognised; columns found: {listed}. Say which they are: "
            f"--columns {','.join(f'{meaning}=NAME' for meaning in missing)}"
        )
    wordings = wordings or _wording_columns(header, places["question"], taken, where)
    taken.update(wordings)
    ordered = {meaning: places[meaning] for meaning in NAMES if meaning in places}
    ignored = tuple(name.strip() or "(no name)" for place, name in enumerate(header) if place not in taken)
    return Columns(ordered, tuple(options), ignored, tuple(wordings))


def _said(said: str, header: Sequence[str], where: str) -> tuple[dict[str, int], list[int], list[int]]:
    """Return what `--columns` says: meaning -> position, and the positions of options and of further wordings."""
    places: dict[str, int] = {}
    options: list[int] = []
    wordings: list[int] = []
    for part in said.split(",") if said else ():
        meaning, equals, name = (text.strip() for text in part.partition("="))
        if meaning not in NAMES or not equals or not name:
            raise InputError(
                f"--columns {part}: must be MEANING=NAME; the meanings are {', '.join(NAMES)}.{nearest(meaning, NAMES)}"
            )
        if meaning in places or (meaning == "options" and options):
            raise InputError(f"--columns: {meaning} is there twice.")
        first, colon, last = name.partition(":")
        if meaning in ("options", "question") and colon and name not in (h.strip() for h in header):
            start, end = _position(first, header, where), _position(last, header, where)
            if not 1 <= end - start < len(LETTERS):
                what = meaning.removesuffix("s") if meaning == "options" else "wording"
                raise InputError(f"--columns {meaning}={name}: must lead from the first {what} to the last, 2 to 26.")
            if meaning == "options":
                options = [*range(start, end + 1)]
            else:
                places[meaning], wordings = start, [*range(start + 1, end + 1)]
        else:
            places[meaning] = _position(name, header, where)
    twice = [*places.values(), *options, *wordings]
    if len(set(twice)) < len(twice):
        raise InputError(f"--columns {said}: names one column for two meanings.")
    return places, options, wordings


def _position(name: str, header: Sequence[str], where: str) -> int:
    """Return the position of a column that the user names; InputError if there is none, or two."""
    stripped = [column.strip() for column in header]
    found = [place for place, column in enumerate(stripped) if column == name.strip()]
    found = found or [place for place, column in enumerate(stripped) if plain(column) == plain(name)]
    if len(found) != 1:
        what = "there is no such column" if not found else "there are several such columns"
        raise InputError(f"{where}: --columns {short(name)}: {what}.{nearest(name, stripped)}")
    return found[0]


def _wording_columns(header: Sequence[str], question: int, taken: set[int], where: str) -> list[int]:
    """Return the positions of the columns with the question's name and a number from 2, in the order of the numbers.

    Raises:
        InputError: two have the same number.
    """
    numbered = re.compile(rf"{re.escape(plain(header[question]).removesuffix('1'))}([1-9]\d?)")
    found: dict[int, int] = {}
    for place, name in enumerate(header):
        match = numbered.fullmatch(plain(name))
        if not match or place in taken or int(match[1]) < 2:
            continue
        if found.setdefault(int(match[1]), place) != place:
            raise InputError(
                f"{where}: {header[found[int(match[1])]].strip()!r} and {name.strip()!r} may both be wording "
                f"{match[1]} of the question: rename one, or say --columns question=FIRST:LAST"
            )
    return [found[number] for number in sorted(found)]


def _option_columns(header: Sequence[str], taken: set[int], where: str) -> list[int]:
    """Return the positions of the columns of one option each, in order; none if there aren't at least A and B.

    Raises:
        InputError: one is missing before another, or is there twice.
    """
    lettered: dict[int, int] = {}
    numbered: dict[int, int] = {}
    for place, name in enumerate(header):
        if place in taken:
            continue
        for pattern, found, number in ((_OPTION, lettered, _letter), (_NUMBERED, numbered, int)):
            match = pattern.fullmatch(plain(name))
            if match and found.setdefault(number(match[1]), place) != place:
                other = header[found[number(match[1])]].strip()
                raise InputError(
                    f"{where}: {other!r} and {name.strip()!r} may both be option {match[1].upper()}: rename one, or "
                    "say which columns the options are with --columns options=FIRST:LAST"
                )
    for found, first in ((lettered, 0), (numbered, min(numbered, default=0))):
        if {first, first + 1} <= set(found) and first <= 1:
            count = next(number for number in range(first, first + len(LETTERS) + 1) if number not in found) - first
            # A column K may be anything, but one named C to J after a gap is hardly anything but an option.
            later = [number for number in found if first + count < number < first + 10]
            if later:
                gap, after = _name(first + count, found is lettered), header[found[later[0]]].strip()
                raise InputError(f"{where}: a column {after!r} but none for option {gap}; give all options in order")
            return [found[number] for number in range(first, first + count)]
    return []


def _letter(letter: str) -> int:
    return LETTERS.index(letter.upper())


def _name(number: int, is_letter: bool) -> str:
    return LETTERS[number] if is_letter else str(number)
