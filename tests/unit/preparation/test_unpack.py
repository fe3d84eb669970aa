"""A zip archive as --image_root: unpacked once, and refused if it could do harm."""

import io
import os
import stat
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from beit3_vqa.data.index import DatasetInfo
from beit3_vqa.data.rows import read_rows
from beit3_vqa.errors import InputError
from beit3_vqa.preparation import PrepareOptions, prepare
from beit3_vqa.runtime import archives

PICTURE = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(PICTURE, "PNG")
PICTURE = PICTURE.getvalue()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("img,question,answer\na.png,Q?,x\nsub/b.png,Q?,y\n")
    return tmp_path


def pack(entries, name="images.zip", method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(name, "w", method) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return name


GOOD = {"a.png": PICTURE, "sub/b.png": PICTURE, "__MACOSX/._a.png": b"x", "sub/.DS_Store": b"x"}


def run(root="images.zip", **options):
    return prepare("table", {"train": "t.csv"}, PrepareOptions("data", root, val_ratio=0.0, **options))


def everything(folder="data"):
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def test_a_zip_is_unpacked_once_beside_the_data(capsys):
    pack(GOOD)
    run()
    assert "images.zip: 2 files unpacked to data/images" in capsys.readouterr().out
    assert [row["image_path"] for row in read_rows(Path("data/vqacustom.train.jsonl"))] == ["a.png", "sub/b.png"]
    assert DatasetInfo.read(Path("data")).image_root.resolve() == Path("data/images").resolve()
    assert {name for name in everything() if name.startswith("images/")} == {
        "images/a.png", "images/sub/b.png", "images/.unpacked.json"
    }  # fmt: skip
    inode = Path("data/images/a.png").stat().st_ino
    run()
    os.utime("images.zip", ns=(0, 0))  # copied: the same bytes at another time
    run()
    assert "unpacked" not in capsys.readouterr().out
    assert Path("data/images/a.png").stat().st_ino == inode


def test_a_zip_of_a_folder_needs_no_folder_in_the_table(capsys):
    pack({f"photos/{name}": content for name, content in GOOD.items() if name.endswith(".png")})
    run()
    rows = read_rows(Path("data/vqacustom.train.jsonl"))
    assert [row["image_path"] for row in rows] == ["photos/a.png", "photos/sub/b.png"]


def test_another_zip_is_unpacked_anew_and_the_old_images_are_kept(capsys):
    pack(GOOD)
    run()
    pack(GOOD | {"c.png": PICTURE})
    run()
    assert "images/c.png" in everything()
    assert "previous-1/images/a.png" in everything()


def test_a_check_leaves_nothing():
    pack(GOOD)
    assert run(check=True).images == 2
    assert not Path("data").exists()


def test_a_folder_that_is_not_ours_is_left_alone():
    pack(GOOD)
    Path("data/images").mkdir(parents=True)
    Path("data/images/mine.png").write_bytes(PICTURE)
    with pytest.raises(InputError, match="data/images, which is there already"):
        run()
    assert everything() == {"images/mine.png"}


def test_names_that_windows_wrote_in_cp949_are_korean(capsys):
    entry = zipfile.ZipInfo("xxxx.png")  # replaced by bytes of the same length, without the mark of UTF-8
    pack({entry: PICTURE})
    content = Path("images.zip").read_bytes().replace(b"xxxx.png", "사진.png".encode("cp949"))
    Path("images.zip").write_bytes(content)
    Path("t.csv").write_text("img,question,answer\n사진.png,Q?,x\n", encoding="utf-8")
    assert run().images == 1


def link():
    entry = zipfile.ZipInfo("link.png")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"../a.png": PICTURE}, "would be unpacked outside of the image folder"),
        ({"sub/../../a.png": PICTURE}, "would be unpacked outside of the image folder"),
        ({"..\\a.png": PICTURE}, "would be unpacked outside of the image folder"),
        ({"/tmp/a.png": PICTURE}, "would be unpacked outside of the image folder"),
        ({"C:\\a.png": PICTURE}, "would be unpacked outside of the image folder"),
        ({link(): b"/etc/passwd"}, "is a link"),
        ({"a.png": PICTURE, "./a.png": PICTURE}, "is in the archive twice"),
        ({"a.png": PICTURE, "a.png/b.png": PICTURE}, "can't be unpacked"),
        ({"notes.txt": b"x"}, "is a zip archive without images"),
        ({}, "is a zip archive without images"),
        ({"xl/workbook.xml": b"x", "a.png": PICTURE}, "--image_root images.zip is an Excel workbook; the folder"),
    ],
)
def test_what_is_dangerous_or_no_archive_of_images_is_refused(folder, entries, message):
    pack(entries)
    with pytest.raises(InputError, match=message):
        run()
    assert sorted(path.name for path in folder.iterdir()) == ["images.zip", "t.csv"]


def test_a_zip_bomb_is_refused_before_anything_is_written(monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNCHECKED", 10**6)
    pack({"a.png": bytes(5 * 10**6)}, method=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=r"would unpack to 5,000,000, as a zip bomb does"):
        run()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    pack(GOOD)
    with pytest.raises(InputError, match="bytes, more than 0"):
        run()


def test_a_damaged_or_locked_archive_is_refused_and_leaves_no_half_of_it():
    pack(GOOD)
    whole = Path("images.zip").read_bytes()
    place = whole.rindex(PICTURE)
    Path("images.zip").write_bytes(whole[: place + 20] + b"damaged" + whole[place + 27 :])
    with pytest.raises(InputError, match=r"images\.zip: 'sub/b\.png' can't be unpacked: Bad CRC-32"):
        run()
    assert not Path("data").exists()
    Path("images.zip").write_bytes(whole[:-30])
    with pytest.raises(InputError, match="damaged spreadsheet or zip archive"):
        run()
    with zipfile.ZipFile("images.zip", "w") as archive:
        archive.writestr("a.png", PICTURE)
    locked = Path("images.zip").read_bytes()
    place = locked.index(b"PK\x01\x02")
    Path("images.zip").write_bytes(locked[: place + 8] + b"\x01" + locked[place + 9 :])
    with pytest.raises(InputError, match="has a password"):
        run()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ID,img_path\n", "t2 is a file; the folder of the images is needed, or a zip of it"),
        (b"%PDF-1.7", "t2 is a PDF file"),
        (PICTURE, "t2 is an image; the folder of the images"),
    ],
)
def test_a_file_as_image_root_is_called_what_it_is(content, message):
    Path("t2").write_bytes(content)
    with pytest.raises(InputError, match=f"--image_root {message}"):
        run("t2")


def test_a_zip_of_images_as_table_names_the_option_that_takes_it():
    pack(GOOD)
    with pytest.raises(InputError, match="is a zip archive of images: give it as --image_root"):
        prepare("table", {"train": "images.zip"}, PrepareOptions("data", "."))
    with pytest.raises(InputError, match="is a zip archive of images: give it as --image_root"):
        prepare("visual7w", {"json": "images.zip"}, PrepareOptions("data", "."))
