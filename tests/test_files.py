"""Files that are there whole or not at all."""

import os
import subprocess
import sys

import pytest

from beit3_vqa.errors import InputError
from beit3_vqa.files import publish, remove_stale_temporaries, staged, write_text


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


def test_what_is_staged_comes_together_or_not_at_all(tmp_path):
    (tmp_path / "a").write_text("old")
    with staged(tmp_path) as place:
        write_text(place / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"
    with staged(tmp_path) as place:
        written = publish([write_text(place / name, name) for name in "ab"], tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(written) == [tmp_path / "a", tmp_path / "b"]
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match="can't be written"), staged(tmp_path) as place:
        publish([write_text(place / "c", "c")], tmp_path)


def test_what_a_killed_process_staged_is_removed_and_a_running_ones_is_not(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    for process in (int(dead.stdout), os.getpid()):
        folder = tmp_path / f".results.{process}.tmp"
        folder.mkdir()
        (folder / "predictions.json").write_text("[]")
    remove_stale_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f".results.{os.getpid()}.tmp"]
