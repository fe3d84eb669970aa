"""Question words in two languages."""

import unicodedata

import pytest

from beit3_vqa.data.question_words import question_word


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("이것은 무엇입니까?", "what"),
        ("이게 뭐야", "what"),
        ("이게뭐예요?", "what"),
        ("무슨 색인가요?", "what"),
        ("고양이는 어디에 있나요?", "where"),
        ("사진은 언제 찍혔나요?", "when"),
        ("누구의 모자인가요?", "who"),
        ("누가 서 있나요?", "who"),
        ("왜 웃고 있나요?", "why"),
        ("왜?", "why"),
        ("어떻게 이동하나요?", "how"),
        ("사람이 몇 명 있나요?", "how"),
        ("몇시인가요?", "how"),
        ("어느 계절인가요?", "which"),
        ("다음 중 어떤 것이 보이나요?", "which"),
        ("왜가리는 어디에 있나요?", "where"),  # a heron
        ("언제나 있는 것은 무엇인가요?", "what"),  # always
        ("어느새 누가 왔나요?", "who"),  # already
        ("누구나 아는 이것은?", "other"),  # everybody
        ("고양이가 있나요?", "other"),
        ("이 what은 무엇", "what"),
        ("What color, and 왜?", "what"),
        ("Whatever is shown", "other"),
        ("somewhere", "other"),
    ],
)
def test_first_question_word_in_korean_or_english_is_found(question, word):
    assert question_word(question) == word
    assert question_word(unicodedata.normalize("NFD", question)) == word
