"""Read the CSV and JSON files that a user names: find their encoding, rows and columns, within limits of size.

`csv_line` writes a row of a CSV file."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from beit3_vqa.data.file_kinds import KINDS, file_kind
from beit3_vqa.data.rows import LETTERS as ALL_LETTERS
from beit3_vqa.data.rows import MAX_WEIGHT
from beit3_vqa.data.types import Prediction
from beit3_vqa.errors import InputError, short
from beit3_vqa.runtime import files
from beit3_vqa.runtime.files import look_alikes, one_form

MAX_SHOWN = 500  # characters of a header in a message
MAX_CELL = 1_000_000  # characters of a cell
MAX_LINE = 4_000_000  # characters of a line: a hundred million commas would be as many cells
MAX_BLANK_LINES = 100_000  # one after the other: a hundred million take minutes to skip


def csv_line(cells: Sequence[str]) -> str:
    """Return a row of CSV with its line end, cells quoted where they must be."""
    buffer = io.StringIO()
    # Python before 3.13 doesn't quote a lone carriage return, which ends a row for whoever reads the file.
    is_odd = any("\r" in cell for cell in cells)
    csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL if is_odd else csv.QUOTE_MINIMAL).writerow(cells)
    return buffer.getvalue()


def parse_csv(text: str, path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, cells) of every row that isn't blank.

    Raises:
        InputError: the quotes aren't valid CSV, or a line or cell is too long.
    """
    # newline="" keeps line breaks inside quotes as they are.
    reader = csv.reader(_bounded_lines(text, path), strict=True, delimiter=delimiter)
    while True:
        line = reader.line_num + 1
        before = csv.field_size_limit(MAX_CELL)  # of the whole process, so it is given back before the row is
        try:
            cells = next(reader)
            while not cells:  # a blank line
                line = reader.line_num + 1
                cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path}:{line}: {_explain(str(error))}; the rest of the file wasn't read") from error
        finally:
            csv.field_size_limit(before)
        if "".join(cells).strip() or len(cells) > 1:
            yield line, cells


def _bounded_lines(text: str, path: Path) -> Iterator[str]:
    """Yield the lines of a text; InputError at too long a line or too many blank ones in a row."""
    blank = 0
    for number, line in enumerate(io.StringIO(text, newline=""), start=1):
        if len(line) > MAX_LINE:
            raise InputError(f"{path}:{number}: a line of more than {MAX_LINE:,} characters: is this a CSV file?")
        blank = blank + 1 if line.isspace() else 0
        if blank > MAX_BLANK_LINES:
            raise InputError(f"{path}:{number}: {MAX_BLANK_LINES:,} blank lines before this one: is this a CSV file?")
        yield line


def _explain(error: str) -> str:
    """Return the csv module's error in words that say what to look for."""
    if "field larger" in error:
        return f"a cell has more than {MAX_CELL:,} characters: is a quote missing its partner?"
    if "unexpected end" in error:
        return "a quote opens in the row that starts here and never closes"
    return f"the row that starts here isn't valid CSV ({error}): double the quotes inside a quoted cell"


def named_columns(
    header: Sequence[str], path: Path, required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, int]:
    """Return column name -> position, ignoring case, Unicode form and surrounding space; optional ones if present.

    Raises:
        InputError: a required column is missing, or a column occurs twice.
    """
    found = [one_form(name).strip().casefold() for name in header]
    shown = ", ".join(name.strip() for name in header)
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]} ..."
    missing = [name for name in required if name.casefold() not in found]
    separator = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
    if missing and separator:
        name = {";": "semicolons", "\t": "tabs", "|": "bars"}[separator]
        raise InputError(f"{path}:1: its cells are separated by {name}: save it with commas (CSV, comma delimited)")
    if missing:
        raise InputError(f"{path}:1: columns missing: {', '.join(missing)}; columns found: {shown}")
    known = [name for name in dict.fromkeys((*required, *optional)) if name.casefold() in found]
    twice = [name for name in known if found.count(name.casefold()) > 1]
    if twice:
        raise InputError(f"{path}:1: columns that are there twice: {', '.join(twice)}; columns found: {shown}")
    return {name: found.index(name.casefold()) for name in known}


# The encoding of text files that a user names.

MAX_SOURCE = 2_000_000_000  # bytes; VQAv2's annotations have 400 million
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# If the encoding can't be told, the message shows the text in each of these, for the user to choose.
_LIKELY = ("cp1252", "cp949", "shift_jis", "big5", "gb18030")

# The 400 syllables that make up 94% of running Korean text. Bytes of other encodings, read as CP949, give any of the
# 2,350 of KS X 1001 equally often, or the 8,822 that only CP949 has.
_FREQUENT = frozenset(
    "가각간갈감강같개거건걸검것게겠겨격견결경계고곳공과관광교구국군권규그근글금급기긴길김까께끝끼나난날남"
    "내냐냥너네녀년노놓누눈뉴느는늘능니님다단달담답당대더던데도독돌동됐되된될두뒤드든들등디따때또라락란람"
    "랑래러런럼럽렇레려력련렸령로록론료루류르른를름리린릴림립마막만많말망맞매머먹메며면명모목못무문물뭐미"
    "민및바박반받발방배백버번벌범법베변별병보복본볼봐부북분불브블비빠사산살삼상새색생서석선설성세션셨소속"
    "손송수순술스슨습승시식신실심싶써쓰씨아악안않알았앞애야약양어억언얼엄업없었에엔여역연열였영예오온올와"
    "완왔왕왜외요용우운울움워원월위유육으은을음응의이인일임입있자작잘잡장재저적전절점접정제져졌조족존좀종"
    "좋죠주죽준줄중즈증지직진질집짜째쪽차참창찾채책처천첫청체초총최추축출충취츠치친침카커케코크클키타태터"
    "테토통투트특티파판패퍼페편평포폭표품프플피필하학한할함합항해했행향험현협형호혼화확환활황회획후희히힘"
)
_ENOUGH = 4  # different ones of them: a word or two; one in a thousand files of a few Chinese words has as many
_SHARE = 0.6  # their least share of all letters beyond ASCII; lists of loanwords come nearest, Chinese text has 0.1


def read_text(path: Path, encoding: str = "", notes: list[str] | None = None) -> str:
    """Return the text of a file, without a byte order mark.

    Args:
        path: the file.
        encoding: Python's name of it; empty: UTF-8, UTF-16 with a byte order mark, or CP949 if that reads as Korean.
        notes: gets a line if the encoding isn't UTF-8.

    Raises:
        InputError: it is missing, empty, too large, can't be read, is no text, or is in another encoding.
    """
    if kind := file_kind(path):
        raise InputError(f"{path} is {KINDS[kind]}; a text file is needed")
    text, found = decode(files.read_bounded(path, MAX_SOURCE), path, encoding)
    if found != "UTF-8" and notes is not None:
        notes.append(f"{path} read as {found}")
    return text


def read_json(path: Path, encoding: str = "", notes: list[str] | None = None) -> Any:
    """Read a JSON file of any encoding that `read_text` knows; InputError as there, or if it isn't JSON."""
    return files.parse_json(read_text(path, encoding, notes), path)


def named_list(data: object, name: str, path: Path, advice: str) -> list[Any]:
    """Return the list `name` of a JSON object; InputError, with advice, if there is none or it is empty."""
    found = data.get(name) if isinstance(data, dict) else None
    if not isinstance(found, list) or not found:
        raise InputError(f'{path} has no list "{name}": {advice}')
    return found


def check_encoding(name: str) -> None:
    """Raise InputError unless Python knows a text encoding of that name, or the name is empty."""
    try:
        b" ".decode(name or "utf-8")  # not b"", for which Python doesn't look up the name
    except UnicodeError:  # one character of UTF-16 has two bytes
        pass
    except (LookupError, ValueError) as error:
        raise InputError(
            f"--encoding {name!r}: there is no such encoding; some are utf-8, cp949, cp1252, shift_jis, big5, gb18030."
        ) from error


def decode(content: bytes, path: Path, encoding: str = "") -> tuple[str, str]:
    """Return the text of `content` and the name of its encoding; arguments and errors as for `read_text`."""
    found = encoding or ("utf-16" if content.startswith(_UTF16_MARKS) else "utf-8")
    try:
        text = content.decode(found)
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        line = content.count(b"\n", 0, start) + 1
        if encoding or found != "utf-8":
            raise InputError(f"{path}:{line}: isn't {found.upper()}: {short(content[start : start + 20])}") from None
        text, found = _decode_cp949(content, f"{path}:{line}", start), "cp949"
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(
            f"{path}:{line}: a NUL character: is this a text file? Save it as UTF-8; if it is UTF-16 without a byte "
            "order mark, give --encoding utf-16-le"
        )
    return text.removeprefix("\ufeff"), found.upper()


def _decode_cp949(content: bytes, where: str, start: int) -> str:
    """Decode a file that stops being UTF-8 at byte `start`; InputError, beginning with `where`, if it isn't Korean."""
    replaced = content.decode("utf-8-sig", errors="replace")
    if sum(character > "\x7f" for character in replaced) > 2 * replaced.count("\ufffd"):
        # Most of it is good UTF-8. CP949 would often decode it too, to gibberish.
        raise InputError(f"{where}: damaged UTF-8, as a cut or badly merged file has: save it as UTF-8 again")
    try:
        text = content.decode("cp949")
    except UnicodeDecodeError:
        text = ""
    if _is_korean(text):
        return text
    readings = "; ".join(_readings(content, start)) or short(content[start : start + 20])
    raise InputError(
        f"{where}: neither UTF-8 nor CP949 that reads as Korean: save the file as UTF-8 (in Excel: CSV UTF-8), or "
        f"say with --encoding NAME, where the command has it, how this is to be read: {readings}"
    )


def _is_korean(text: str) -> bool:
    """Return whether what CP949 made of some bytes is Korean text."""
    letters = Counter({c: n for c, n in Counter(text).items() if c > "\x7f" and c.isalpha() and not _is_neutral(c)})
    frequent = {c: n for c, n in letters.items() if c in _FREQUENT}
    # In CP1252 text a byte and the ASCII letter after it decode to one of the syllables that KS X 1001 lacks.
    rare = "".join(c for c in letters if "가" <= c <= "힣" and min(c.encode("cp949")) < 0xA1)
    if rare and re.search(f"[A-Za-z][{rare}]|[{rare}][A-Za-z]", text):
        return False
    return len(frequent) >= _ENOUGH and sum(frequent.values()) >= _SHARE * letters.total()


def _is_neutral(letter: str) -> bool:
    """Return whether a letter says nothing about the language: ㅋ and ㅠ alone, full-width letters."""
    return "\u3131" <= letter <= "\u3163" or "\uff01" <= letter <= "\uff5e"


def _readings(content: bytes, start: int) -> list[str]:
    """Return how the text around byte `start` reads in each of `_LIKELY` that can decode it."""
    begin = max(content.rfind(b"\n", 0, start) + 1, start - 40)
    line = content[begin : start + 60].partition(b"\n")[0]
    readings = []
    for name in _LIKELY:
        text = line.decode(name, errors="replace")
        if "\ufffd" not in text[:-1]:  # the last character may be cut
            first = next((place for place, character in enumerate(text) if character > "\x7f"), 0)
            readings.append(f"{name} {short(text[max(0, first - 15) : first + 15].strip())}")
    return readings


# Predictions and answers must be of the same questions.


def require_same_ids(
    predictions: Sequence[Prediction], known: Iterable[str], where: Path, doubled: Sequence[str] = ()
) -> None:
    """Raise InputError, listing ids, unless predictions and answers have the same ids.

    Args:
        predictions: predictions, no two with the same id.
        known: ids of the answers, in order.
        where: the file of the answers.
        doubled: ids that occur in it more than once.
    """
    wanted = dict.fromkeys(known)
    given = {p.id for p in predictions}
    missing = [name for name in wanted if name not in given]
    extra = [p.id for p in predictions if p.id not in wanted]
    alike = look_alikes(missing, extra)
    parts = (("doubled in it", doubled), ("not predicted", missing), ("predicted, but not in it", extra))
    if any(ids for _, ids in parts):
        counts = ", ".join(f"{len(ids):,} {what}" for what, ids in parts if ids)
        # A few of each kind: many of the first would crowd out the others.
        listed = [
            f"{what}: {', '.join(map(short, ids[:6]))}{', ...' if len(ids) > 6 else ''}" for what, ids in parts if ids
        ]
        listed += [f"look alike, but are other characters: {'; '.join(alike[:6])}"] if alike else []
        raise InputError.of_problems(
            f"{where} and the predictions aren't of the same questions ({counts}):",
            listed,
            "Ids must match character for character. Is it the file of another split?",
        )


def match_answer(given: str, choices: Sequence[str]) -> tuple[str, str]:
    """Return the letter of an answer that is given as a letter or as an option's text, and what is wrong with it."""
    letters = tuple(ALL_LETTERS[: len(choices)])
    key = comparable(given)
    matches = [letter for letter, choice in zip(letters, choices, strict=True) if comparable(choice) == key]
    if given.upper() in letters:
        letter = given.upper()
        others = [match for match in matches if match != letter]
        if others:
            return "", (
                f"answer {given!r} is ambiguous: the letter {letter}, or the text of option {others[0]}? "
                f"Reword the option, for example as 'letter {letter}'"
            )
        return letter, ""
    value = number_in(given)
    if not matches and value is not None:  # a spreadsheet writes 4 in one column, and 4.0 in another
        matches = [letter for letter, choice in zip(letters, choices, strict=True) if number_in(choice) == value]
    if len(matches) > 1:
        return "", f"answer {given!r} is ambiguous: the text of options {' and '.join(matches)}; give the letter"
    if not matches:
        shown = ", ".join(f"{letter} {choice!r}" for letter, choice in zip(letters, choices, strict=True))
        return "", f"answer {given!r} is none of the options ({shown})"
    return matches[0], ""


def comparable(text: str) -> str:
    """Return the key under which two options count as the same text."""
    # macOS and Windows spell Korean syllables in different code points.
    return one_form(text).strip().casefold()


_PLAIN_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(?:\.[0-9]{1,15})?")


def number_in(text: str) -> float | None:
    """Return the number that a text is as a whole, in plain digits; None if it is none."""
    plain = one_form(text).strip()
    return float(plain) if _PLAIN_NUMBER.fullmatch(plain) else None


def read_weight(cell: str) -> float | None:
    """Return the weight in a cell, 0 to `MAX_WEIGHT`; None if it holds something else."""
    try:
        weight = float(cell)
    except ValueError:
        return None
    # Python reads 1_000 as a number, which no spreadsheet writes.
    return weight if 0 <= weight <= MAX_WEIGHT and "_" not in cell else None
