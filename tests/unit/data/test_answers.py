import json
import re
import unicodedata
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3_vqa.data import answers
from beit3_vqa.data.answers import AnswerTable, answer_key, normalize_word, soft_score
from beit3_vqa.errors import InputError
from beit3_vqa.runtime.files import one_form

GOLDEN = json.loads(Path(__file__).parents[2].joinpath("golden/vqa_answer_processing.json").read_text(encoding="utf-8"))

WORDS = [*GOLDEN["contractions"], *GOLDEN["number_words"], *GOLDEN["articles"], "U.S.", "1,000", "3.5", "dog", "강아지"]
SEPARATORS = [" ", "", ", ", ",", ".", "..", ".5", " .", "\n", "\t", "-", " - ", "/", "'"]
ANSWER_TEXT = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(WORDS + SEPARATORS + GOLDEN["punctuation"]), max_size=12).map("".join),
)


def literal_normalize(text: str) -> str:
    """The rules of the golden file's notes, step by step, from its own tables and patterns."""
    result = text
    for mark in GOLDEN["punctuation"]:
        gone = mark + " " in text or " " + mark in text or re.search(GOLDEN["comma_pattern"], text)
        result = result.replace(mark, "" if gone else " ")
    result = re.sub(GOLDEN["period_pattern"], "", result, count=32)
    words = [GOLDEN["number_words"].get(word, word) for word in result.lower().split()]
    words = [word for word in words if word not in GOLDEN["articles"]]
    return " ".join(GOLDEN["contractions"].get(word, word) for word in words).replace(",", "")


def test_normalize_word_gives_all_golden_outputs():
    got = {vector["text"]: normalize_word(vector["text"]) for vector in GOLDEN["vectors"]}
    assert got == {vector["text"]: vector["normalized"] for vector in GOLDEN["vectors"]}
    assert len(GOLDEN["vectors"]) == 395


def test_contractions_number_words_articles_and_marks_are_the_golden_ones():
    assert GOLDEN["contractions"] == answers.CONTRACTIONS
    assert GOLDEN["number_words"] == answers.NUMBER_WORDS
    assert sorted(answers.ARTICLES) == sorted(GOLDEN["articles"])
    assert sorted(answers.PUNCTUATION) == sorted(GOLDEN["punctuation"])


@settings(deadline=None)
@given(ANSWER_TEXT)
def test_normalize_word_follows_the_notes(text):
    assert normalize_word(text) == literal_normalize(text)


@settings(deadline=None)
@given(ANSWER_TEXT.filter(lambda text: text.count(".") <= 32))
def test_normalize_word_is_idempotent(text):
    once = normalize_word(text)
    assert normalize_word(once) == once


def test_normalize_word_removes_32_periods_as_the_official_script_does():
    assert normalize_word("x." * 40) == "x" * 33 + ".x" * 7 + "."
    assert normalize_word("x.5" * 40) == "x.5" * 40


@pytest.mark.parametrize(
    ("text", "key"), [("A", "a"), (" The ", "the"), ("Two dogs", "2 dogs"), ("?", "?"), ("", ""), (" \n", "")]
)
def test_answer_key_is_empty_only_for_blank_text(text, key):
    assert answer_key(text) == key


NFC, NFD = "\uac15\uc544\uc9c0", "\u1100\u1161\u11bc\u110b\u1161\u110c\u1175"
ALIKE = [
    (NFC, NFD),
    ("café", "cafe\u0301"),
    ("12", "\uff11\uff12"),
    ("tv", "\uff34\uff36"),
    ("1,000", "\uff11\uff0c\uff10\uff10\uff10"),
    ("カメラ", "\uff76\uff92\uff97"),
    ("ガ", "\uff76\uff9e"),
    ("two dogs", "two\u00a0dogs"),
    ("두 개", "두\u3000개"),
    (NFC, f"\ufeff{NFC}"),
    ("yes", "y\ufeffes"),
    *((NFC, f"{NFC[0]}{mark}{NFC[1:]}") for mark in "\u200b\u200c\u200d\u200e\u2060\ufeff\u00ad\u3164\ufe0f"),
    ("A", "\uff21"),
    ("yes", "yes\u200b "),
]
DIFFERENT = [
    ("10²", "102"),
    ("½", "12"),
    ("™", "tm"),
    ("①", "1"),
    ("ㄱㅏ", "가"),
    ("café", "cafe"),
    ("ﬁ", "fi"),
    ("🏴", ""),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_answers_that_look_alike_are_the_same(one, other):
    assert one != other
    assert answer_key(one) == answer_key(other)
    assert AnswerTable([one, "cow"]).label(other) == 0
    assert AnswerTable(["cow", other]).label(one) == 1


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_answers_that_look_different_stay_so(one, other):
    assert answer_key(one) != answer_key(other)


@given(st.text(st.characters(codec="ascii", exclude_characters="-+<>,/")))
def test_ascii_text_is_its_own_form(text):
    assert one_form(text) == text
    assert answer_key(text) == (normalize_word(text) or text.strip().lower())


MEANT = [
    ("-5", "5"), ("-0.5", "0.5"), ("A+", "plus"), ("A-", "A"), ("1,2", "1.2"), ("- 5", "5"), ("10+", "10"),
    ("\u22125", "5"), ("1,5", "15"), ("2,3", "23"), ("B+", "B-"), ("B+", "B"),
    ("O-", "O"), ("AB-", "AB+"), ("C++", "C"), ("C++", "C+"), ("<5", ">5"), ("<5", "5"), ("1/2", "12"),
    ("1/2", "1-2"), ("x < -5", "x < 5"),
]  # fmt: skip
SAID_OTHERWISE = [
    ("-5", "minus 5"), ("-5", "- 5"), ("1 / 2", "1/2"), ("B +", "B+"), ("10 +", "10+"), ("5%-10%", "5% - 10%"),
    ("1,50,000", "150000"), ("12/25/2012", "12-25-2012"), ("tv- black", "tv black"), ("no-", "no"),
    ("1,500 km", "1500 km"),
    ("1,500", "1500"), ("15,000,000", "15000000"), ("<5", "less than 5"),
    ("C++", "c plus plus"), ("t-shirt", "t shirt"), ("2-3", "2 3"), ("well-known", "well known"),
    ("red, blue", "red blue"),
    ("and/or", "and or"), ("1+1", "1 1"), ("(-5)", "-5"), ("\u22125", "-5"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), MEANT)
def test_marks_that_make_another_answer_are_kept(one, other):
    """The official rules drop them: for VQAv2's own answers `normalize_word` stays as it is."""
    assert answer_key(one) != answer_key(other)
    assert AnswerTable([one, other]).alike == []
    assert AnswerTable([one, "cow"]).label(other) is None


@pytest.mark.parametrize(("one", "other"), SAID_OTHERWISE)
def test_other_marks_make_no_difference(one, other):
    assert answer_key(one) == answer_key(other)


@given(st.text(max_size=20), st.sampled_from(["NFC", "NFD"]))
def test_every_unicode_form_has_the_same_key(text, form):
    assert one_form(unicodedata.normalize(form, text)) == one_form(text)
    assert one_form(one_form(text)) == one_form(text)
    assert answer_key(unicodedata.normalize(form, text)) == answer_key(text)


def test_a_table_that_holds_both_forms_keeps_a_label_for_each():
    """As upstream's scripts and 0.1.0 wrote them; a model that was trained on it has an output for each."""
    table = AnswerTable([NFC, "yes", NFD])
    assert [table.label(text) for text in (NFC, NFD, f"{NFD}\u200b")] == [0, 2, 0]


def test_soft_score_grows_by_0_3_and_is_1_from_four_annotators_on():
    assert [soft_score(count) for count in range(11)] == [0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1]


def test_labels_are_found_by_key():
    table = AnswerTable(["A", "B", "two", "don't know", "강아지"])
    assert len(table) == 5
    assert table.answers == ("A", "B", "two", "don't know", "강아지")
    assert [table.label(answer) for answer in table.answers] == [0, 1, 2, 3, 4]
    assert [table.label(text) for text in ("a", " A ", "b.", "2", "Two!", "dont know", "the 강아지")] == [
        *(0, 0, 1, 2, 2, 3, 4)
    ]
    assert [table.label(text) for text in ("", "the", "C", "?")] == [None] * 4


def test_an_empty_entry_stands_for_what_normalises_to_nothing():
    table = AnswerTable(["yes", "", "?"])
    assert [table.label(text) for text in ("A", "the", "", "?", "yes", "no")] == [1, 1, 1, 2, 0, None]


@pytest.mark.parametrize(
    ("given_answers", "message"),
    [
        ([], "no answers"),
        (["a", "b", "a"], "'a' has two labels, 0 and 2"),
        (["\ud83d"], "half a surrogate pair"),
    ],
)
def test_tables_without_answers_or_with_doubled_ones_are_refused(given_answers, message):
    with pytest.raises(InputError, match=message):
        AnswerTable(given_answers)


def test_answers_that_differ_in_spelling_alone_keep_their_labels(tmp_path, capsys):
    """A fork's table isn't normalised."""
    path = tmp_path / "answer2label.txt"
    answers = ["Two", "yes", "2.", "two", "Yes", "a", "A"]
    path.write_text("".join(json.dumps({"answer": text, "label": i}) + "\n" for i, text in enumerate(answers)))
    table = AnswerTable.read(path)
    assert f"{path}: 4 answers equal others but for spelling ('Two' and '2.'" in capsys.readouterr().out
    assert table.answers == tuple(answers)
    assert [table.label(text) for text in answers] == list(range(7))
    assert [table.label(text) for text in ("TWO", "2", "YES", " A ", "no")] == [0, 0, 1, 5, None]


def test_a_table_is_written_as_one_json_object_a_line(tmp_path):
    path = tmp_path / "answer2label.txt"
    AnswerTable(["yes", "강아지", 'say "hi"']).write(path)
    assert path.read_bytes().decode("utf-8").split("\n") == [
        '{"answer": "yes", "label": 0}',
        '{"answer": "강아지", "label": 1}',
        r'{"answer": "say \"hi\"", "label": 2}',
        "",
    ]
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(ANSWER_TEXT, min_size=1, unique_by=answer_key))
def test_a_written_table_is_read_back_the_same(tmp_path_factory, texts):
    path = tmp_path_factory.getbasetemp() / "round_trip.txt"
    AnswerTable(texts).write(path)
    table = AnswerTable.read(path)
    assert table.answers == tuple(texts)
    assert [table.label(text) for text in texts] == list(range(len(texts)))


def test_files_with_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "answer2label.txt"
    path.write_bytes(b'\xef\xbb\xbf{"answer": "\\uac1c", "label": 0}\r\n{"label": 1, "answer": "no"}\r\n\r\n')
    assert AnswerTable.read(path).answers == ("개", "no")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: not JSON"),
        (b"yes\n", "line 1: not JSON: 'yes'"),
        (b'{"answer": "yes", "label": 0}\n\n{"answer": "no", "label": 2}\n', "line 2: not JSON"),
        (b'{"answer": "yes", "label": 0}\n{"answer": "no", "label": 2}\n', "line 2: the label isn't 1: "),
        (b'{"answer": "yes", "label": 0}\n{"answer": "no", "label": true}\n', "line 2: the label isn't 1: "),
        (b'{"answer": "yes", "label": "0"}\n', "line 1: the label isn't 0: "),
        (b'{"answer": 3, "label": 0}\n', "line 1: no text"),
        (b'{"answer": "yes"}\n', "line 1: no text"),
        (b'["yes", 0]\n', "line 1: no text"),
        (b"[" * 100_000, "line 1: not JSON"),
        (b'{"answer": "1", "label": 0}\n{"answer": "1", "label": 1}\n', "'1' has two labels, 0 and 1"),
        (b'{"answer": "\\ud83d", "label": 0}\n', "surrogate"),
        ('{"answer": "강아지", "label": 0}\n'.encode("cp949"), "not UTF-8"),
    ],
)
def test_a_bad_line_of_a_table_is_named(tmp_path, content, message):
    path = tmp_path / "answer2label.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        AnswerTable.read(path)
    assert str(path) in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(start=st.integers(0, 99), length=st.integers(0, 20), patch=st.one_of(st.binary(max_size=8), ANSWER_TEXT))
def test_a_damaged_file_gives_an_input_error_or_a_table(tmp_path_factory, start, length, patch):
    path = tmp_path_factory.getbasetemp() / "damaged.txt"
    AnswerTable(["yes", "A", "강아지"]).write(path)
    content = path.read_bytes()
    patch = patch if isinstance(patch, bytes) else patch.encode("utf-8", "surrogatepass")
    path.write_bytes(content[:start] + patch + content[start + length :])
    with suppress(InputError):
        AnswerTable.read(path)


def test_missing_files_and_folders_are_input_errors(tmp_path):
    AnswerTable(["yes"]).write(tmp_path / "answer2label.txt")
    with pytest.raises(InputError, match=r"Did you mean 'answer2label.txt'\?"):
        AnswerTable.read(tmp_path / "answers2label.txt")
    with pytest.raises(InputError, match="there is no answer table"):
        AnswerTable.read(tmp_path / "nowhere" / "answer2label.txt")
    with pytest.raises(InputError, match="can't be read"):
        AnswerTable.read(tmp_path)
    for bad in (tmp_path / "nowhere" / "x.txt", tmp_path / "answer2label.txt" / "x.txt"):
        with pytest.raises(InputError, match="can't be written"):
            AnswerTable(["yes"]).write(bad)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "answer2label.txt"
    AnswerTable(["yes", "no"]).write(path)

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(InputError, match="No space left"):
        AnswerTable(["other"]).write(path)
    assert AnswerTable.read(path).answers == ("yes", "no")
    assert list(tmp_path.iterdir()) == [path]
