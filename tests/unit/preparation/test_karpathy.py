"""coco, flickr30k and nocaps: rows, references, and what is wrong with a file."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beit3_vqa.cli.main import main
from beit3_vqa.errors import InputError
from beit3_vqa.preparation import prepare
from beit3_vqa.preparation.karpathy import read_karpathy
from beit3_vqa.preparation.writer import Prepared, PrepareOptions
from tests.helpers.captioned import write_captioned


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_captioned(tmp_path_factory.mktemp("karpathy") / "raw", train=3, val=2, test=2)


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def options(raw, out):
    return PrepareOptions(data_path=str(out), image_root=str(raw))


def test_coco_is_prepared_for_retrieval_and_captioning(raw, tmp_path):
    summary = prepare("coco", {"json": str(raw / "dataset_coco.json")}, options(raw, tmp_path))
    assert summary.rows == {"train": 6, "val": 4, "test": 4}
    images = json.loads((raw / "dataset_coco.json").read_text())["images"]
    for split in ("train", "val", "test"):
        own = [image for image in images if image["split"] == split]
        expected = [
            {
                "id": str(s["sentid"]),
                "image_path": f"train2014/{i['filename']}",
                "image_id": i["cocoid"],
                "text_segment": s["raw"],
            }
            for i in own
            for s in i["sentences"]
        ]
        assert rows_of(tmp_path / f"coco_retrieval.{split}.jsonl") == expected
        captioning = rows_of(tmp_path / f"coco_captioning.{split}.jsonl")
        if split == "train":
            assert captioning == expected
        else:
            assert [row["image_id"] for row in captioning] == [i["cocoid"] for i in own]
            assert not any("text_segment" in row for row in captioning)
            gold = json.loads((tmp_path / f"coco_karpathy_{split}_gt.json").read_text())
            pairs = [(i["cocoid"], s["raw"]) for i in own for s in i["sentences"]]
            assert [(a["image_id"], a["caption"]) for a in gold["annotations"]] == pairs
            assert [image["id"] for image in gold["images"]] == [i["cocoid"] for i in own]
            assert len({a["id"] for a in gold["annotations"]}) == len(pairs)


def test_files_of_a_split_that_is_gone_are_removed(raw, tmp_path):
    prepare("coco", {"json": str(raw / "dataset_coco.json")}, options(raw, tmp_path / "data"))
    images = json.loads((raw / "dataset_coco.json").read_text())["images"]
    fewer = tmp_path / "fewer.json"
    fewer.write_text(json.dumps({"images": [image for image in images if image["split"] != "test"]}))
    prepare("coco", {"json": str(fewer)}, options(raw, tmp_path / "data"))
    left = {path.name for path in (tmp_path / "data").iterdir() if path.is_file()}
    assert left == {
        "coco_retrieval.train.jsonl", "coco_retrieval.val.jsonl", "coco_captioning.train.jsonl",
        "coco_captioning.val.jsonl", "coco_karpathy_val_gt.json", "dataset.json",
    }  # fmt: skip


def test_references_are_read_by_pycocotools(raw, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    prepare("coco", {"json": str(raw / "dataset_coco.json")}, options(raw, tmp_path))
    images = [row["image_id"] for row in rows_of(tmp_path / "coco_captioning.val.jsonl")]
    (tmp_path / "captions.json").write_text(json.dumps([{"image_id": image, "caption": "a"} for image in images]))
    gold = coco.COCO(str(tmp_path / "coco_karpathy_val_gt.json"))
    assert sorted(gold.loadRes(str(tmp_path / "captions.json")).getImgIds()) == sorted(gold.getImgIds())


def test_restval_becomes_training_rows(raw, tmp_path):
    content = json.loads((raw / "dataset_coco.json").read_text())
    content["images"][3]["split"] = "restval"
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    summary = prepare("coco", {"json": str(tmp_path / "dataset.json")}, options(raw, tmp_path / "out"))
    assert summary.rows == {"train": 8, "val": 2, "test": 4}


def test_flickr30k_is_prepared_for_retrieval_alone(raw, tmp_path):
    summary = prepare("flickr30k", {"json": str(raw / "dataset_flickr30k.json")}, options(raw, tmp_path))
    assert summary.rows == {"train": 6, "val": 4, "test": 4}
    first = rows_of(tmp_path / "flickr30k.train.jsonl")[0]
    assert first["image_path"] == "flickr30k-images/0.png"
    assert first["image_id"] == 0
    assert not list(tmp_path.glob("*captioning*"))


def test_nocaps_has_references_for_validation_alone(raw, tmp_path):
    files = {"val": str(raw / "nocaps_val_4500_captions.json"), "test": str(raw / "nocaps_test_image_info.json")}
    summary = prepare("nocaps", files, options(raw, tmp_path))
    assert summary.rows == {"val": 2, "test": 2}
    assert rows_of(tmp_path / "nocaps.val.jsonl")[0] == {"id": "1003", "image_path": "val/3.png", "image_id": 1003}
    assert len(json.loads((tmp_path / "nocaps_val_gt.json").read_text())["annotations"]) == 4
    assert not (tmp_path / "nocaps_test_gt.json").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"split": "dev"}, "split 'dev' is none of"),
        ({"cocoid": "7"}, "cocoid must be a whole number"),
        ({"filename": ""}, "filename must be text"),
        ({"filename": "gone.png"}, "gone.png"),
        ({"filename": "../../x.png"}, "x.png"),
        ({"sentences": []}, "no list sentences"),
        ({"sentences": [{"raw": " ", "sentid": 1}]}, "raw must be text"),
        ({"sentences": [{"raw": "a\0", "sentid": 1}]}, "raw must be text"),
        ({"sentences": [{"raw": "a", "sentid": -1}]}, "sentid must be"),
        ({"sentences": [{"raw": "a", "sentid": 2}]}, "'2' is at"),
    ],
)
def test_a_bad_image_is_named_and_nothing_written(raw, tmp_path, change, says, capsys):
    content = json.loads((raw / "dataset_coco.json").read_text())
    content["images"][0] = {**content["images"][0], **change}
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(content))
    arguments = ["prepare", "coco", "--json", str(path), "--image_root", str(raw), "--data_path", str(tmp_path / "out")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert str(path) in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", 'no list "images"'),
        ('{"images": [{"id": "x", "file_name": "a"}]}', "image 1: must be an object whose id"),
        ('{"images": [{"id": 1, "file_name": 5}]}', "file_name must be text"),
        ('{"images": [{"id": 1, "file_name": "3.png"}], "annotations": [{"image_id": 2}]}', "annotation 1: image_id"),
        ('{"images": [{"id": 1, "file_name": "3.png"}], "annotations": [{"image_id": 1}]}', "annotation 1: caption"),
    ],
)
def test_bad_files_of_nocaps_are_errors_that_say_what_is_wrong(raw, tmp_path, content, says):
    path = tmp_path / "val.json"
    path.write_text(content)
    with pytest.raises(InputError, match=says):
        prepare("nocaps", {"val": str(path)}, options(raw, tmp_path / "out"))
    with pytest.raises(InputError, match="needs --val"):
        prepare("nocaps", {}, options(raw, tmp_path / "out"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["images", "split", "cocoid", "filename", "filepath", "sentences", "raw", "sentid"]),
            inner | st.sampled_from(["train", "val", 3]),
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=JSON)
def test_any_json_gives_rows_or_problems(tmp_path, content):
    path = tmp_path / "any.json"
    path.write_text(json.dumps({"images": content} if isinstance(content, list) else content))
    prepared = Prepared("coco", [], str(tmp_path))
    read_karpathy(prepared, path, image_id="cocoid", folder="")
    rows = [row for rows in prepared.splits.values() for row in rows]
    assert rows or prepared.problems
    assert all(row["text_segment"] and isinstance(row["image_id"], int) for row in rows)
