"""Files that are there whole or not at all."""

import os
from pathlib import Path

import pytest

from beit3_vqa.errors import InputError
from beit3_vqa.files import is_new_or_empty, missing, write_text


def test_a_pipe_keeps_its_place(tmp_path):
    """And /dev/null, which root could replace, does so too."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(InputError, match="a pipe or a device"):
            write_text(tmp_path / name, "text")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("make", "is_what"),
    [
        (os.mkfifo, "a pipe or a device"),
        (lambda path: path.symlink_to(path), r"a link that leads back to itself \(.*\)"),
        (lambda path: path.symlink_to("nothing"), r"a link that leads to nothing \(nothing\)"),
        (Path.mkdir, "a folder"),
        (Path.touch, "a file"),
    ],
)
def test_what_is_there_but_something_else_is_not_called_missing(tmp_path, make, is_what):
    path = tmp_path / "data"
    make(path)
    with pytest.raises(InputError, match=f"^there is no index {path}: that is {is_what}.$"):
        raise InputError(missing("index", path))
    if is_what == "a folder":
        assert "Did you mean" not in missing("index", path / "x")
    else:
        with pytest.raises(InputError, match=f"^there is no index {path / 'x'}: {path} is {is_what}.$"):
            raise InputError(missing("index", path / "x"))
    assert is_new_or_empty(path) == (is_what == "a folder")
    assert missing("index", tmp_path / "date").endswith("Did you mean 'data'?")
    assert missing("index", tmp_path / "a" / "b").endswith(f"the folder {tmp_path / 'a'} doesn't exist either.")
