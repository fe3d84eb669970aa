"""Files that are there whole or not at all."""

import os
import subprocess

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


def test_what_a_killed_process_left_of_a_file_goes_when_it_is_written(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f".x.json.{dead.pid}.tmp", f".y.json.{dead.pid}.tmp", f".x.json.{os.getpid()}1.tmp.json"):
        (tmp_path / name).write_text("half")
    write_text(tmp_path / "x.json", "whole")
    left = {f".y.json.{dead.pid}.tmp", f".x.json.{os.getpid()}1.tmp.json", "x.json"}
    assert {path.name for path in tmp_path.iterdir()} == left
