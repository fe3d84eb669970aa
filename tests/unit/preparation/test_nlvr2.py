"""NLVR2's own files -> index."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.data.rows import read_rows
from beit3_vqa.errors import InputError
from beit3_vqa.preparation import prepare
from beit3_vqa.preparation.nlvr2 import _parse
from beit3_vqa.preparation.writer import PrepareOptions
from beit3_vqa.tasks.nlvr2 import NLVR2
from tests.helpers.generated import write_nlvr2

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=6,
)
NAMES = ("identifier", "sentence", "label", "directory", "image_path", "image2_path", "text_segment", "fold", "weight")
GOOD = {"identifier": "dev-1-0-0", "sentence": "Both are red.", "label": "True", "image_path": "a", "image2_path": "b"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_nlvr2(tmp_path_factory.mktemp("nlvr2"), 12)


def run(source, out, annotations=None):
    options = PrepareOptions(data_path=str(out), image_root=str(source))
    return prepare("nlvr2", {"annotations": str(annotations or source)}, options)


def test_every_sentence_keeps_its_images_and_label(source, tmp_path):
    assert run(source, tmp_path / "data").rows == {"train": 12, "val": 4, "test": 5}
    for split, name in (("train", "train"), ("val", "dev"), ("test", "test1")):
        rows = read_rows(tmp_path / "data" / f"nlvr2.{split}.jsonl", NLVR2.spec.row_format)
        lines = [json.loads(line) for line in (source / f"{name}.json").read_text().splitlines()]
        assert [row["text_segment"] for row in rows] == [line["sentence"] for line in lines]
        assert [row["label"] for row in rows] == [int(line["label"] == "True") for line in lines]
        for row, line in zip(rows, lines, strict=True):
            assert row["image_path"].endswith(f"{line['identifier'][:-2]}-img0.png")
            assert (source / row["image_path"]).is_file()
            assert (source / row["image2_path"]).is_file()


def test_only_a_line_feed_ends_a_line(source, tmp_path):
    sentence = "Both\u2028are\x85red."
    for name in ("train", "dev", "test1"):
        lines = [json.loads(line) for line in (source / f"{name}.json").read_text().splitlines()]
        texts = (json.dumps({**line, "sentence": sentence}, ensure_ascii=False) for line in lines)
        (tmp_path / f"{name}.json").write_bytes("\r\n".join([*texts, "", ""]).encode())
    assert run(source, tmp_path / "data", tmp_path).rows == {"train": 12, "val": 4, "test": 5}
    rows = read_rows(tmp_path / "data" / "nlvr2.val.jsonl", NLVR2.spec.row_format)
    assert {row["text_segment"] for row in rows} == {sentence}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": "Maybe"}, "dev.json:2: label must be"),
        ({"sentence": " "}, "dev.json:2: sentence"),
        ({"identifier": 7}, "dev.json:2: identifier"),
        ({"identifier": "dev-999-0-0"}, "dev-999-0-img1.png"),
        ({"identifier": "dev-0-0-0"}, "the ID 'dev-0-0-0' is at"),
        ({"identifier": "../../x-0"}, "identifier must be"),
    ],
)
def test_a_bad_sentence_is_named_and_nothing_is_written(source, tmp_path, change, says):
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    for name in ("train", "dev", "test1"):
        lines = [json.loads(line) for line in (source / f"{name}.json").read_text().splitlines()]
        if name == "dev":
            lines[1] |= change
        (annotations / f"{name}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=says):
        run(source, tmp_path / "data", annotations)
    assert not (tmp_path / "data").exists()


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3) | JSON)
def test_any_json_is_a_row_or_a_problem(changes):
    entry = {**GOOD, **changes} if isinstance(changes, dict) else changes
    row, problem = _parse(json.dumps(entry), "dev")
    assert problem or NLVR2.spec.row_format.problem(row) == ""
    if isinstance(entry, dict):
        said = NLVR2.spec.row_format.problem(entry)
        assert said or (entry["label"] in (0, 1) and entry["identifier"] not in ("", None))


def test_an_index_row_without_second_image_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"image_path": "a.png", "text_segment": [7], "label": 2, "identifier": "d-0"}\n')
    with pytest.raises(InputError, match=r"x\.jsonl:1: has no image2_path"):
        read_rows(tmp_path / "x.jsonl", NLVR2.spec.row_format)
