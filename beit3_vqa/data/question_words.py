"""The question word of a question, English or Korean."""

import re
import unicodedata

# Visual7W's seven question words.
QUESTION_WORDS = ("what", "where", "when", "who", "why", "how", "which")

# Korean stems, to which particles are joined (무엇이, 어디에서). Stems of two syllables also count inside a word, since
# many writers leave spaces out. 언제나 (always), 어느새 (already), 누구나 (everybody), 누가복음 and 왜가리 (a heron)
# ask nothing.
_KOREAN = {
    "what": r"무엇|무얼|뭐|뭘|뭔|무슨",
    "where": r"어디",
    "when": r"언제(?!나)",
    "who": r"누구(?!나)|\b누가(?!복음)",
    "why": r"\b왜(?=\W|$|요|죠|냐|인|일|그|이)",
    "how": r"어떻게|얼마|몇",
    "which": r"어느(?!새|덧)|어떤",
}
_WORD = re.compile(
    "|".join(f"(?P<{word}>(?<![a-z]){word}(?![a-z])|{_KOREAN[word]})" for word in QUESTION_WORDS),
)


def question_word(question: str) -> str:
    """Return the first question word of a question, in English; `other` if it has none.

    Args:
        question: in English or Korean; 무엇 and 뭐 are what, 어떻게 and 몇 how, 어느 and 어떤 which.
    """
    # macOS writes Korean syllables as separate letters; NFC joins them.
    match = _WORD.search(unicodedata.normalize("NFC", question).lower())
    return match.lastgroup or "other" if match else "other"
