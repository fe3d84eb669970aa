"""Read which option a text answers: what language models and people write where a letter was asked for.

Case, widths of characters and runs of blanks never matter. The first rule that applies decides:

1. What stands before the last `</think>` isn't read, nor is Markdown's emphasis; LaTeX's text commands are opened.
2. A text that is one option's text, but for quotes, a full stop and an article, is *the option's text*. One that is a
   letter alone ("B", "(c)", "b)", "Option B.", "B번", "B입니다") is a *letter*. If these are different options, or
   two options have this text, it is *not read*.
3. Without a letter or a digit the text is *empty*.
4. A statement names the answer: "the answer is B", "Answer: (B)", "정답은 B입니다", "I choose B"; "it's B", "B is
   correct" and "B가 정답" where a sentence begins; "..., so B." at
   the end of a line; `\\boxed{B}`, `<answer>B</answer>`; with a letter or an option's
   text. Of several the last decides. One that is denied or doubted in its sentence ("the answer is not B", "if the
   answer is B") or taken back after it ("wait, actually C"), that names two options, or a letter beyond the last
   option, makes the text *not read*.
5. A letter with a mark may lead ("B. a cat", "(B) a cat", "B: ..."), unless another letter has such a mark too or
   another option's text follows. After "B." there must be that option's text or a word that begins an explanation, if
   the texts are known: "C. Lewis wrote it" names a man. "B - a cat" always needs the text.
6. A letter alone on the first or last line is the answer, unless another letter stands so on the other.
7. "I cannot answer", "알 수 없습니다" and their like are *refused*.
8. Everything else is *not read*. A letter inside a sentence is a word: "A cat is on the mat" doesn't answer A.

In a statement a letter ends before a mark, a bracket, the end, an ending such as 입니다, or because, since and as: what
"the answer is a cat" names is no letter.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from beit3_vqa.data.rows import LETTERS
from beit3_vqa.runtime.files import one_form

MAX_TEXT = 100_000  # characters that are looked at; a longer text isn't read

LETTER, TEXT, STATED, LEADS, LIKELIEST = "letter", "option's text", "stated", "letter first", "likeliest option"
REFUSED, EMPTY, UNREAD = "refused", "empty", "not read"
#: every way in which a row can be understood, in the order of the table
WAYS = (LETTER, TEXT, STATED, LEADS, LIKELIEST, REFUSED, EMPTY, UNREAD)


@dataclass(frozen=True)
class Reading:
    """What a text answers.

    Attributes:
        answer: the letter of an option; empty if none was read.
        way: one of `WAYS`.
    """

    answer: str
    way: str


# A few at most: without a bound two of them side by side would try every way to share a long row of brackets.
_OPEN, _CLOSE = r"[(\[{<\"'“‘$]{0,8}", r"[)\]}>\"'”’$]{0,8}"
_WORD = r"(?:(?:option|choice|letter|answer|보기|선택지)(?: ?:)? ?)?"
_NOT = "아[니닙닌]"
_COPULA = r"(?: ?번)? ?(?:입니다|이다|예요|이에요|임|다)(?![a-z0-9가-힣])"
# A name is whole here: "C#", "a-frame", "b.c.", "a's" and "b cat" go on.
_WHOLE = (
    rf"{_CLOSE}(?:{_COPULA}|(?: ?번)?(?![a-z0-9가-힣])(?:(?<=[)\]}}>\"”$])|(?=[.,;:!?<](?![a-z0-9])| ?$| ?\n"
    r"| (?:because|since|as)\b| ?[–—-] | [(\[])))"
)
_LETTER_ALONE = re.compile(
    rf"{_OPEN}{_WORD}{_OPEN}([a-z])(?: ?번)?(?: ?(?:입니다|이다|예요|이에요|임|다))? ?[.:,!]?{_CLOSE}[.:,!]?"
)
_LETTER_AT = re.compile(rf"{_OPEN}{_WORD}{_OPEN}(?P<letter>[a-z]){_WHOLE}")
_OPENED, _ENDED, _ARTICLE = re.compile(_OPEN), re.compile(_WHOLE), re.compile("(?:an?|the) ")
_STATES = re.compile(
    # "the answer is", "final answer:", `"answer": `, "correct option ->"
    r"\b(?:answer|(?:final|correct|right|best|true|my) (?:choice|option|prediction|solution))"
    r"(?: here| to (?:the|this) question)?[\"']?"
    r"(?:(?: (?:is|would be|should be|must be|becomes)|'s)(?= |:|\n|n't)"
    r"(?: (?:therefore|thus|clearly|definitely|likely|probably|most likely))?(?: ?:)?"
    r"| ?(?:=|:|->|→)| (?=could|may|might|can))"
    r"|(?:정답|답안|답변|답|결론)(?:은|는|이)? ?[:=]?"
    r"|\b(?:i|we)(?: would| will|'d|'ll)? (?:choose|chose|pick|picked|select|selected|go with)(?: the)? "
    r"|(?:^|(?<=[.!?] )|(?<=\n))(?:(?:so|thus|therefore|i think|i believe),? )*it(?: is|'s) "
    rf"|(?<=[,;.] )(?:so|thus|therefore|hence),? (?={_OPEN}[a-z]{_CLOSE}[.!]?(?:\n|$))"
    r"|\\(?:boxed|fbox) ?\{|<answer>"
)
_DENIES = re.compile(
    rf"(?:n't| (?:not|never|neither|either|between|unlikely|could|may|might|can)\b)|[^.!?\n]{{0,20}}{_NOT}"
)
# Only where a sentence begins: "neither A nor B is correct" says the opposite.
_IS_RIGHT = re.compile(
    rf"(?:^|(?<=[.!?] )|(?<=\n)){_OPEN}{_WORD}{_OPEN}(?P<letter>[a-z])(?![a-z0-9]){_CLOSE}"
    r"(?: is (?:the )?(?:(?:correct|right|best)(?: (?:answer|option|choice))?|answer)(?= ?[.,!;\n]| ?$| because\b)"
    rf"|(?: ?번)? ?(?:이|가) ?(?:정답|답|맞|옳)(?!.{{0,6}}(?:{_NOT}|않)))"
)
_CONDITION = re.compile(r"\b(?:if|whether|unless|suppose|assume|assuming|otherwise)\b|만약")
_DENIAL = re.compile(r"\b(?:not|never|doubt|wrong|incorrect|unlikely|cannot|worst|(?<!at )least)\b|n't\b|않|오답|틀린")
_DENIED_AFTER = re.compile(
    # ", not A" denies the other one.
    r"(?![,;] not (?:option )?\(?(?:[b-j](?![a-z0-9'’])|a(?=[.,;:!)]|\n|$))(?!,? but\b))"
    r"[,;]? ?(?:\?|(?:is |was )?(?:no(?! doubt(?! (?:wrong|incorrect|false)))|not|wrong|incorrect|false)\b)"
    r"| ?\((?:wrong|incorrect|false)\b"
    rf"|[^.!?\n]{{0,6}}{_NOT}"
)
# "Wait, actually C." An a before a word may be an article.
_TAKES_BACK = re.compile(
    r"\b(?:wait|actually|disagree|correction|on second thought)\b[\s\S]{0,200}?(?<![a-z0-9'’])"
    r"(?P<letter>[b-j](?![a-z0-9'’])|a(?=[.,;:!)]|\n|$))"
)
_BREAKS = (". ", "! ", "? ", "\n", " but ")
_LESSER_BREAKS = (*_BREAKS, ", ", "; ", " so ", " thus ", " therefore ")
_BACK = 400  # characters of the sentence before a statement that are looked at
_OTHER = re.compile(r",? ?(?:and|or|nor|/|&|\+|,) ?|,? ?(?:이나|나|또는|혹은|와|과) ?")
_BESIDE = re.compile(r"[\s.:,;()\[\]\"'}–—-]*")
_ENUMERATED = re.compile(r"(?<![\w.'’-])\(?([a-z])(?:[.):\]](?=\s|$)|\))")
_LEADS = re.compile(rf"(?P<open>[(\[]?){_WORD}(?P<letter>[a-z])(?P<mark>\)\.|[).:\]]|번 ?[.):]?| ?[–—-])(?=\s)\s*")
_EXPLAINS = re.compile(
    r"(?:because|since|as|the|this|that|these|those|there|it|in|based|explanation|reason|reasoning|왜냐|이유|그림|사진|이미지)"
    r"(?![a-z0-9])"
)
_REFUSAL = re.compile(
    r"\b(?:i|we)(?: am| ?'m| are| ?'re)? (?:can ?not|can't|couldn't|do not|don't|not able|unable|not sure|refuse)\b"
    r"|\b(?:sorry|as an ai|unable to|cannot (?:be )?(?:answer|determine|tell|see|provide)\w*|no (?:answer|image)|n/a"
    r"|unknown|not enough information|insufficient information|impossible to (?:say|tell|determine|answer))\b"
    r"|알 수 ?없|모르겠|모름|답할 수 ?없|답변할 수 ?없|판단할 수 ?없|확인할 수 ?없|죄송"
)
_TEX = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mathsf) ?\{([^{}]*)\}")
_EMPHASIS = re.compile(r"\*+|`+|_{2,}|(?<![^\s(])_(?=\S)|(?<=\S)_(?![^\s.,)])")


def plain(text: str) -> str:
    """Return the text in one form: composed, ordinary widths, lower case, single blanks, lines kept."""
    lines = (" ".join(line.split()) for line in one_form(text).casefold().splitlines())
    return "\n".join(line for line in lines if line)


def read_stated(text: str, choices: Sequence[str] = ()) -> Reading:
    """Return which option a text answers, by the rules of this file.

    Args:
        text: what somebody answered.
        choices: texts of the options A, B, ...; empty if they aren't known.
    """
    if len(text) > MAX_TEXT:
        return Reading("", UNREAD)
    options = [plain(choice).replace("\n", " ") for choice in choices]
    letters = LETTERS[: len(options) or None].lower()
    raw = plain(text).rpartition("</think>")[2].strip()
    opened = plain(_EMPHASIS.sub("", _TEX.sub(r"\1", raw)).replace(r"\(", "").replace(r"\)", ""))
    read = _whole(raw, options, letters) or _whole(opened, options, letters) or _read(opened, options, letters)
    return Reading(read.answer.upper(), read.way)


def _whole(text: str, options: Sequence[str], letters: str) -> Reading | None:
    """Return what a text is as a whole: an option's text, or a letter; None if neither."""
    named = _with_text(text.replace("\n", " "), options)
    alone = _LETTER_ALONE.fullmatch(text)
    if not alone and not named:
        return None
    if alone and (alone[1] in letters or not named):
        return Reading(alone[1], LETTER) if named <= {alone[1]} and alone[1] in letters else Reading("", UNREAD)
    return Reading(named.pop(), TEXT) if len(named) == 1 else Reading("", UNREAD)


def _with_text(text: str, options: Sequence[str]) -> set[str]:
    """Return the letters of the options that have this text; as it is, else without quotes, full stop and article."""
    for form in (str, _bare):
        wanted = form(text)
        named = {letter.lower() for letter, option in zip(LETTERS, options, strict=False) if form(option) == wanted}
        if named and wanted:
            return named
    return set()


def _bare(text: str) -> str:
    return re.sub(r"^(?:an?|the) (?=.)", "", text.strip(" \"'“”‘’.!"))


def _read(text: str, options: Sequence[str], letters: str) -> Reading:
    """Apply rules 2 and 4 to 8 to a text that is no option or letter as a whole."""
    if not any(map(str.isalnum, text)):
        return Reading("", EMPTY)
    stated = _last_statement(text, options, letters)
    if stated is not None:
        return Reading(stated, STATED if stated else UNREAD)
    leading = _leading(text, options, letters)
    if leading is not None:
        return Reading(leading, LEADS if leading else UNREAD)
    lines = text.split("\n")
    alone = {match[1] for line in (lines[0], lines[-1]) if (match := _LETTER_ALONE.fullmatch(line))}
    if alone:
        return Reading(alone.pop(), LEADS) if len(alone) == 1 and alone <= set(letters) else Reading("", UNREAD)
    return Reading("", REFUSED if _REFUSAL.search(text) else UNREAD)


def _last_statement(text: str, options: Sequence[str], letters: str) -> str | None:
    """Return the letter of the last statement; empty if it is denied, doubted or names two; None if there is none."""
    place, letter = max(_statements(text, options, letters), default=(0, None))
    taken_back = _TAKES_BACK.search(text, place) if letter else None
    return "" if taken_back and taken_back["letter"] != letter else letter


def _statements(text: str, options: Sequence[str], letters: str) -> Iterator[tuple[int, str]]:
    """Yield (where it stands, its letter or an empty string) of each statement that names or denies something."""
    for match in _STATES.finditer(text):
        begin = match.end() + (text[match.end() : match.end() + 1] in (" ", "\n"))
        named, end = _target(text, begin, options, letters)
        if named:
            clear = (
                len(named) == 1
                and not _doubted(text, match.start(), end)
                and not _another(text, end, options, letters, named)
            )
            yield match.start(), named.pop() if clear and named <= set(letters) else ""
        elif _DENIES.match(text, match.end()):
            yield match.start(), ""
    for match in _IS_RIGHT.finditer(text):
        yield match.start(), match["letter"] if match["letter"] in letters else ""


def _target(text: str, start: int, options: Sequence[str], letters: str) -> tuple[set[str], int]:
    """Return the letters that a place in a text names, by letter or by an option's text, and where the name ends."""
    match = _LETTER_AT.match(text, start)
    named, end = ({match["letter"]}, match.end()) if match else (set(), start)
    found, longest = _text_at(text, _end(_OPENED, text, start), options)
    if not found:
        return named, end
    return found | (named & set(letters)), max(end, longest)


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start


def _text_at(text: str, start: int, options: Sequence[str]) -> tuple[set[str], int]:
    """Return the letters of the longest options whose text stands whole at a place, and where it ends."""
    ends: dict[int, set[str]] = {}
    for letter, option in zip(LETTERS.lower(), options, strict=False):
        for place in {start, _end(_ARTICLE, text, start)}:
            if option and text.startswith(option, place) and (ended := _ENDED.match(text, place + len(option))):
                ends.setdefault(ended.end(), set()).add(letter)
    return (ends[max(ends)], max(ends)) if ends else (set(), start)


def _another(text: str, end: int, options: Sequence[str], letters: str, named: set[str]) -> bool:
    """Return whether what follows a named option names another: "A or B", "A (dog)" where dog is B, "A. cat B. dog"."""
    joined = _OTHER.match(text, end)
    if joined and _target(text, joined.end(), options, letters)[0] - named:
        return True
    found, _ = _text_at(text, _end(_BESIDE, text, end), options)
    if found and not found & named:
        return True
    line = text.find("\n", end)
    listed = _ENUMERATED.search(text, end, line if line >= 0 else len(text))
    return bool(listed and listed[1] in letters and {chr(ord(listed[1]) - 1)} == named)


def _doubted(text: str, start: int, end: int) -> bool:
    """Return whether the sentence around a statement denies or doubts it."""
    least = max(0, start - _BACK)
    for pattern, breaks in ((_CONDITION, _BREAKS), (_DENIAL, _LESSER_BREAKS)):
        begin = max(text.rfind(mark, least, start) for mark in breaks)
        if pattern.search(text, max(begin, least), start):
            return True
    return bool(_DENIED_AFTER.match(text, end))


def _leading(text: str, options: Sequence[str], letters: str) -> str | None:
    """Return the letter that leads a text, with a mark; empty if another is named too; None if none leads."""
    match = _LEADS.match(text)
    if not match:
        return None
    letter = match["letter"]
    marked = {other for other in _ENUMERATED.findall(text, match.end("letter") + 1) if other in letters}
    texts, _ = _text_at(text, match.end(), options)
    if letter not in letters or marked - {letter} or (texts and letter not in texts):
        return ""
    own = letter in texts
    weak = match["mark"][-1] in ".–—-" and not match["open"] and not own
    if weak and (options or match["mark"] != ".") and not (match["mark"] == "." and _EXPLAINS.match(text, match.end())):
        return ""  # a name, or a word
    return letter
