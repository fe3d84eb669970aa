"""Say what a file is by its content: people give a workbook in place of a CSV, and an archive in place of a folder."""

from pathlib import Path

from beit3_vqa.runtime.archives import zip_entries
from beit3_vqa.runtime.files import is_file

# Kind -> what a message calls it. A file of no known kind is taken for text.
KINDS = {
    "xlsx": "an Excel workbook",
    "xls": "an Excel workbook",
    "locked": "an Excel workbook with a password: save it without one",
    "ods": "an OpenDocument spreadsheet: save it as XLSX or CSV",
    "docx": "a Word document: save its table as CSV",
    "parquet": "a Parquet file",
    "feather": "a Feather file",
    "images": "a zip archive of images: give it as --image_root",
    "zip": "a zip archive: unpack it, and name the file in it",
    "pdf": "a PDF file",
    "image": "an image",
    "gzip": "a compressed file (gzip): unpack it first",
    "7z": "a compressed file (7z): unpack it first",
    "rar": "a compressed file (RAR): unpack it first",
}
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2")
_MAGIC = {
    b"%PDF": "pdf",
    b"\x89PNG": "image",
    b"\xff\xd8\xff": "image",
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
    b"PAR1": "parquet",
    b"ARROW1": "feather",
    b"FEA1": "feather",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",  # one without entries
    b"\xd0\xcf\x11\xe0": "xls",
}
_PASSWORD = "EncryptedPackage".encode("utf-16-le")  # the part of an old Excel file in which a new one is locked
_SEARCHED = 2**26  # bytes


def file_kind(path: Path) -> str:
    """Return the kind of a file, a key of `KINDS`; empty for text, and for what can't be read.

    Raises:
        InputError: it begins like a zip archive, but is damaged.
    """
    if not is_file(path):  # opening a pipe would wait for ever
        return ""
    try:
        with path.open("rb") as file:
            start = file.read(max(map(len, _MAGIC)))
            kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")
            if kind == "xls" and _PASSWORD in start + file.read(_SEARCHED):
                return "locked"
    except (OSError, ValueError):  # whoever reads it says why
        return ""
    return _kind_of_zip(path) if kind == "zip" else kind


def _kind_of_zip(path: Path) -> str:
    names = [entry.filename for entry in zip_entries(path)]
    known = set(names)
    if "xl/workbook.xml" in known:
        return "xlsx"
    if "word/document.xml" in known:
        return "docx"
    if names[:1] == ["mimetype"] and "content.xml" in known:
        return "ods"
    images = sum(name.lower().endswith(IMAGE_ENDINGS) for name in names)
    return "images" if 2 * images > sum(not name.endswith("/") for name in names) else "zip"
