"""What `prepare` says about questions before anybody trains on them, with exact numbers."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from beit3_vqa.cli.main import main
from beit3_vqa.data.index import DatasetInfo
from beit3_vqa.data.tokenizer import train_tokenizer
from beit3_vqa.preparation import PrepareOptions, check, prepare
from beit3_vqa.preparation.check import chi_squared_p, find, get_script, tell
from beit3_vqa.preparation.copies import Copies
from tests.helpers.scpc import ANIMALS, HEADER, copy_photographs, csv_rows, write_csv

ALONE = Copies({}, {}, decoded=True, complete=True)


def row(number, image="a.jpg", question="What?", choices=("cat", "dog", "cup", "hat"), answer="A", **more):
    known = {} if answer is None else {"answer": answer}
    options = {} if choices is None else {"choices": list(choices)}
    return {"id": f"q{number}", "image_path": image, "question": question, **options, **known, **more}


def lines(found, cut_here=False):
    return "\n".join(tell(found, cut_here))


def test_images_that_train_has_too_are_counted_by_how_near_they_are():
    train = [row(0, "a.jpg"), row(1, "b.jpg"), row(2, "./c.jpg"), row(3, "d.jpg")]
    test = [row(0, "a.jpg"), row(1, r".\a.jpg"), row(2, "b2.jpg"), row(3, "c2.jpg"), row(4, "new.jpg")]
    copies = Copies(
        exact={"b.jpg": "b.jpg", "b2.jpg": "b.jpg"},
        near={"b.jpg": "b.jpg", "b2.jpg": "b.jpg", "c.jpg": "c.jpg", "c2.jpg": "c.jpg"},
        decoded=True,
        complete=True,
    )
    found = find({"train": train, "val": [row(5, "c.jpg")], "test": test}, copies, None)
    assert found["in_train"]["test"] == {
        "images": 4,
        "same": 1,
        "exact": 1,
        "near": 1,
        "rows": 4,
        "listed": [
            {"image": "a.jpg", "train": "a.jpg", "kind": "same"},
            {"image": "b2.jpg", "train": "b.jpg", "kind": "exact"},
            {"image": "c2.jpg", "train": "c.jpg", "kind": "near"},
        ],
    }
    assert found["copies"]["exact"] == {
        "groups": 1,
        "images": 2,
        "listed": [[{"image": "b.jpg", "rows": {"train": 1}}, {"image": "b2.jpg", "rows": {"test": 1}}]],
    }
    near = [{"image": "c.jpg", "rows": {"train": 1, "val": 1}}, {"image": "c2.jpg", "rows": {"test": 1}}]
    assert found["copies"]["near"] == {"groups": 1, "images": 2, "listed": [near]}
    told = lines(found, cut_here=True).splitlines()
    assert (
        told[0]
        == "VAL IMAGES IN TRAIN: 1 of 1 (same file 1), such as c.jpg; --group_near_copies keeps them on one side"
    )
    assert told[1] == (
        "TEST IMAGES IN TRAIN: 3 of 4 (same file 1, same bytes 1, near copy 1), such as "
        "a.jpg, b2.jpg (same bytes: b.jpg), c2.jpg (near copy: c.jpg)"
    )
    assert "copies: 2 images in 1 group of the same bytes, 2 in 1 group of near copies" in told
    assert "--group_near_copies" not in lines(found, cut_here=False)


def test_a_line_names_three_examples_however_many_there_are():
    rows = [row(number, f"{number:02}.jpg") for number in range(20)]
    found = find({"train": rows, "test": rows}, ALONE, None)
    assert tell(found, False)[0] == ("TEST IMAGES IN TRAIN: 20 of 20 (same file 20), such as 00.jpg, 01.jpg, 02.jpg")


def test_questions_that_are_asked_again_are_told_apart_by_their_answers():
    other_order = ("dog", "cat", "cup", "hat")
    rows = {
        "train": [
            row(0, question="What is it?"),
            row(1, question=" what is it?", choices=other_order, answer="B"),  # the cat again
            row(2, question="Where?"),
            row(3, "copy.jpg", question="Where?", answer="B"),
            row(4, "other.jpg", question="Where?", answer="C"),
            row(5, question="When?", answer=None),
        ],
        "test": [row(6, question="When?", answer=None), row(7, question="Who?")],
    }
    same = Copies({"a.jpg": "a.jpg", "copy.jpg": "a.jpg"}, {}, decoded=True, complete=True)
    found = find(rows, same, None)["repeated_questions"]
    assert {kind: (of["questions"], of["rows"]) for kind, of in found.items()} == {
        "same_answer": (1, 2),
        "other_answers": (1, 2),
        "unknown_answer": (1, 2),
    }
    assert found["other_answers"]["listed"] == [
        {
            "question": "Where?",
            "rows": [
                {"split": "train", "id": "q2", "image": "a.jpg", "answer": "cat"},
                {"split": "train", "id": "q3", "image": "copy.jpg", "answer": "dog"},
            ],
        }
    ]
    assert "1 question asked again about the same image, with another answer: q2 (cat) and q3 (dog)" in lines(
        find(rows, same, None)
    )
    assert find(rows, ALONE, None)["repeated_questions"]["other_answers"]["questions"] == 0


def test_open_ended_answers_are_compared_by_their_text():
    rows = [
        row(0, choices=None, answer="Red."),
        row(1, choices=None, answer="a red"),
        row(2, choices=None, answer="blue"),
    ]
    found = find({"train": rows[:2]}, ALONE, None)
    assert found["repeated_questions"]["same_answer"]["questions"] == 1
    assert (found["positions"], found["lengths"], found["equal_options"]["rows"]) == ({}, {}, 0)
    assert find({"train": rows}, ALONE, None)["repeated_questions"]["other_answers"]["rows"] == 3


def test_options_that_only_case_marks_or_an_article_tell_apart_are_equal():
    rows = [
        row(0, choices=("A cat.", "dog", "the Cat", "ＣＡＴ"), answer="C"),
        row(1, choices=("5", "-5", "1.0", "10"), answer="A"),
        row(2, choices=("a", "the", "A.", "hat"), answer="D"),
        row(3, choices=("!", "?", "!!", "."), answer=None),
    ]
    found = find({"train": rows}, ALONE, None)["equal_options"]
    assert (found["rows"], found["right"]) == (2, 1)
    assert [(entry["id"], entry["letters"]) for entry in found["listed"]] == [
        ("q0", ["A", "C", "D"]),
        ("q2", ["A", "C"]),
    ]
    assert (
        "2 rows with options that are equal but for case, marks or an article, the right one among them in 1"
        in lines(find({"train": rows}, ALONE, None))
    )


@given(
    st.lists(
        st.lists(
            st.sampled_from(["a", "an", "the", "A", "cat", "Cat", " ", "  ", ".", "!", "'", "é", "\0"]), max_size=5
        ).map("".join),
        min_size=2,
        max_size=5,
    )
)
def test_rows_whose_options_all_differ_are_told_by_a_quick_look(choices):
    keys = {check._plain(choice) for choice in choices}
    assert not check._all_differ(choices) or len(keys) == len(choices)
    found = find({"train": [row(0, choices=choices, answer=None)]}, ALONE, None)
    assert found["equal_options"]["rows"] == (len(keys) < len(choices))


def test_the_quick_look_spares_ordinary_rows_the_slow_one():
    assert check._all_differ(["a cat", "A dog.", "the cup", "an 'oak'"])
    assert not check._all_differ(["a cat", "Cat."])


def answers(letters, widths):
    return [
        row(number, choices=[f"{letter}{number}" for letter in "pqrst"[:width]], answer=answer)
        for number, (answer, width) in enumerate(zip(letters, widths, strict=True))
    ]


def test_shares_of_positions_count_each_row_by_its_options():
    found = find({"train": answers("AABC", [2, 4, 4, 2][:3] + [4]), "test": [row(0, answer=None)]}, ALONE, None)
    assert found["positions"] == {
        "train": {
            "rows": 4,
            "counts": {"A": 2, "B": 1, "C": 1, "D": 0},
            "expected": {"A": 1.25, "B": 1.25, "C": 0.75, "D": 0.75},
            "p": pytest.approx(0.721, abs=0.01),
            "dominant": None,
        }
    }


@pytest.mark.parametrize(
    ("letters", "dominant"),
    [
        ("A" * 80 + "BCD" * 40, "A"),
        ("A" * 28 + "BCD" * 24, None),  # by chance
        ("B" * 11 + "ACD" * 3, None),  # too few rows
        ("A" * 27_000 + "BCD" * 24_333, None),  # too little, however sure
    ],
)
def test_a_position_stands_out_if_neither_chance_nor_a_trifle_explains_it(letters, dominant):
    found = find({"train": answers(letters, [4] * len(letters))}, ALONE, None)
    assert found["positions"]["train"]["dominant"] == dominant
    assert ("one position is right too often" in lines(found)) == (dominant is not None)


def test_the_line_about_positions_names_share_and_chance():
    found = find({"train": answers("A" * 80 + "BCD" * 40, [4] * 200)}, ALONE, None)
    assert "one position is right too often: A in 40% of train (chance 25%)" in lines(found)


@pytest.mark.parametrize(
    ("square", "degrees", "p"), [(3.841, 1, 0.05), (7.815, 3, 0.05), (16.266, 3, 0.001), (52.620, 25, 0.001), (0, 3, 1)]
)
def test_chi_squared_agrees_with_its_tables(square, degrees, p):
    assert chi_squared_p(square, degrees) == pytest.approx(p, rel=0.15)


def test_the_longest_option_is_counted_with_ties_shared():
    rows = [
        row(0, choices=("a long one", "b", "c", "d"), answer="A"),
        row(1, choices=("aa", "bb", "c", "d"), answer="A"),  # one of two that are equally long
        row(2, choices=("aaa", "b"), answer="B"),
        row(3, choices=("aaa", "bbb", "ccc", "ddd"), answer="D"),
    ]
    found = find({"train": rows}, ALONE, None)["lengths"]["train"]
    assert found["rows"] == 4
    assert found["longest_is_right"] == (1 + 0.5 + 0 + 0.25) / 4
    assert found["chance"] == (0.25 + 0.25 + 0.5 + 0.25) / 4
    assert found["characters_of_right"] == (10 + 2 + 1 + 3) / 4
    assert found["characters_of_others"] == pytest.approx((1 + 4 / 3 + 3 + 3) / 4)
    assert not found["tells"]


@pytest.mark.parametrize("place", [0, 3])
def test_a_right_option_that_its_length_gives_away_is_told(place):
    choices = ["x", "y", "z", "v"]
    choices[1] = "the longest of all"
    rows = [
        row(number, f"{number}.jpg", choices=choices, answer="ABCD"[1 if number % 2 else place]) for number in range(60)
    ]
    found = find({"val": rows}, ALONE, None)
    assert found["lengths"]["val"]["longest_is_right"] == 0.5
    assert "the longest option is right in 50% of val (chance 25%): that can be guessed without the image" in lines(
        found
    )


@pytest.mark.parametrize(
    ("word", "script"),
    [
        ("고양이", "Hangul"), ("GPS가", "Hangul"), ("\u1100\u1161", "Hangul"), ("ねこ", "Kana"), ("食べる", "Kana"),
        ("猫", "Han"), ("кот", "Cyrillic"), ("cat", "Latin"), ("Überfluß", "Latin"), ("42", "other"), ("قطة", "other"),
        ("...", "other"), ("x²", "Latin"),
    ],
)  # fmt: skip
def test_a_word_has_the_script_of_its_letters(word, script):
    assert get_script(word) == script


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    texts = ["What is on the table?", "a cat", "a dog", "Which of these is a cup of coffee?"]
    return train_tokenizer(texts, 90, tmp_path_factory.mktemp("spm") / "english.spm")


def test_words_that_the_tokenizer_does_not_know_are_counted_by_script(english):
    rows = [
        row(number, f"{number}.jpg", question="What is this 고양이 잔?", choices=("a cat", "кот", "a dog", "猫"))
        for number in range(10)
    ]
    found = find({"train": rows}, ALONE, english)["texts"]
    scripts = found["scripts"]
    assert found["tokenizer"] == "english.spm"
    assert found["every_row"]
    assert {name: (of["words"], of["unknown_words"]) for name, of in scripts.items()} == {
        "Hangul": (20, 20),
        "Han": (10, 10),
        "Cyrillic": (10, 10),
        "Latin": (70, 0),
    }
    tokens = sum(len(english.encode(word)) for word in ("What", "is", "this", "a", "cat", "a", "dog"))
    assert scripts["Latin"]["tokens"] == 10 * tokens
    assert [name for name, of in scripts.items() if of["warns"]] == ["Hangul", "Han", "Cyrillic"]
    told = lines(find({"train": rows}, ALONE, english))
    assert "english.spm has no tokens (<unk>) for 100% of 20 Hangul words, 100% of 10 Han words, 100% of 10 " in told
    assert "translate the texts to English" in told
    assert "--train_tokenizer 8000" in told
    assert find({"train": rows}, ALONE, None)["texts"]["scripts"]["Hangul"] == {"words": 20, "warns": False}


def test_words_that_the_tokenizer_cuts_into_letters_are_told(tmp_path):
    syllables = train_tokenizer(["고 양 이 잔 책 상 위 컵"], 30, tmp_path / "syllables.spm")
    rows = [row(number, f"{number}.jpg", question="고양이 책상위", choices=("컵", "잔")) for number in range(10)]
    found = find({"train": rows}, ALONE, syllables)
    assert found["texts"]["scripts"]["Hangul"]["unknown_words"] == 0
    assert found["texts"]["scripts"]["Hangul"]["single_characters"] == 60
    assert "syllables.spm makes single letters of " in lines(found)


def test_a_few_foreign_words_are_no_reason_to_warn(english):
    rows = [row(0, question="What is 고양이?")]
    assert "english.spm" not in lines(find({"train": rows}, ALONE, english))


def test_of_very_many_rows_some_are_looked_up(english, monkeypatch):
    monkeypatch.setattr(check, "_MAX_TEXTS", 10)
    rows = [row(number, f"{number}.jpg", question="cat", choices=("a", "b")) for number in range(25)]
    found = find({"train": rows}, ALONE, english)["texts"]
    assert not found["every_row"]
    assert found["scripts"]["Latin"]["words"] == 9 * 3  # every third row


# As `prepare` says it


@pytest.fixture
def data(tmp_path):
    images = copy_photographs(tmp_path / "images")
    Image.open(images / "rocket.jpg").save(images / "again.jpg", quality=50)
    shutil.copy(images / "coffee.png", images / "copy.png")
    test = [row[:-1] for row in csv_rows(4, "TEST")]
    test[0][1], test[1][1] = "again.jpg", "copy.png"
    return {
        "train": str(write_csv(tmp_path / "train.csv", csv_rows(8))),
        "test": str(write_csv(tmp_path / "test.csv", test, HEADER[:-1])),
    }


def test_prepare_prints_writes_and_records_what_it_found(tmp_path, data):
    out = tmp_path / "out"
    summary = prepare("choices", data, PrepareOptions(out, tmp_path / "images", val_ratio=0))
    loud = (
        "TEST IMAGES IN TRAIN: 4 of 4 (same file 2, same bytes 1, near copy 1), such as "
        "again.jpg (near copy: rocket.jpg), astronaut.png, copy.png (same bytes: coffee.png)"
    )
    assert loud in summary.text()
    found = json.loads((out / "check.json").read_text(encoding="utf-8"))
    assert found["findings"] == list(summary.findings)
    assert found["findings"][0] == loud
    assert found["version"] == 1
    assert found["rows"] == {"train": 8, "test": 4}
    assert found["images"] == {"train": 4, "test": 4}
    assert [[entry["image"] for entry in group] for group in found["copies"]["near"]["listed"]] == [
        ["again.jpg", "rocket.jpg"]
    ]
    assert found["repeated_questions"]["same_answer"]["questions"] == 4
    written = DatasetInfo.read(out).written
    assert {"check.html", "check.json"} <= set(written)
    assert summary.files[:2] == ("check.html", "check.json")
    assert all(DatasetInfo.read(out).wrote(out / name) for name in ("check.html", "check.json"))
    again = prepare("choices", data, PrepareOptions(out, tmp_path / "images", val_ratio=0))
    assert again == summary
    assert not (out / "previous-1").exists()  # the same data, the same page, byte for byte


def test_a_check_tells_the_findings_and_writes_nothing(tmp_path, data, capsys):
    flags = ["--train", data["train"], "--test", data["test"], "--image_root", str(tmp_path / "images")]
    assert (
        main(["prepare", "choices", "--check", "--val_ratio", "0", *flags, "--data_path", str(tmp_path / "out")]) == 0
    )
    assert "TEST IMAGES IN TRAIN: 4 of 4" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_images_that_were_not_decoded_are_compared_by_their_bytes(tmp_path, data):
    summary = prepare("choices", data, PrepareOptions(tmp_path / "out", tmp_path / "images", verify_images=False))
    found = json.loads((tmp_path / "out" / "check.json").read_text(encoding="utf-8"))
    assert not found["copies"]["near_copies_looked_for"]
    assert found["copies"]["exact"]["images"] == 2
    assert "near copies not looked for" in summary.text()
    assert "only exact copies were looked for" in (tmp_path / "out" / "check.html").read_text(encoding="utf-8")


def test_an_image_that_cannot_be_read_has_no_picture_and_no_copy(tmp_path, data):
    (tmp_path / "images" / "again.jpg").write_bytes(b"no image")
    (tmp_path / "images" / "rocket.jpg").write_bytes(b"no image")
    options = PrepareOptions(tmp_path / "out", tmp_path / "images", skip_bad_images=10, val_ratio=0)
    assert "near copy" not in prepare("choices", data, options).text()
    assert "no picture" in (tmp_path / "out" / "check.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("format_name", ["table", "easy_vqa", "dacon_json"])
def test_other_formats_of_questions_are_looked_at_too(tmp_path, data, format_name):
    options = PrepareOptions(tmp_path / "out", tmp_path / "images")
    values = data
    if format_name == "easy_vqa":
        values, options = {"train_images": 5}, PrepareOptions(tmp_path / "out")
    if format_name == "dacon_json":
        rows = [
            {"image_id": name, "question": "What?", "answer": "yes", "question_id": name}
            for name in ("rocket", "again", "coffee")
        ]
        Path(tmp_path / "train.json").write_text(json.dumps(rows), encoding="utf-8")
        values = {"train": str(tmp_path / "train.json")}
    prepare(format_name, values, options)
    found = json.loads((tmp_path / "out" / "check.json").read_text(encoding="utf-8"))
    assert sum(found["rows"].values()) > 0
    assert (tmp_path / "out" / "check.html").stat().st_size > 5000


def test_rows_of_the_same_four_photographs_are_fine(tmp_path):
    images = copy_photographs(tmp_path / "images")
    rows = [
        [f"{n}", image, f"What is {n}?", *ANIMALS, "ABCD"[n % 4]]
        for n, image in enumerate(sorted(p.name for p in images.iterdir()))
    ]
    summary = prepare(
        "choices", {"train": str(write_csv(tmp_path / "train.csv", rows))}, PrepareOptions(tmp_path / "out", images)
    )
    assert summary.findings == ()
    assert "nothing stands out" in summary.text()
    assert "Nothing stands out." in (tmp_path / "out" / "check.html").read_text(encoding="utf-8")
