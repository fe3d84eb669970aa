"""`prepare table`: columns by their names, 2 to 26 options, answers of every kind, images as people write them."""

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.rows import LETTERS, read_rows
from beit3_vqa.data.table_files import Table
from beit3_vqa.errors import InputError
from beit3_vqa.preparation import PrepareOptions, prepare
from beit3_vqa.preparation.columns import NAMES, find_columns
from beit3_vqa.preparation.find_images import ImageFinder
from beit3_vqa.preparation.questions import read_questions
from beit3_vqa.preparation.table import split_options


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def run(images, train, test=None, **values):
    """Prepare tables given as text."""
    out = images.parent / "out"
    values = {name: value for name, value in values.items() if value is not None}
    for split, text in (("train", train), ("test", test)):
        if text is not None:
            (images.parent / f"{split}.csv").write_text(text, encoding="utf-8")
            values[split] = str(images.parent / f"{split}.csv")
    summary = prepare("table", values, PrepareOptions(str(out), str(images), val_ratio=0.0))
    return summary.text(), {split: list(read_rows(out / f"vqacustom.{split}.jsonl")) for split in summary.rows}


# Columns


@pytest.mark.parametrize(("meaning", "name"), [(meaning, name) for meaning, names in NAMES.items() for name in names])
def test_every_known_name_of_a_column_is_recognised_in_any_spelling(meaning, name):
    rest = {"image": "img_path", "question": "Question", "answer": "answer"}
    rest.pop(meaning, None)
    for spelt in (name, name.upper(), f" {name.capitalize()} ", "_".join(name)):
        found = find_columns([spelt, *rest.values()], "t.csv:1")
        assert found.places[meaning] == 0


@pytest.mark.parametrize(
    "names",
    [
        "A B C",
        "a b c d e",
        "option_a option_b option_c",
        "Option A,Option B".replace(" ", "_").replace(",", " "),
        "choice1 choice2 choice3",
        "opt0 opt1",
        "보기1 보기2 보기3",
        "answer_a answer_b",
        " ".join(LETTERS),
    ],
)
def test_option_columns_are_found_in_order_wherever_they_stand(names):
    options = names.split()
    header = ["img", *reversed(options), "question", "answer"]
    found = find_columns(header, "t.csv:1")
    assert [header[place] for place in found.options] == options
    assert found.ignored == ()


def test_two_columns_for_one_meaning_are_an_error_that_asks():
    with pytest.raises(InputError, match=r"'ID' and 'qid' may both be the id: say which with --columns id=ID"):
        find_columns(["ID", "qid", "img", "question", "answer"], "t.csv:1")
    assert find_columns(["ID", "qid", "img", "question", "answer"], "t.csv:1", "id=qid").places["id"] == 1
    with pytest.raises(InputError, match="'A' and 'option_a' may both be option A"):
        find_columns(["img", "question", "answer", "A", "option_a", "B"], "t.csv:1")


def test_a_gap_in_the_option_columns_is_an_error():
    with pytest.raises(InputError, match="a column 'D' but none for option C"):
        find_columns(["img", "question", "answer", "A", "B", "D"], "t.csv:1")


def test_columns_are_said_by_hand():
    header = ["x1", "x2", "x3", "o1", "o2", "o3", "x4"]
    found = find_columns(header, "t.csv:1", "id=x1,image=x2,question=x3,options=o1:o3,answer=x4")
    assert found.places == {"id": 0, "image": 1, "question": 2, "answer": 6}
    assert found.options == (3, 4, 5)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("imag=x", r"the meanings are id, image.*Did you mean 'image'"),
        ("image", "must be MEANING=NAME"),
        ("image=no", "there is no such column"),
        ("image=img,image=img", "image is there twice"),
        ("image=img,question=img", "names one column for two meanings"),
        ("options=question:img", "must lead from the first option to the last"),
        ("answer=imgs", "Did you mean 'img'"),
    ],
)
def test_what_is_wrong_in_columns_is_said(said, message):
    with pytest.raises(InputError, match=message):
        find_columns(["img", "question"], "t.csv:1", said)


def test_missing_columns_are_named_with_the_flag_that_says_them():
    with pytest.raises(InputError, match=r"no column for image, answer was recognised; columns found: foo, question\..*"
                       r"--columns image=NAME,answer=NAME"):  # fmt: skip
        find_columns(["foo", "question"], "t.csv:1")


@given(st.lists(st.text(max_size=6), max_size=12))
@settings(max_examples=200, deadline=None)
def test_any_header_is_understood_or_an_error(header):
    try:
        found = find_columns(header, "t.csv:1")
    except InputError:
        return
    places = [*found.places.values(), *found.options]
    assert len(set(places)) == len(places)
    assert len(places) + len(found.ignored) == len(header)


# Rows


def test_a_table_of_any_width_becomes_rows_with_as_many_letters(images):
    text, splits = run(images, "ID,img,question,A,B,C,D,E,answer\n1,a,Q?,a,b,c,d,e,E\n2,b,Q?,a,b,,,,B\n")
    assert [row["choices"] for row in splits["train"]] == [["a", "b", "c", "d", "e"], ["a", "b"]]
    assert [row["answer"] for row in splits["train"]] == ["E", "B"]
    assert [row["image_path"] for row in splits["train"]] == ["a.png", "b.png"]
    assert AnswerTable.read(images.parent / "out" / "answer2label.txt").answers == ("A", "B", "C", "D", "E")
    assert "1 row with fewer than 5 options" in text
    assert "E 1" in text


def test_a_gap_between_options_and_a_single_option_are_errors(images):
    with pytest.raises(InputError, match=r"train.csv:2: option B is empty, but a later one isn't") as caught:
        run(images, "img,question,A,B,C,answer\na,Q?,x,,y,A\na,Q?,x,,,A\n")
    assert "train.csv:3: 1 option; a question has 2 to 26" in str(caught.value)


def test_open_ended_rows_make_a_table_of_answers(images):
    text, splits = run(images, "image_id,question,answer\na,Q?,red\nb,Q?,Red\na,R?,blue\n", max_answers=1)
    assert AnswerTable.read(images.parent / "out" / "answer2label.txt").answers == ("Red",)
    assert [row["id"] for row in splits["train"]] == ["1", "2", "3"]
    assert "no ID column; rows are numbered" in text
    assert "1 answer outside the label table" in text


def test_an_index_column_of_pandas_is_passed_over_with_a_line(images):
    text, splits = run(images, "Unnamed: 0,id,img,question,answer\n0,x,a,Q?,red\n")
    assert "columns ignored: Unnamed: 0" in text
    assert splits["train"][0]["id"] == "x"


def test_cells_that_do_not_fit_the_header_are_told(images):
    with pytest.raises(InputError, match=r"train.csv:2: 5 cells where the header has 4"):
        run(images, "id,img,question,answer\n1,a,What, really?,x\n")


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ('["a", 2, "c|d"]', ["a", "2", "c|d"]),
        ("a | b|c", ["a", "b", "c"]),
        (["x"], ["x"]),
        ("", []),
        ("[a|b]", ["[a", "b]"]),
    ],
)
def test_options_in_one_column_are_json_or_have_bars_between(cell, options):
    assert split_options(cell) == options


# Answers


def letters(images, answers, options="p,q,r", **values):
    rows = "".join(f"a,Q{n}?,{options},{answer}\n" for n, answer in enumerate(answers))
    text, splits = run(images, "img,question,A,B,C,answer\n" + rows, **values)
    return text, [row.get("answer") for row in splits["train"]]


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        (["A", "c", "q"], ["A", "C", "B"]),
        (["0", "2", "1"], ["A", "C", "B"]),
        (["3", "2", "1"], ["C", "B", "A"]),
        (["3.0", "2.0", "1.0"], ["C", "B", "A"]),  # as pandas writes a column with an empty cell
    ],
)
def test_answers_are_letters_texts_or_places(images, answers, found):
    assert letters(images, answers)[1] == found


def test_numbers_that_nothing_tells_apart_are_asked_about(images):
    with pytest.raises(InputError, match=r"nothing shows whether they begin at 0 or at 1. Say with --answer_from"):
        letters(images, ["1", "2"])
    assert letters(images, ["1", "2"], answer_from="1")[1] == ["A", "B"]
    assert letters(images, ["1", "2"], answer_from="0")[1] == ["B", "C"]


def test_a_column_that_counts_from_0_and_from_1_is_an_error(images):
    with pytest.raises(InputError, match=r"counted from 0 .*train.csv:2.* and from 1 .*train.csv:3"):
        letters(images, ["0", "3"])


def test_numbers_that_are_text_and_place_are_counted_and_asked_about(images):
    with pytest.raises(InputError, match=r"2 of 2 answers are numbers, each an option's text and an option's place"):
        letters(images, ["3", "2"], "2,3,1")
    assert letters(images, ["3", "2"], "2,3,1", answer_from="text")[1] == ["B", "A"]
    assert letters(images, ["3", "2"], "2,3,1", answer_from="1")[1] == ["C", "B"]
    with pytest.raises(InputError, match=r"train\.csv:2: 3, .*train\.csv:3: 2\)\. Say with"):
        letters(images, ["3", "2"], "2,3,1")
    with pytest.raises(InputError, match="2 of 2 answers are numbers"):
        letters(images, ["3.0", "2.0"], "2,3,1")
    with pytest.raises(InputError, match="2 of 2 answers are numbers"):
        letters(images, ["3", "2"], "2.0,3.00,1.5")
    assert letters(images, ["3", "2.00", "1.50"], "2.0,3.00,1.5", answer_from="text")[1] == ["B", "A", "C"]


def test_ids_that_differ_only_by_a_space_are_an_error(images):
    with pytest.raises(InputError, match=r"the ID ' 7' looks like '7' at .*train\.csv:2: rename one"):
        run(images, "id,img,question,A,B,answer\n7,a,Q?,p,q,A\n 7,b,Q?,p,q,B\n")


def test_a_row_with_too_few_cells_has_no_second_fault(images):
    with pytest.raises(InputError, match="cells") as caught:
        run(images, "img,question,A,B,answer\na,Q?,p,q,A\na,Q?,p\n")
    assert "has no options" not in str(caught.value)


def test_a_column_with_texts_in_it_has_no_places(images):
    """A column of places never holds a word, so its numbers are texts too."""
    assert letters(images, ["3", "dog"], "3,dog,1")[1] == ["A", "B"]


def test_a_place_beyond_the_options_is_an_error(images):
    with pytest.raises(InputError, match="answer 3 isn't the place of one of 3 options, counted from 0"):
        letters(images, ["0", "3"], answer_from="0")


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        (["?", "-", ""], "2 answers are ? or -: taken as unknown"),
        (["?", "", ""], "1 answer is ? or -: taken as unknown"),
        (["A", "A", "A"], "the answer is A in every row: taken as unknown"),
    ],
)
def test_what_a_test_file_has_for_unknown_answers_is_no_answer(images, answers, says):
    header = "img,question,A,B,answer\n"
    rows = "".join(f"a,Q{n}?,x,y,{answer}\n" for n, answer in enumerate(answers))
    text, splits = run(images, f"{header}a,Q?,x,y,B\n", header + rows)
    assert all("answer" not in row for row in splits["test"])
    assert says in text
    with pytest.raises(InputError, match="answer"):
        run(images, header + "a,Q?,x,y,?\n")


# Images


def test_images_are_found_however_their_names_are_written(images):
    (images / "train").mkdir()
    (images / "sub").mkdir()
    for name in ("train/7.jpg", "sub/사진.PNG", "Photo.JPG"):
        Image.new("RGB", (4, 4)).save(images / name)
    finder = ImageFinder(images)
    nfd = unicodedata.normalize("NFD", "사진")
    for written, found in (
        ("a.png", "a.png"),
        ("a", "a.png"),
        ("7", "train/7.jpg"),
        ("7.jpg", "train/7.jpg"),
        ("sub\\사진.PNG", "sub/사진.PNG"),
        (f"sub/{nfd}", "sub/사진.PNG"),
        ("photo.jpg", "Photo.JPG"),
        (str(images / "b.png"), "b.png"),
    ):
        assert finder.find(written, "train") == (found, "")
    assert finder.counts.total() == 7
    assert finder.find("7", "test") == ("7", "")  # a training image of that number is another one


@pytest.mark.parametrize(
    ("where", "root", "says"),
    [
        ("val.csv", "", "val/0.jpg"),
        ("my test 2.csv", "", "test/0.jpg"),
        ("validation.csv", "", "val/0.jpg"),
        ("interval.csv", "", "image '0' may be 'train/0.jpg' or 'val/0.jpg' or 'test/0.jpg': write the folder too"),
        ("the DataFrame", "", "image '0' may be 'train/0.jpg' or"),
        ("the DataFrame", "train", "0.jpg"),
    ],
)
def test_a_question_of_an_unknown_split_gets_no_image_of_another(images, where, root, says):
    for split in ("train", "val", "test"):
        (images / split).mkdir()
        Image.new("RGB", (4, 4)).save(images / split / "0.jpg")
    table = Table(("image", "question"), iter([("row 1", ("0", "Q?"))]))
    found = read_questions(table, where, images / root)
    assert says in (found.problems or [found.rows[0]["image_path"]])[0]


@pytest.mark.parametrize(
    ("folder", "answers", "says"),
    [
        ("train", False, "image '0' may be 'train/0.jpg': write"),
        ("test", False, "test/0.jpg"),
        ("train", True, "train/0.jpg"),
        ("test", True, "image '0' may be 'test/0.jpg': write"),
    ],
)
def test_an_image_in_another_splits_folder_alone_is_not_taken_either(images, folder, answers, says):
    (images / folder).mkdir()
    Image.new("RGB", (4, 4)).save(images / folder / "0.jpg")
    table = Table(("image", "question", "answer"), iter([("row 1", ("0", "Q?", "yes"))]))
    found = read_questions(table, "the DataFrame", images, answers=answers)
    assert says in (found.problems or [found.rows[0]["image_path"]])[0]
    assert not found.absent  # a second line about the same image would be one too many
    assert not any("unknown" in note for note in found.notes)


def test_two_candidates_for_an_image_are_an_error(images):
    Image.new("RGB", (4, 4)).save(images / "a.jpg")
    _, problem = ImageFinder(images).find("a", "train")
    assert "may be 'a.jpg' or 'a.png'" in problem


def test_an_image_outside_the_root_is_not_taken(images):
    with pytest.raises(InputError, match=r"train\.csv:2"):
        run(images, f"img,question,answer\n{images.parent}/x.png,Q?,red\n")


def test_a_frame_is_read_like_a_file(images):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {"img": ["a", "b"], "question": ["Q?", "R?"], "options": [["x", "y"], ["x", "y", "z"]], "answer": [1, 3]}
    )
    out = images.parent / "out"
    prepare("table", {"train": frame}, PrepareOptions(str(out), str(images), val_ratio=0.0))
    assert [row["answer"] for row in read_rows(out / "vqacustom.train.jsonl")] == ["A", "C"]


def test_the_rows_of_choices_csv_are_the_same_by_either_format(images):
    text = "ID,img_path,Question,A,B,C,D,answer\nT1,a.png,Q?,w,x,y,z,B\nT2,b.png,R?,w,x,y,z,z\n"
    _, splits = run(images, text)
    out = images.parent / "choices"
    prepare(
        "choices", {"train": str(images.parent / "train.csv")}, PrepareOptions(str(out), str(images), val_ratio=0.0)
    )
    ours = [json.dumps(row) for row in splits["train"]]
    assert ours == [json.dumps(row) for row in read_rows(out / "vqacustom.train.jsonl")]


def test_a_list_is_no_answer(images):
    rows = [{"img": "a", "question": "Q?", "answer": ["red", "red", "blue"]}]
    (images.parent / "t.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match="answer is a list"):
        prepare("table", {"train": str(images.parent / "t.json")}, PrepareOptions("out", str(images), val_ratio=0.0))
