"""The encoding of files that a user names: Korean is read back exactly, nothing else turns into Korean."""

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3_vqa.cli.main import main
from beit3_vqa.data.predictions import write_predictions
from beit3_vqa.data.tables import check_encoding, decode
from beit3_vqa.data.types import Prediction
from beit3_vqa.errors import InputError
from beit3_vqa.preparation import FORMATS, find_format, prepare
from beit3_vqa.preparation.writer import PrepareOptions
from tests.helpers.scpc import HEADER, copy_photographs, csv_rows, write_csv

# Questions and answers as Korean data sets have them, with loanwords, names of food and slang.
KOREAN_TEXT = """
    이것은 무엇입니까? 사진에 있는 남자는 무엇을 들고 있나요? 고양이가 앉아 있는 곳은 어디인가요? 몇 명의 사람이
    보입니까? 빨간색 파란색 초록색 노란색 검은색 흰색 고양이 강아지 컵 로켓 커피 우주 비행사 자전거 축구공 떡볶이 돈가스
    똠얌꿍 펲시 뙇 왼쪽 오른쪽 위 아래 네 아니요 없음 두 개 그렇다 아니다 햏 버스 정류장에서 기다리는 사람들 중 우산을
    쓴 사람은 몇 명인가?
"""
KOREAN = KOREAN_TEXT.split()
QUESTIONS = KOREAN[:17]
MARKS = ["TV", "A.", "3개", "“예”", "’", "·", "㎡", "①", "…", "大韓民國", "ㅋㅋㅋ", "CCTV를", "１２", "cat"]
# Western words whose letters beyond ASCII stand before a letter, before a space, before one another, in capitals.
WESTERN_TEXT = """
    man’s don’t “yes” ‘no’ colour—red 5–10 Ärger ÄRGER Übung MÜLLER straße naïve café déjà vu ÉCOLE GARÇON créée
    SMÖRGÅSBORD HÄÄT PÄÄ yöllä mañana ESPAÑA ¿Qué? ¡Hola! AÇÃO AÇÕES coração não OPÇÕES «à» 20° ½ £5 €7 naïf™ Ørsted
"""
WESTERN = WESTERN_TEXT.split()
FOREIGN = {
    "shift_jis": "これは何ですか,赤い車,猫が座っている,カメラ",
    "euc_jp": "これは何ですか,赤い車,猫が座っている,カメラ",
    "big5": "這是什麼顏色的車,紅色,一隻貓,蘋果",
    "gbk": "这是什么颜色的车,红色,一只猫,苹果",
    "gb2312": "苹果,狗,猫,不是",
    "cp1251": "Какого цвета машина,КРАСНАЯ,кот,да",
    "koi8_r": "Какого цвета машина,КРАСНАЯ,кот,да",
    "cp1253": "Τι χρώμα είναι,ΚΟΚΚΙΝΟ,γάτα,ναι",
    "cp1254": "Bu nedir,ağaç,IŞIK,köpek",
    "cp1256": "ما لون السيارة,أحمر,قطة,نعم",
    "tis_620": "รถสีอะไร,แดง,แมว,ใช่",
    "cp1250": "Jakou barvu má,ČERVENÁ,kočka,žlutý",
}


def read(content, tmp_path="t.csv", encoding=""):
    return decode(content, tmp_path, encoding)


@given(st.lists(st.sampled_from(KOREAN)), st.lists(st.sampled_from(MARKS), max_size=3), st.randoms())
def test_korean_text_in_cp949_is_read_back_exactly_or_refused(words, marks, rng):
    mixed = [*words, *marks]
    rng.shuffle(mixed)
    text = "ID,question\n1," + " ".join(mixed) + "\n"
    with suppress(InputError):  # too few words to tell; the next test says which files must be read
        assert read(text.encode("cp949"))[0] == text


# Different words: a file of one rare word twenty times is refused.
@given(st.lists(st.sampled_from(KOREAN), max_size=20, unique=True))
def test_questions_in_cp949_are_read_whatever_their_options(options):
    text = "\n".join([" ".join(QUESTIONS), *options])
    assert read(text.encode("cp949")) == (text, "CP949")


@settings(max_examples=300)
@given(st.lists(st.one_of(st.sampled_from(WESTERN), st.text("abEM,.!? 1", max_size=5)), min_size=1), st.booleans())
def test_western_text_in_cp1252_never_turns_into_korean(words, apart):
    text = (" " if apart else ",").join(words)
    content = text.encode("cp1252")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        with pytest.raises(InputError, match=r"t\.csv:1: neither UTF-8 nor CP949 that reads as Korean"):
            read(content)
        assert read(content, encoding="cp1252") == (text, "CP1252")


@pytest.mark.parametrize("encoding", FOREIGN)
def test_other_encodings_are_refused_with_line_and_sample(encoding):
    text = f"ID,question\n1,{FOREIGN[encoding]}\n"
    content = text.encode(encoding)
    with pytest.raises(InputError, match=r"t\.csv:2: neither UTF-8 nor CP949.*--encoding NAME") as caught:
        read(content)
    if encoding in ("shift_jis", "big5"):  # offered, and shown as it would be read
        assert f"{encoding} '" in str(caught.value)
        assert FOREIGN[encoding][:5] in str(caught.value)
    assert read(content, encoding=encoding)[0] == text


def test_a_few_korean_words_in_an_english_file_are_enough_for_cp949(tmp_path):
    text = "ID,question\n" + "1,What is this?\n" * 1000 + "2,이것은 무엇입니까?\n"
    assert read(text.encode("cp949")) == (text, "CP949")
    with pytest.raises(InputError, match="that reads as Korean"):  # a line of a Western file has got in
        read(text.encode("cp949") + "3,the man’s hat\n".encode("cp1252"))


@pytest.mark.parametrize(
    ("content", "encoding", "found"),
    [
        ("가a".encode(), "", "UTF-8"),
        ("가a".encode("utf-8-sig"), "", "UTF-8"),
        ("가a".encode("utf-8-sig"), "utf-8", "UTF-8"),
        ("가a".encode("utf-16"), "", "UTF-16"),
        (b"\xfe\xff" + "가a".encode("utf-16-be"), "", "UTF-16"),
        ("가a".encode("utf-16-le"), "utf-16-le", "UTF-16-LE"),
        ("가a".encode("johab"), "johab", "JOHAB"),
    ],
)
def test_utf_8_utf_16_and_named_encodings_are_read(content, encoding, found):
    assert read(content, encoding=encoding) == ("가a", found)


@pytest.mark.parametrize("encoding", ["utf-8", "cp949", "ascii", "undefined"])
def test_a_file_that_is_not_in_the_named_encoding_is_refused(encoding):
    with pytest.raises(InputError, match=rf"t\.csv:\d: isn't {encoding.upper()}"):
        read(b"ab\n\xff\xfe\xfd", encoding=encoding)


@pytest.mark.parametrize("name", ["klingon", "base64", "rot13", "a\0b", "zlib_codec"])
def test_unknown_encodings_are_refused(name):
    with pytest.raises(InputError, match="there is no such encoding"):
        check_encoding(name)
    with pytest.raises(InputError, match="there is no such encoding"):
        PrepareOptions("out", encoding=name)


FILES = {
    "a_okvqa": {"annotations": ""},
    "choices": {"train": "x"},
    "dacon_json": {"train": "x", "min_count": 1},
    "visual7w": {"json": "x"},
    "coco": {"json": "x"},
    "flickr30k": {"json": "x", "image_folder": ""},
    "nocaps": {"val": "x"},
    "nlvr2": {"annotations": ""},
    "table": {"train": "x"},
    "vqa_choices": {"annotations": ""},
    "vqav2": {"annotations": "", "min_count": 1, "val_images": 1},
}


def test_these_tests_cover_every_format_of_prepare():
    assert set(FILES) == set(FORMATS) - {"easy_vqa", "imagenet"}  # which read no text


@pytest.mark.parametrize("name", FILES)
def test_every_format_reads_in_the_encoding_that_is_named(tmp_path, name):
    content = '{"man’s": 1}'.encode("cp1252")
    for file in ("x", "train.json", "v2_OpenEnded_mscoco_train2014_questions.json", "aokvqa_v1p0_train.json"):
        (tmp_path / file).write_bytes(content)
    values = {key: str(tmp_path / value) if isinstance(value, str) else value for key, value in FILES[name].items()}
    module = find_format(name)
    for encoding in ("", "cp1252"):
        said = "\n".join(
            module.read(module.Arguments(**values), PrepareOptions("out", "images", encoding=encoding)).problems
        )
        assert ("neither UTF-8 nor CP949" in said) == (not encoding)
        assert said


def test_json_in_cp949_is_read_and_noted(tmp_path):
    images = copy_photographs(tmp_path / "images")
    rows = [
        {"image_id": "coffee", "question": "이것은 무엇입니까?", "answer": "커피", "question_id": i} for i in (1, 2)
    ]
    (tmp_path / "train.json").write_bytes(json.dumps(rows, ensure_ascii=False).encode("cp949"))
    summary = prepare(
        "dacon_json", {"train": str(tmp_path / "train.json")}, PrepareOptions(tmp_path / "out", images, val_ratio=0)
    )
    assert "read as CP949" in summary.text()
    assert "커피" in (tmp_path / "out" / "answer2label.txt").read_text(encoding="utf-8")


def test_prepare_takes_the_encoding_on_the_command_line(tmp_path, capsys):
    images = copy_photographs(tmp_path / "images")
    rows = [[*row[:2], "the man’s hat?", *row[3:]] for row in csv_rows(4)]
    train = write_csv(tmp_path / "train.csv", rows, HEADER, "cp1252")
    command = ["prepare", "choices", "--train", str(train), "--image_root", str(images), "--val_ratio", "0"]
    command += ["--data_path", str(tmp_path / "data")]
    assert main(command) == 2
    assert "cp1252 '" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    assert main([*command, "--encoding", "cp1252"]) == 0
    index = (tmp_path / "data" / "vqacustom.train.jsonl").read_text(encoding="utf-8")
    assert index.count("man’s") == 4


def test_score_reads_answers_in_another_encoding(tmp_path, capsys):
    predictions = [Prediction("1", "?", "café", {"café": 0.7}), Prediction("2", "?", "커피", {"커피": 0.7})]
    path = write_predictions(predictions[:1], tmp_path / "predictions.json")
    answers = tmp_path / "answers.csv"
    answers.write_bytes("ID,answer\n1,café\n".encode("cp1252"))
    command = ["score", str(path), "--answers", str(answers)]
    assert main(command) == 2
    assert "--encoding" in capsys.readouterr().err
    assert main([*command, "--encoding", "cp1252"]) == 0
    assert main(["score", str(path), "--encoding", "cp1252"]) == 2
    assert main([*command, "--encoding", "klingon"]) == 2
    path = write_predictions(predictions[1:], tmp_path / "predictions.json")
    answers.write_bytes("ID,answer,주석\n2,커피,마시는 것\n".encode("cp949"))
    assert main(command) == 0
