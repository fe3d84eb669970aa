"""Files that are there whole or not at all."""

import os

import pytest

from beit3_vqa.errors import InputError
from beit3_vqa.files import write_text


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
