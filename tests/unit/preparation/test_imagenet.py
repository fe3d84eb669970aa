"""Folders by class -> index."""

import json
import re
import shutil

import pytest
from torchvision.datasets import ImageFolder

from beit3_vqa.data.index import read_classes
from beit3_vqa.data.rows import read_rows
from beit3_vqa.errors import InputError
from beit3_vqa.preparation import prepare
from beit3_vqa.preparation.writer import PrepareOptions
from beit3_vqa.tasks.imagenet import ImageNet
from tests.helpers.generated import write_imagenet


def run(source, out, **options):
    return prepare("imagenet", {}, PrepareOptions(data_path=str(out), image_root=str(source), **options))


def test_labels_equal_torchvisions(tmp_path):
    source = write_imagenet(tmp_path / "source", 3)
    assert run(source, tmp_path / "data").rows == {"train": 12, "val": 4}
    folder = ImageFolder(str(source / "train"))
    assert read_classes(tmp_path / "data") == folder.classes
    rows = read_rows(tmp_path / "data" / "imagenet.train.jsonl", ImageNet.spec.row_format)
    assert [(str(source / row["image_path"]), row["label"]) for row in rows] == folder.samples


def test_without_a_validation_folder_a_share_of_each_class_is_split_off(tmp_path):
    source = write_imagenet(tmp_path / "source", 10)
    shutil.rmtree(source / "val")
    assert run(source, tmp_path / "data", val_ratio=0.2).rows == {"train": 32, "val": 8}
    rows = read_rows(tmp_path / "data" / "imagenet.val.jsonl", ImageNet.spec.row_format)
    assert sorted(row["label"] for row in rows) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_empty_and_unknown_classes_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        run(tmp_path, tmp_path / "data")
    source = write_imagenet(tmp_path / "source", 1)
    (source / "train" / "zebra").mkdir()
    (source / "val" / "yak").mkdir()
    (source / "val" / "red" / "photo.heic").write_text("not an image")
    with pytest.raises(InputError, match=r"zebra holds no image[\s\S]*yak: no class[\s\S]*photo.heic"):
        run(source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_leftovers_of_systems_and_tools_are_passed_over_and_counted(tmp_path):
    source = write_imagenet(tmp_path / "source", 3)
    before = run(source, tmp_path / "before")
    left = [
        ".ipynb_checkpoints/0-checkpoint.png",
        "__MACOSX/._red.png",
        "red/.ipynb_checkpoints/red_0-checkpoint.png",
        "red/._red_0.png",
        "red/Thumbs.db",
        "blue/desktop.ini",
        "blue/@eaDir/blue_0.png",
        "green/labels.txt",
    ]
    for split in ("train", "val"):
        for name in left:
            path = source / split / name
            path.parent.mkdir(exist_ok=True)
            shutil.copy(source / "train" / "red" / "red_0.png", path)
    after = run(source, tmp_path / "after")
    assert after.rows == before.rows == {"train": 12, "val": 4}
    for name in ("classes.json", "imagenet.train.jsonl", "imagenet.val.jsonl"):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()
    assert "16 files and folders passed over that are no images: ._red_0.png, .ipynb_checkpoints" in after.text()


def test_one_class_and_one_leftover_are_told_in_the_singular(tmp_path):
    source = write_imagenet(tmp_path / "source", 3)
    for split in ("train", "val"):
        for folder in (source / split).iterdir():
            if folder.name != "red":
                shutil.rmtree(folder)
    (source / "train" / "red" / "Thumbs.db").touch()
    text = run(source, tmp_path / "data").text()
    assert "1 file or folder passed over that is no image: Thumbs.db" in text
    assert re.search(r"\b1 class\b", text)


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    """What torchvision's ImageFolder, which follows links too, finds in the same folder."""
    real, source = write_imagenet(tmp_path / "real", 3), tmp_path / "source"
    source.mkdir()
    (source / "train").symlink_to(real / "train")
    (source / "val").mkdir()
    for name in ("red", "blue", "green"):
        (source / "val" / name).symlink_to(real / "val" / name)
    (source / "val" / "yellow").mkdir()
    (source / "val" / "yellow" / "x.png").symlink_to(real / "val" / "yellow" / "yellow_0.png")
    (source / "val" / "yellow" / "more").symlink_to(real / "val" / "red")
    assert run(source, tmp_path / "data").rows == {"train": 12, "val": 5}
    for split in ("train", "val"):
        rows = read_rows(tmp_path / "data" / f"imagenet.{split}.jsonl", ImageNet.spec.row_format)
        samples = ImageFolder(str(source / split)).samples
        assert sorted((str(source / row["image_path"]), row["label"]) for row in rows) == sorted(samples)
    (source / "val" / "yellow" / "circle").symlink_to(source / "val")
    assert "circle" in run(source, tmp_path / "again").text()
    (source / "val" / "yellow" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match=r"gone\.png' doesn't exist"):
        run(source, tmp_path / "third")


@pytest.mark.parametrize(
    ("content", "says"), [("{", "can't read"), ("[]", "a list of texts"), ('["a", "a"]', "twice"), ("[1]", "texts")]
)
def test_a_bad_list_of_classes_is_refused(tmp_path, content, says):
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(InputError, match=says):
        read_classes(tmp_path)


def test_an_index_row_needs_an_image_and_a_valid_label(tmp_path):
    for row, says in (({"label": 1}, "no image_path"), ({"image_path": "x", "label": -1}, "label must be")):
        (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(InputError, match=says):
            read_rows(tmp_path / "x.jsonl", ImageNet.spec.row_format)
