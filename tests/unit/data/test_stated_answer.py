"""What a text answers: vectors for every rule, and texts made to be misread."""

import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.data.rows import LETTERS
from beit3_vqa.data.stated_answer import MAX_TEXT, WAYS, read_stated

ANIMALS = ("a cat", "a dog", "the red car", "none of these")
NUMBERS = ("2", "3", "1", "4")
KOREAN = ("고양이", "강아지", "빨간 차", "알 수 없음")

# text, the option that it answers ("": none), the way
VECTORS = [
    ("A", "A", "letter"),
    ("b", "B", "letter"),
    ("(c)", "C", "letter"),
    ("b)", "B", "letter"),
    (" B. ", "B", "letter"),
    ("[D]", "D", "letter"),
    ("'B'", "B", "letter"),
    ("**B**", "B", "letter"),
    ("__b__", "B", "letter"),
    ("`C`", "C", "letter"),
    ("$B$", "B", "letter"),
    (r"\(B\)", "B", "letter"),
    (r"\text{B}", "B", "letter"),
    ("Option B.", "B", "letter"),
    ("Answer: B", "B", "letter"),
    ("B번", "B", "letter"),
    ("B입니다.", "B", "letter"),
    ("Ｂ", "B", "letter"),
    ("（ｂ）", "B", "letter"),
    ("<think>The answer is A.</think>\n\nB", "B", "letter"),
    ("E", "", "not read"),
    ("I", "", "not read"),
    ("a cat", "A", "option's text"),
    ("A Cat.", "A", "option's text"),
    ("cat", "A", "option's text"),
    ('"Red car"', "C", "option's text"),
    ("ｒｅｄ　ｃａｒ", "C", "option's text"),
    ("None of these", "D", "option's text"),
    ("The answer is B.", "B", "stated"),
    ("The answer is (b)", "B", "stated"),
    ("The correct answer is option C.", "C", "stated"),
    ("Final Answer: **(D) none of these**", "D", "stated"),
    ("The correct option is: C", "C", "stated"),
    ("Answer:\nB", "B", "stated"),
    ("answer = 'B'", "B", "stated"),
    ('{"answer": "B", "why": "x"}', "B", "stated"),
    ("The answer is a cat.", "A", "stated"),
    ("The answer is A because it is grey.", "A", "stated"),
    ("The answer is B: a dog", "B", "stated"),
    ("The answer is B. Option A is incorrect.", "B", "stated"),
    (r"\boxed{B}", "B", "stated"),
    (r"So $\boxed{\text{B}}$.", "B", "stated"),
    ("<answer>C</answer>", "C", "stated"),
    ("정답은 B입니다", "B", "stated"),
    ("정답은 B입니다. 왜냐하면 개가 있기 때문입니다.", "B", "stated"),
    ("답: (C)", "C", "stated"),
    ("B가 정답입니다.", "B", "stated"),
    ("B is correct.", "B", "stated"),
    ("Option B is the correct answer because it barks.", "B", "stated"),
    ("I would choose B.", "B", "stated"),
    ("It's B", "B", "stated"),
    ("It is a cat.", "A", "stated"),
    ("The man wears no hat and is not old, so the answer is B.", "B", "stated"),
    ("It's a cat, so B.", "B", "stated"),
    ("It is brown, therefore C", "C", "stated"),
    ("It is a cat, so A cat it is.", "A", "stated"),
    ("It looks odd, so A, B and C are wrong", "", "not read"),
    ("I cannot see it well, but the answer is B.", "B", "stated"),
    # the last statement decides
    ("At first the answer is A. But no: the answer is C.", "C", "stated"),
    ("A. a cat\nB. a dog\nC. the red car\nThe answer is B.", "B", "stated"),
    ("The answer is A. No wait, the answer is not A.", "", "not read"),
    ("The answer is B, not A.", "B", "stated"),
    ("Answer: B, no doubt.", "B", "stated"),
    ("The answer is B, not a good one.", "", "not read"),
    ("The answer is B, not C but A.", "", "not read"),
    ("Answer: B, no doubt wrong.", "", "not read"),
    ("B. a dog", "B", "letter first"),
    ("B: a dog", "B", "letter first"),
    ("(B) whatever this may be", "B", "letter first"),
    ("B) dog", "B", "letter first"),
    ("B - a dog", "B", "letter first"),
    ("B. Because it barks.", "B", "letter first"),
    ("B\n\nThe animal barks.", "B", "letter first"),
    ("The animal barks.\nB", "B", "letter first"),
    # nothing is guessed
    ("A cat is on the mat", "", "not read"),
    ("a frame", "", "not read"),
    ("a-frame", "", "not read"),
    ("A.M. is the time", "", "not read"),
    ("C. Lewis wrote it", "", "not read"),
    ("B. a cat", "", "not read"),
    ("B - a wolf", "", "not read"),
    ("A and B", "", "not read"),
    ("B or C", "", "not read"),
    ("A. a cat B. a dog", "", "not read"),
    ("Answer: A) a cat B) a dog C) the red car", "", "not read"),
    ("A\n\nB", "", "not read"),
    ("The answer is A or B.", "", "not read"),
    ("The answer is b/c of the dog", "", "not read"),
    ("The answer is either A or B", "", "not read"),
    ("The answer is B (a cat)", "", "not read"),
    ("The answer is not B", "", "not read"),
    ("The answer isn't B", "", "not read"),
    ("The least likely answer is D.", "", "not read"),
    ("There are at least two dogs, the answer is D.", "D", "stated"),
    ("Answer: A (wrong). Correct: B", "", "not read"),
    ("Answer: B\nWait, actually C.", "", "not read"),
    ("Answer: B\nWait, actually a cat is there, so B.", "B", "stated"),
    ("Someone would say the answer is A. I disagree: C is correct.", "", "not read"),
    ("The answer could be B", "", "not read"),
    ("I don't think the answer is B", "", "not read"),
    ("The wrong answer is B.", "", "not read"),
    ("If the answer is B, then good.", "", "not read"),
    ("Is the answer B?", "", "not read"),
    ("The answer is B?", "", "not read"),
    ("The answer is F.", "", "not read"),
    ("The answer is C#", "", "not read"),
    ("The answer is a wolf", "", "not read"),
    ("Neither A nor B is correct.", "", "not read"),
    ("B is not correct.", "", "not read"),
    ("vitamin C", "", "not read"),
    ("정답은 B가 아닙니다", "", "not read"),
    ("정답은 B일 수도 있습니다", "", "not read"),
    ("정답은 A 또는 B입니다", "", "not read"),
    ("I cannot answer", "", "refused"),
    ("I'm sorry, but I can't help with that.", "", "refused"),
    ("As an AI, I see no picture.", "", "refused"),
    ("알 수 없습니다", "", "refused"),
    ("", "", "empty"),
    ("  \n ", "", "empty"),
    ("...", "", "empty"),
    ("<think>B</think>", "", "empty"),
]


@pytest.mark.parametrize(("text", "answer", "way"), VECTORS, ids=[repr(text) for text, _, _ in VECTORS])
def test_a_text_answers_what_the_rules_say(text, answer, way):
    found = read_stated(text, ANIMALS)
    assert (found.answer, found.way) == (answer, way)


@pytest.mark.parametrize(
    ("text", "choices", "answer"),
    [
        ("3", NUMBERS, "B"),
        ("The answer is 3.", NUMBERS, "B"),
        ("5", NUMBERS, ""),
        ("B", ("b", "a", "c", "d"), ""),  # the letter B, or the text of A?
        ("b", ("a", "b"), "B"),
        ("x", ("v", "w", "x"), "C"),
        ("red", ("red", "red", "blue"), ""),
        ("red", ("red", "the red"), "A"),
        ("The red.", ("red", "a red"), ""),
        ("The answer is red and blue", ("red", "red and blue"), "B"),
        ("The answer is red or blue", ("red", "blue"), ""),
        ("The answer is red, blue", ("red", "blue"), ""),
        ("2*3", ("2*3", "23"), "A"),
        ("-", ("-", "+"), "A"),
        ("I cannot answer", ("yes", "I cannot answer"), "B"),
        ("I", tuple("qrstuvwxyz"), "I"),
        ("I think so", tuple("qrstuvwxyz"), ""),
        ("정답은 고양이입니다", KOREAN, "A"),
        ("고양이", KOREAN, "A"),
        ("알 수 없음", KOREAN, "D"),
        ("\u1100\u1169\u110b\u1163\u11bc\u110b\u1175", KOREAN, "A"),  # as macOS spells it
        ("E", ("p", "q", "r", "s", "t"), "E"),
    ],
)
def test_the_options_of_the_row_decide(text, choices, answer):
    assert read_stated(text, choices).answer == answer


@pytest.mark.parametrize(
    ("text", "answer"), [("B", "B"), ("B. a cat", "B"), ("b - a cat", ""), ("a cat", ""), ("The answer is Z.", "Z")]
)
def test_without_the_options_texts_letters_alone_are_read(text, answer):
    assert read_stated(text).answer == answer


def test_letters_beyond_the_number_of_options_are_not_read():
    texts = ["a cat", "a dog", "a hen"]
    assert [read_stated("C", texts[:count]).answer for count in (2, 3)] == ["", "C"]


PIECES = [text for text, _, _ in VECTORS] + [
    "answer",
    " is ",
    "not",
    "or",
    "정답은 ",
    "아닙니다",
    ".",
    ",",
    ")",
    "\n",
    "{",
]
texts = st.one_of(
    st.text(max_size=60),
    st.lists(st.one_of(st.sampled_from(PIECES), st.sampled_from("ABCDEI .:()*\n")), max_size=8).map("".join),
)
options = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=26).map(tuple)


@given(texts, st.one_of(st.just(ANIMALS), options))
def test_whatever_the_text_the_result_is_an_option_or_none(text, choices):
    found = read_stated(text, choices)
    assert found.answer in {"", *LETTERS[: len(choices)]}
    assert found.way in WAYS
    assert bool(found.answer) == (found.way not in ("refused", "empty", "not read"))


WIDE = str.maketrans({chr(code): chr(code + 0xFEE0) for code in range(0x21, 0x7F)} | {" ": "\u3000"})


@given(st.lists(st.sampled_from([*PIECES, *"ABCD .:()"]), max_size=6).map("".join))
def test_case_blanks_and_widths_change_nothing(text):
    text = text.replace("\\", "")  # a full-width backslash begins no LaTeX command for a person either
    found = read_stated(text, ANIMALS)
    for other in (text.upper(), text.lower(), text.swapcase(), f"  {text}\t", text.replace(" ", " \t\u00a0")):
        assert read_stated(other, ANIMALS) == found
    assert read_stated(text.translate(WIDE), ANIMALS) == found


@given(st.sampled_from("ABCD"), st.lists(st.sampled_from(string.ascii_lowercase + " ,"), max_size=30).map("".join))
def test_a_letter_inside_a_sentence_is_no_answer(letter, tail):
    assert read_stated(f"we see {letter} {tail}", ("x1", "x2", "x3", "x4")).answer == ""


@pytest.mark.parametrize(
    "text",
    [
        "x" * (MAX_TEXT + 1) + " the answer is B",
        "the answer is " * 7000,
        "(" * 90_000 + "B x",
        "answer: a or b " * 6000,
        "it is " * 16_000,
        "so " * 30_000,
        "a. " * 30_000,
        " " * 90_000 + "?",
        "\\boxed{" * 14_000,
        "정답은 " * 20_000,
        "\n".join("ab" * 20_000),
    ],
    ids=lambda text: text[:12],
)
def test_a_huge_text_takes_little_time(text):
    began = time.process_time()
    assert read_stated(text, ANIMALS * 6).answer == ""
    assert time.process_time() - began < 5
