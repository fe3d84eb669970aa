import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.index import DatasetInfo
from beit3_vqa.data.rows import read_rows
from beit3_vqa.errors import InputError
from beit3_vqa.preparation import PrepareOptions, prepare
from beit3_vqa.preparation.choices_csv import Arguments, read
from beit3_vqa.runtime.files import is_blank
from tests.helpers.scpc import HEADER, copy_photographs, csv_rows, write_csv


@pytest.fixture
def images(tmp_path):
    return copy_photographs(tmp_path / "images")


def read_one(path, split="train"):
    """What the format alone makes of one CSV, images unseen."""
    values = {"train": "", "val": "", "test": ""} | {split: str(path)}
    return read(Arguments(**values), PrepareOptions("out", "images"))


def problems_of(path, split="train"):
    return "\n".join(read_one(path, split).problems)


def one_row(tmp_path, split="train", **cells):
    """A CSV of one good row with some cells changed, or columns added."""
    values = dict(zip(HEADER, csv_rows(1)[0], strict=True)) | cells
    return read_one(write_csv(tmp_path / "t.csv", [list(values.values())], list(values)), split)


def test_three_csvs_become_a_prepared_folder(tmp_path, images):
    train = write_csv(tmp_path / "train.csv", csv_rows(8))
    val = write_csv(tmp_path / "val.csv", csv_rows(4, "VAL"))
    test = write_csv(tmp_path / "test.csv", [row[:-1] for row in csv_rows(5, "TEST")], HEADER[:-1])
    out = tmp_path / "out"
    summary = prepare("choices", {"train": str(train), "val": str(val), "test": str(test)}, PrepareOptions(out, images))

    rows = read_rows(out / "vqacustom.train.jsonl")
    assert rows[2] == {
        "id": "TRAIN_002",
        "image_path": "rocket.jpg",
        "question": "What is this?",
        "choices": ["a cat", "a cup", "a rocket", "a woman"],
        "answer": "C",
    }
    assert [row["id"] for row in read_rows(out / "vqacustom.test.jsonl")] == [f"TEST_{i:03}" for i in range(5)]
    assert all("answer" not in row for row in read_rows(out / "vqacustom.test.jsonl"))
    assert AnswerTable.read(out / "answer2label.txt").answers == ("A", "B", "C", "D")
    info = DatasetInfo.read(out)
    assert info.image_root.resolve() == images
    assert info.splits == {"train": 8, "val": 4, "test": 5}
    assert sorted(path.name for path in out.iterdir()) == sorted(summary.files)
    assert summary.rows == info.splits
    assert summary.images == 4
    assert "train and test share 4 images" in summary.text()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
def test_korean_is_read_in_each_of_its_encodings(tmp_path, encoding):
    path = write_csv(
        tmp_path / "t.csv", [["가_1", "a.jpg", "이것은?", "고양이", "컵", "로켓", "똠", "컵"]], None, encoding
    )
    prepared = read_one(path)
    assert prepared.problems == []
    row = prepared.splits["train"][0]
    assert (row["id"], row["question"], row["choices"]) == ("가_1", "이것은?", ["고양이", "컵", "로켓", "똠"])
    assert row["answer"] == "B"
    assert any("CP949" in note for note in prepared.notes) == (encoding == "cp949")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        ("ID,img_path".encode("utf-16"), "no column for question, answer, options was recognised"),
        ("ID,img_path".encode("utf-16-le"), r"t\.csv:1: a NUL character"),
        (b"ID,img_path\n\xff\xfe\xfd,b", r"t\.csv:2: neither UTF-8 nor CP949"),
        ("ID\n고양이와 강아지".encode()[:-1], r"t\.csv:2: damaged UTF-8"),
        (b"ID\nab\0c", r"t\.csv:2: a NUL character"),
        (
            b"ID,img_path,Question,A,B,C\n1,2,3,4,5,6",
            r"t\.csv:1: no column for answer was recognised; columns found: ID, img_path, Q.*--columns answer=NAME",
        ),
        (b"ID,img_path,Question,A,B,C,D,answer\n", "a header but no rows"),
        (b"ID,img_path,Question,A,B,C,D,answer, Answer\n", "'answer' and 'Answer' may both be the answer"),
        (b"ID,img_path,Question,answer\n1,2,3,4", "no column for options .* --columns options=NAME"),
        (b'ID,img_path,Question,A,B,C,D,answer\n1,a,"b\n,,', r"t\.csv:2: a quote opens .* never closes"),
        (b'ID,img_path,Question,A,B,C,D,answer\n1,a,"b"c,a,b,c,d,A', r"t\.csv:2: .*isn't valid CSV"),
        (b"ID,img_path,Question,A,B,C,D,answer\n1,2,3,4,5,6,7,A,9", r"t\.csv:2: 9 cells where the header has 8"),
        (b"ID,img_path,Question,A,B,C,D,answer\n1,2,3", r"t\.csv:2: 3 cells where the header has 8"),
        (b"ID,img_path,Question,A,B,C,D,answer\n" + b"x" * 1_000_001, "more than 1,000,000 characters"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_file_that_is_no_csv_of_questions_is_refused(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        raise InputError(problems_of(path))
    assert csv.field_size_limit() == 131_072, "the limit belongs to the whole process"


def test_a_long_cell_is_read_whole(tmp_path):
    assert one_row(tmp_path, Question="x" * 900_000).problems == []


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_a_csv_with_another_separator_is_read_and_the_separator_named(tmp_path, separator, name):
    path = tmp_path / "t.csv"
    path.write_text("\n".join(separator.join(row) for row in (HEADER, csv_rows(1)[0])), encoding="utf-8")
    prepared = read_one(path)
    assert prepared.problems == []
    assert prepared.splits["train"][0]["choices"] == csv_rows(1)[0][3:7]
    assert f"{path}: cells are separated by {name}" in prepared.notes


def test_a_header_of_thousands_of_columns_is_cut_in_the_message(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(",".join(f"column{i}" for i in range(5000)) + "\n", encoding="utf-8")
    assert len(problems_of(path)) < 900


def test_column_names_ignore_case_and_space_and_further_columns(tmp_path):
    header = [" id", "\ufeffIMG_PATH ", "question", "a", "b", "c", "d", "ANSWER", "comment", ""]
    prepared = read_one(write_csv(tmp_path / "t.csv", [[*csv_rows(1)[0], "x", ""]], header))
    assert prepared.problems == []
    assert prepared.splits["train"][0]["answer"] == "A"
    assert any("columns ignored: comment, (no name)" in note for note in prepared.notes)


def test_problems_name_the_line_of_the_file(tmp_path):
    path = tmp_path / "t.csv"
    good = 'T{},a.jpg,"two\nlines",a,b,c,d,A\r\n'
    path.write_text(f"{','.join(HEADER)}\n{good.format(1)}\n{good.format(2)}T3,,?,a,b,c,d,A\n", "utf-8", newline="")
    prepared = read_one(path)
    assert prepared.origins["train"] == [f"{path}:2", f"{path}:5"]
    assert prepared.problems == [f"{path}:7: img_path is empty"]


def test_all_problems_of_a_row_are_in_one_line(tmp_path):
    prepared = one_row(tmp_path, ID=" ", A="", answer="E", weight="much")
    assert prepared.problems == [
        f"{tmp_path / 't.csv'}:2: ID is empty; option A is empty, but a later one isn't; weight 'much' isn't a number "
        "from 0 to 1e+12; answer 'E' is none of the options (A '', B 'a cup', C 'a rocket', D 'a woman')"
    ]


@pytest.mark.parametrize(
    ("options", "answer", "letter"),
    [
        (("cat", "dog", "cow", "hen"), "b", "B"),
        (("cat", "dog", "cow", "hen"), " D ", "D"),
        (("cat", "dog", "cow", "hen"), " COW ", "C"),
        (("cat", "cat", "cow", "hen"), "b", "B"),
        (("A", "B", "C", "D"), "c", "C"),
        (("1.5", "2", "20", "None"), "none", "D"),
        (("\u1100\u1161", "x", "y", "z"), "\uac00", "A"),
        (("cat", "dog\u200b", "cow", "hen"), "\ufeffdog", "B"),
        (("cat", "dog", "cow", "hen"), "\uff23", "C"),
        (("1", "2", "3", "\uff14"), "\uff12", "B"),
    ],
)
def test_letters_and_texts_of_options_are_understood_as_answers(tmp_path, options, answer, letter):
    prepared = one_row(tmp_path, **dict(zip("ABCD", options, strict=True)), answer=answer)
    assert prepared.problems == []
    assert prepared.splits["train"][0]["answer"] == letter


@pytest.mark.parametrize(
    ("options", "answer", "message"),
    [
        (("cat", "Cat ", "cow", "hen"), "cat", "ambiguous: the text of options A and B"),
        (("B", "dog", "cow", "hen"), "B", "ambiguous: the letter B, or the text of option A"),
        (("cat", "b", "b", "hen"), "b", "ambiguous: the letter B, or the text of option C"),
        (("cat", "dog", "cow", "hen"), "E", "none of the options"),
        (("cat", "dog", "cow", "hen"), "2", "--answer_from text, 0 or 1"),
        (("cat", "dog", "cow", "hen"), "A.", "none of the options"),
        (("cat", "dog", "cow", "hen"), "  ", "answer is empty"),
        (("cat", "dog", "cow", "hen"), "\u200b", "answer is empty"),
        (("cat", "\u200b", "cow", "hen"), "A", "B is empty"),
    ],
)
def test_an_ambiguous_or_unknown_answer_is_refused(tmp_path, options, answer, message):
    prepared = one_row(tmp_path, **dict(zip("ABCD", options, strict=True)), answer=answer)
    assert [message in problem for problem in prepared.problems] == [True]


def test_answers_given_as_text_are_counted(tmp_path):
    rows = csv_rows(3)
    rows[0][-1] = "a cat"
    notes = read_one(write_csv(tmp_path / "t.csv", rows)).notes
    assert notes[1:] == ["train: 1 answer given as the option's text"]


def test_numbers_that_are_options_throughout_are_those_options(tmp_path):
    """`table` would ask, since 2 may be the second option too; an SCPC file says the text."""
    options = dict(zip("ABCD", ("2", "3", "1", "4"), strict=True))
    assert one_row(tmp_path, **options, answer="3").splits["train"][0]["answer"] == "B"


def test_the_formats_own_columns_win_over_others_of_that_meaning(tmp_path):
    prepared = one_row(tmp_path, file="other.jpg", qid="7", label="D", q="?", choices="a|b")
    assert prepared.problems == []
    assert (prepared.splits["train"][0]["id"], prepared.splits["train"][0]["answer"]) == ("TRAIN_000", "A")
    assert any("columns ignored: file, qid, label, q, choices" in note for note in prepared.notes)


def test_answers_of_test_rows_are_kept(tmp_path):
    path = write_csv(tmp_path / "t.csv", [csv_rows(1)[0], [*csv_rows(2)[1][:-1], ""]])
    prepared = read_one(path, "test")
    assert prepared.problems == []
    assert [row.get("answer") for row in prepared.splits["test"]] == ["A", None]


@pytest.mark.parametrize(("cell", "weight"), [("2", 2.0), (" 0.5 ", 0.5), ("0", 0.0), ("1e-3", 0.001)])
def test_weights_are_read(tmp_path, cell, weight):
    assert one_row(tmp_path, weight=cell).splits["train"][0]["weight"] == weight


@pytest.mark.parametrize("cell", ["", "-1", "nan", "inf", "1_0", "x", "1,5"])
def test_an_invalid_weight_is_refused(tmp_path, cell):
    assert "isn't a number" in one_row(tmp_path, weight=cell).problems[0]


def test_an_id_may_be_in_two_splits_but_not_twice_in_one(tmp_path, images):
    twice = write_csv(tmp_path / "twice.csv", [*csv_rows(4), csv_rows(1)[0]])
    with pytest.raises(InputError, match=r"twice\.csv:6: the ID 'TRAIN_000' is at .*twice\.csv:2 too"):
        prepare("choices", {"train": str(twice)}, PrepareOptions(tmp_path / "out", images))
    once = write_csv(tmp_path / "once.csv", csv_rows(4))
    prepare("choices", {"train": str(once), "test": str(once)}, PrepareOptions(tmp_path / "out", images))


# Cells that CSV can hold: anything but NUL, which the reader refuses, and half surrogates, which UTF-8 can't hold.
cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20).filter(
    lambda text: not is_blank(text)
)


@settings(max_examples=60)
@given(st.lists(st.tuples(cells, st.tuples(cells, cells, cells, cells)), min_size=1, max_size=4))
def test_any_text_survives_writing_and_reading(tmp_path_factory, questions):
    rows = [[str(i), "a.jpg", text, *options] for i, (text, options) in enumerate(questions)]
    path = write_csv(tmp_path_factory.mktemp("csv") / "t.csv", rows, HEADER[:-1])
    prepared = read_one(path, "test")
    assert prepared.problems == []
    found = [(row["question"], tuple(row["choices"])) for row in prepared.splits["test"]]
    assert found == questions


@settings(max_examples=60)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, with_header):
    path = tmp_path_factory.mktemp("bytes") / "t.csv"
    path.write_bytes((",".join(HEADER) + "\n").encode() * with_header + content)
    prepared = read_one(path)
    assert prepared.problems or prepared.splits["train"]


def test_arbitrary_csv_text_is_read_as_the_csv_module_reads_it(tmp_path):
    text = ",".join(HEADER) + '\r1,a.jpg,"a ""quoted"" one",=1+1,+2,-3,@4,A\r2,a.jpg, lead,"x\r\ny",b,c,d,D'
    path = tmp_path / "t.csv"
    path.write_text(text, "utf-8", newline="")
    rows = read_one(path).splits["train"]
    expected = list(csv.reader(io.StringIO(text, newline="")))[1:]
    assert [[row["question"], *row["choices"]] for row in rows] == [line[2:7] for line in expected]
