"""Files that are there whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from beit3_vqa.cli.main import main
from beit3_vqa.errors import InputError
from beit3_vqa.runtime.files import is_new_or_empty, missing, move_into, remove_stale_temporaries, staged, write_text


def test_a_pipe_is_never_replaced_by_a_file(tmp_path):
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
        (lambda path: path.symlink_to(path), r"a link that points to itself \(.*\)"),
        (lambda path: path.symlink_to("nothing"), r"a link that points to nothing \(nothing\)"),
        (Path.mkdir, "a folder"),
        (Path.touch, "a file"),
    ],
)
def test_a_path_of_another_kind_is_not_called_missing(tmp_path, make, is_what):
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


def test_no_command_fails_at_a_link_to_itself(tmp_path, capsys):
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)
    out = str(tmp_path / "out")
    for command in (
        ["report", loop, "--output", f"{out}.html"],
        ["ensemble", loop, loop, "--output", f"{out}.csv"],
        ["score", loop, "--answers", loop],
        ["score", loop, "--answers", loop, "--json", loop],
        ["finetune", "--output_dir", out, "--data_path", loop],
        ["finetune", "--output_dir", out, "--data_path", tmp_path, "--resume", loop / "x.pth"],
        ["finetune", "--config", loop],
        ["prepare", "choices", "--train", loop, "--image_root", loop, "--data_path", out],
    ):
        assert main([str(word) for word in command]) == 2
        said = capsys.readouterr().err
        assert "loop" in said
        assert "Did you mean 'loop" not in said
    assert list(tmp_path.iterdir()) == [loop]


def test_staged_files_are_published_together_or_not_at_all(tmp_path):
    (tmp_path / "a").write_text("old")
    with staged(tmp_path) as place:
        write_text(place / "a", "new")
        remove_stale_temporaries(tmp_path)  # another process that begins meanwhile
        assert place.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"
    with staged(tmp_path) as place:
        written = move_into([write_text(place / name, name) for name in "ab"], tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(written) == [tmp_path / "a", tmp_path / "b"]
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match="can't be written"), staged(tmp_path) as place:
        move_into([write_text(place / "c", "c")], tmp_path)


def test_only_temporaries_of_killed_processes_are_removed(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    for process in (int(dead.stdout), os.getpid()):
        folder = tmp_path / f".staged.x7_a.{process}.tmp"
        folder.mkdir()
        (folder / "predictions.json").write_text("[]")
    half_written = tmp_path / f".checkpoint-1.pth.{int(dead.stdout)}.tmp"
    half_written.write_text("")
    with staged(tmp_path):  # what isn't staged may be whole, and wait for its name
        assert half_written.exists()
        assert not (tmp_path / f".staged.x7_a.{int(dead.stdout)}.tmp").exists()
    remove_stale_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f".staged.x7_a.{os.getpid()}.tmp"]


def test_writing_a_file_removes_what_a_killed_process_left_of_it(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f".x.json.{dead.pid}.tmp", f".y.json.{dead.pid}.tmp", f".x.json.{os.getpid()}1.tmp.json"):
        (tmp_path / name).write_text("half")
    write_text(tmp_path / "x.json", "whole")
    left = {f".y.json.{dead.pid}.tmp", f".x.json.{os.getpid()}1.tmp.json", "x.json"}
    assert {path.name for path in tmp_path.iterdir()} == left
