"""The text files that a user names: a limit on their size, and the encoding they are in."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from beit3_vqa import files
from beit3_vqa.errors import InputError, short

MAX_SOURCE = 2_000_000_000  # bytes; VQAv2's annotations have 400 million
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# What a file that can't be told is shown in, for its owner to pick from.
_LIKELY = ("cp1252", "cp949", "shift_jis", "big5", "gb18030")

# The 400 syllables that make up 94% of running Korean text. Other encodings' bytes, read as CP949, hit any of the 2,350
# of KS X 1001 alike, or the 8,822 that only CP949 has.
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
_ENOUGH = 4  # different ones of them: a word or two. Of files of a few Chinese words, one in a thousand has as many.
_SHARE = 0.6  # of all letters beyond ASCII; lists of loanwords have least, Chinese text has 0.1


def read_text(path: Path, encoding: str = "", notes: list[str] | None = None) -> str:
    """Return the text of a file, without a byte order mark.

    Args:
        path: the file.
        encoding: its name for Python; empty: UTF-8, UTF-16 with a byte order mark, or CP949 where that is Korean.
        notes: gets a line where the encoding is another than UTF-8.

    Raises:
        InputError: it is missing, empty, too large, can't be read, or is in another encoding.
    """
    text, found = decode(files.read_bounded(path, MAX_SOURCE), path, encoding)
    if found != "UTF-8" and notes is not None:
        notes.append(f"{path} read as {found}")
    return text


def read_json(path: Path, encoding: str = "", notes: list[str] | None = None) -> Any:
    """Return the content of a JSON file; see `read_text`."""
    try:
        return json.loads(read_text(path, encoding, notes))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} isn't JSON: {error}.") from error


def check_encoding(name: str) -> None:
    """Raise InputError unless Python knows a text encoding of that name, or the name is empty."""
    try:
        b" ".decode(name or "utf-8")  # not of nothing, for which Python looks up no name
    except UnicodeError:  # one character of UTF-16 has two bytes
        pass
    except (LookupError, ValueError) as error:
        raise InputError(
            f"--encoding {name!r}: there is no such encoding; some are utf-8, cp949, cp1252, shift_jis, big5, gb18030."
        ) from error


def decode(content: bytes, path: Path, encoding: str = "") -> tuple[str, str]:
    """Return the text and the name of its encoding; see `read_text`."""
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
            f"{path}:{line}: a NUL character, which no text has: is this a text file? Save it as UTF-8 (UTF-16 without "
            "its mark has them: --encoding utf-16-le)"
        )
    return text.removeprefix("\ufeff"), found.upper()


def _decode_cp949(content: bytes, where: str, start: int) -> str:
    """Return the text of a file that isn't UTF-8 from byte `start` on; InputError where it isn't Korean."""
    replaced = content.decode("utf-8-sig", errors="replace")
    if sum(character > "\x7f" for character in replaced) > 2 * replaced.count("\ufffd"):
        # Most of it is good UTF-8. As CP949 it would often decode too, to gibberish.
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
        f"say with --encoding NAME how this is to be read: {readings}"
    )


def _is_korean(text: str) -> bool:
    """Return whether what CP949 made of some bytes is Korean text."""
    letters = Counter({c: n for c, n in Counter(text).items() if c > "\x7f" and c.isalpha() and not _is_neutral(c)})
    frequent = {c: n for c, n in letters.items() if c in _FREQUENT}
    # A byte of CP1252 and the ASCII letter behind it make one of the syllables that KS X 1001 hadn't room for.
    rare = "".join(c for c in letters if "가" <= c <= "힣" and min(c.encode("cp949")) < 0xA1)
    if rare and re.search(f"[A-Za-z][{rare}]|[{rare}][A-Za-z]", text):
        return False
    return len(frequent) >= _ENOUGH and sum(frequent.values()) >= _SHARE * letters.total()


def _is_neutral(letter: str) -> bool:
    """Return whether a letter is as likely in other files: ㅋ and ㅠ alone, full-width letters."""
    return "\u3131" <= letter <= "\u3163" or "\uff01" <= letter <= "\uff5e"


def _readings(content: bytes, start: int) -> list[str]:
    """Return what stands around byte `start` in each of `_LIKELY` that could have written it."""
    begin = max(content.rfind(b"\n", 0, start) + 1, start - 40)
    line = content[begin : start + 60].partition(b"\n")[0]
    readings = []
    for name in _LIKELY:
        text = line.decode(name, errors="replace")
        if "\ufffd" not in text[:-1]:  # the last character may be cut
            first = next((place for place, character in enumerate(text) if character > "\x7f"), 0)
            readings.append(f"{name} {short(text[max(0, first - 15) : first + 15].strip())}")
    return readings
