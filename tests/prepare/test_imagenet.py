"""Folders by class -> index."""

import json

import pytest
from torchvision.datasets import ImageFolder

from beit3_vqa.data.index import read_classes
from beit3_vqa.data.rows import read_rows
from beit3_vqa.errors import InputError
from beit3_vqa.prepare import prepare
from beit3_vqa.prepare.writer import PrepareOptions
from beit3_vqa.tasks.imagenet import ImageNet
from tests.generated import write_imagenet


def run(source, out, **options):
    return prepare("imagenet", {}, PrepareOptions(data_path=str(out), image_root=str(source), **options))


def test_labels_are_torchvisions(tmp_path):
    source = write_imagenet(tmp_path / "source", 3)
    assert run(source, tmp_path / "data").rows == {"train": 12, "val": 4}
    folder = ImageFolder(str(source / "train"))
    assert read_classes(tmp_path / "data") == folder.classes
    rows = read_rows(tmp_path / "data" / "imagenet.train.jsonl", ImageNet.row_format)
    assert [(str(source / row["image_path"]), row["label"]) for row in rows] == folder.samples


def test_without_a_validation_folder_a_share_of_each_class_is_it(tmp_path):
    import shutil

    source = write_imagenet(tmp_path / "source", 10)
    shutil.rmtree(source / "val")
    assert run(source, tmp_path / "data", val_ratio=0.2).rows == {"train": 32, "val": 8}
    rows = read_rows(tmp_path / "data" / "imagenet.val.jsonl", ImageNet.row_format)
    assert sorted(row["label"] for row in rows) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        run(tmp_path, tmp_path / "data")
    source = write_imagenet(tmp_path / "source", 1)
    (source / "train" / "zebra").mkdir()
    (source / "val" / "yak").mkdir()
    (source / "val" / "red" / "notes.txt").write_text("not an image")
    with pytest.raises(InputError, match=r"zebra holds no image[\s\S]*yak: no class[\s\S]*notes.txt"):
        run(source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("content", "says"), [("{", "can't read"), ("[]", "a list of texts"), ('["a", "a"]', "twice"), ("[1]", "texts")]
)
def test_classes_that_are_none(tmp_path, content, says):
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(InputError, match=says):
        read_classes(tmp_path)


def test_an_index_row_needs_an_image_and_a_label_that_is_one(tmp_path):
    for row, says in (({"label": 1}, "no image_path"), ({"image_path": "x", "label": -1}, "label must be")):
        (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(InputError, match=says):
            read_rows(tmp_path / "x.jsonl", ImageNet.row_format)
