"""Two runs in one folder: the second is told who is there; whoever is dead holds nothing."""

import itertools
import json
import multiprocessing
import os
import platform
import signal
import threading
import time
from pathlib import Path

import pytest

from beit3_vqa.cli.main import main
from beit3_vqa.engine import run_lock as locking
from beit3_vqa.engine.run_lock import FILE, require_lock, run_lock
from beit3_vqa.errors import InputError
from tests.helpers.commands import finetune
from tests.helpers.processes import ended, start, torchrun


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(locking, "BEAT", 0.05)
    monkeypatch.setattr(locking, "WATCHED", 0.5)


def other(folder, **changes):
    """A lock that another run left, or has."""
    with run_lock(folder):
        content = json.loads((folder / FILE).read_text())
        content |= {"token": "another", **changes}
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(json.dumps(content))
    return content


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_refused_and_touches_nothing(scpc, tmp_path, capsys):
    out = tmp_path / "out"
    with run_lock(out):
        before = (out / FILE).read_text()
        for command in ("finetune", "cross_validate"):
            assert main([command, *finetune(scpc, out, "--epochs", "1")[1:]]) == 2
            said = capsys.readouterr().err
            assert f"process {os.getpid()} on {platform.node()}, since 20" in said
            assert "another --output_dir" in said
        assert main(finetune(scpc, out, "--epochs", "1", "--dry_run")) == 0  # it writes nothing
        assert [path.name for path in out.iterdir()] == [FILE]
        assert json.loads(before)["token"] in (out / FILE).read_text()
    assert not out.exists()  # as it was


def test_a_killed_run_holds_no_lock(tmp_path):
    ready, writing = os.pipe()
    child = os.fork()
    if not child:
        with run_lock(tmp_path):
            os.write(writing, b".")
            time.sleep(60)
    os.read(ready, 1)
    with pytest.raises(InputError, match=f"process {child} "), run_lock(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    while " Z " not in Path(f"/proc/{child}/stat").read_text():
        time.sleep(0.01)
    with run_lock(tmp_path):
        assert (tmp_path / FILE).exists()
    os.waitpid(child, 0)
    assert not list(tmp_path.iterdir())
    os.close(ready)
    os.close(writing)


def test_a_process_number_that_is_used_again_holds_no_lock(tmp_path):
    other(tmp_path, pid=os.getpid(), started="1")
    with run_lock(tmp_path):
        pass


@pytest.mark.parametrize("content", [{}, {"machine": "elsewhere 1", "pid": os.getpid()}])
def test_the_lock_of_a_process_that_cant_be_looked_up_is_watched(tmp_path, capsys, monkeypatch, content):
    """A lock without a sign of life is a dead one's, whatever its clock says; with one it is a living one's."""
    if content:
        content = other(tmp_path, since="2099-01-01 00:00:00", **content)
    else:
        (tmp_path / FILE).write_text("")
    with run_lock(tmp_path):
        assert "for activity" in capsys.readouterr().out
    monkeypatch.setattr(locking, "WATCHED", 5.0)  # it ends when it sees the other write
    stop = threading.Event()

    def beat():
        for number in itertools.count(1):
            (tmp_path / FILE).write_text(json.dumps({**content, "beat": number}))
            if stop.wait(0.1):
                return

    (tmp_path / FILE).write_text(json.dumps({**content, "beat": 0}))
    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(InputError, match="is in use by another run"), run_lock(tmp_path):
        pass
    stop.set()
    thread.join()


def test_a_lock_is_written_to_regularly_and_comes_back_if_deleted(tmp_path):
    with run_lock(tmp_path):
        first = json.loads((tmp_path / FILE).read_text())
        time.sleep(1.2)  # so that a time that moves on is another
        second = json.loads((tmp_path / FILE).read_text())
        assert second.pop("beat") > first.pop("beat")
        assert first == second
        (tmp_path / FILE).unlink()
        end = time.monotonic() + 60
        while locking._parsed(locking._read(tmp_path / FILE)).get("token") != first["token"]:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert not (tmp_path / FILE).exists()


def test_a_run_that_lost_its_lock_saves_nothing_and_leaves_the_new_one(tmp_path):
    with run_lock(tmp_path):
        require_lock(tmp_path)
        (tmp_path / FILE).write_text(json.dumps({"token": "another", "pid": 7, "host": "elsewhere", "since": "now"}))
        with pytest.raises(
            InputError,
            match=r"another run \(process 7 on elsewhere, since now\) took over .* while this one was paused",
        ):
            require_lock(tmp_path)
    assert (tmp_path / FILE).exists()


def _try(folder, barrier, results, end):
    barrier.wait()
    try:
        with run_lock(folder):
            results.put(True)
            end.wait()
    except InputError:
        results.put(False)


def test_one_of_many_runs_takes_over_a_dead_lock(tmp_path):
    other(tmp_path, pid=os.getpid(), started="1")
    context = multiprocessing.get_context("fork")
    barrier, results, end = context.Barrier(8), context.Queue(), context.Event()
    tries = [context.Process(target=_try, args=(tmp_path, barrier, results, end)) for _ in range(8)]
    for process in tries:
        process.start()
    assert sorted(results.get(timeout=60) for _ in tries) == [False] * 7 + [True]
    end.set()
    for process in tries:
        process.join()
    assert not list(tmp_path.iterdir())


def test_who_saw_a_dead_lock_does_not_touch_the_lock_of_the_run_that_took_over(tmp_path, monkeypatch):
    """However long it paused after it looked."""
    monkeypatch.setattr(locking, "BEAT", 60.0)
    other(tmp_path, pid=os.getpid(), started="1")
    looked, lives = [], locking._lives

    def paused(content):
        if looked:
            return lives(content)
        looked.append(run_lock(tmp_path))
        looked[0].__enter__()
        looked.append((tmp_path / FILE).stat())
        return False

    monkeypatch.setattr(locking, "_lives", paused)
    with pytest.raises(InputError, match=f"process {os.getpid()} "), run_lock(tmp_path):
        pass
    now = (tmp_path / FILE).stat()
    looked[0].__exit__(None, None, None)
    assert (now.st_ino, now.st_ctime_ns) == (looked[1].st_ino, looked[1].st_ctime_ns)  # a rename changes the second


def test_a_run_that_paused_before_it_wrote_its_lock_sees_that_another_has_the_folder(tmp_path, monkeypatch):
    taken = other(tmp_path / "another")
    (tmp_path / "another" / FILE).unlink()

    def paused(file):
        (tmp_path / FILE).unlink()
        (tmp_path / FILE).write_text(json.dumps(taken))

    monkeypatch.setattr(locking, "_wait_for", paused)
    with pytest.raises(InputError, match=f"process {os.getpid()} "), run_lock(tmp_path):
        pass
    assert json.loads((tmp_path / FILE).read_text()) == taken


def test_a_folder_that_cant_be_written_to_is_refused(scpc, capsys):
    assert main(finetune(scpc, "/proc/self/net", "--epochs", "1")) == 2
    assert "can't be written to" in capsys.readouterr().err


@pytest.mark.slow
def test_several_processes_end_together_with_one_message(scpc, tmp_path):
    with run_lock(tmp_path / "out"):
        command = ["run_beit3_finetuning.py", *finetune(scpc, tmp_path / "out", "--epochs", "1")[1:]]
        code, said = ended(start(command, tmp_path / "log", *torchrun(2)), tmp_path / "log", 120)
    assert code != 0
    assert said.count("is in use by") == 1


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_a_lock_that_cant_be_read_is_one_error_and_no_endless_wait(tmp_path, make):
    make(tmp_path / FILE)
    with pytest.raises(InputError, match=r"can't be read as the lock of a run"), run_lock(tmp_path):
        pass
