"""Rows are parsed from the file when they are asked for, in any process."""

import json
import multiprocessing
import pickle
import shutil
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beit3_vqa.cli.main import main
from beit3_vqa.data.rows import Rows, read_prepared_rows, read_rows, write_rows
from beit3_vqa.runtime.files import file_sha256, is_text
from tests.helpers.commands import finetune


def line(number, **more):
    return {"id": f"r{number}", "image_path": "x.jpg", "question": f"질문 {number}", **more}


@pytest.fixture
def files(tmp_path):
    paths = []
    for name, start in (("one", 0), ("two", 10), ("empty", 0)):
        paths.append(tmp_path / f"{name}.jsonl")
        rows = [] if name == "empty" else [line(start + i) for i in range(5)]
        paths[-1].write_text("".join(json.dumps(r, ensure_ascii=False) + "\n\n" for r in rows), encoding="utf-8")
    return paths


def ids(rows):
    return [row["id"] for row in rows]


def test_rows_behave_as_a_list(files):
    rows = read_rows(files[0])
    assert rows == [line(i) for i in range(5)]
    assert rows != [line(i) for i in range(4)]
    assert rows != [line(i) for i in (0, 1, 2, 3, 5)]
    assert len(rows) == 5
    assert rows[2] == line(2)
    assert rows[-1] == line(4)
    assert ids(rows[1:3]) == ["r1", "r2"]
    with pytest.raises(IndexError):
        rows[5]
    rows[0]["id"] = "changed"  # a row is a copy
    assert rows[0]["id"] == "r0"


def test_rows_are_joined_and_selected_as_lists_are(files):
    both = read_rows(files[0]) + read_rows(files[1]) + read_rows(files[2])
    assert ids(both) == [f"r{i}" for i in (0, 1, 2, 3, 4, 10, 11, 12, 13, 14)]
    odd = both.where(int(row["id"][1:]) % 2 for row in both)
    assert ids(odd) == ["r1", "r3", "r11", "r13"]
    assert ids(odd.where([False, True, False, True])) == ["r3", "r13"]
    assert not read_rows(files[2])


def _ids(rows, queue):
    queue.put(ids(rows))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_rows_reach_forked_and_spawned_processes(files, method):
    rows = (read_rows(files[0]) + read_rows(files[1])).where([False, True] * 5)
    assert pickle.loads(pickle.dumps(rows)) == list(rows)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_ids, args=(rows, queue))
    process.start()
    assert queue.get(timeout=60) == ids(rows)
    process.join()


def test_a_file_that_is_replaced_while_it_is_read_stays_as_it_was(files, tmp_path):
    rows = read_rows(files[0])
    (tmp_path / "new").write_text("{}")
    (tmp_path / "new").replace(files[0])
    assert ids(rows) == ids(rows[:]) == ids(rows.where([True] * 5)) == ["r0", "r1", "r2", "r3", "r4"]
    assert ids(rows + rows)[5:] == ids(rows)


def test_rows_are_read_on_a_file_system_without_maps(files, monkeypatch):
    from beit3_vqa.data import rows as module

    def refused(*_, **__):
        raise OSError("no maps here")

    monkeypatch.setattr(module.mmap, "mmap", refused)
    assert isinstance(read_rows(files[0]), Rows)
    assert ids(read_rows(files[0])) == ["r0", "r1", "r2", "r3", "r4"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text().filter(lambda text: is_text(text) and text.strip()), max_size=20), st.integers(1, 40))
def test_rows_that_prepare_wrote_are_those_that_a_check_of_each_finds(tmp_path, questions, chunk):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [line(number, question=question) for number, question in enumerate(questions)])
    with mock.patch("beit3_vqa.data.rows._CHUNK", chunk):  # an end of a line may be anywhere in one
        rows = read_prepared_rows(path, file_sha256(path))
    assert rows == read_rows(path)


def test_rows_that_were_changed_after_prepare_are_checked(scpc, tmp_path, capsys):
    shutil.copytree(scpc / "data", tmp_path / "data")
    folder = ["--data_path", str(tmp_path / "data"), "--image_root", str(scpc / "images")]
    command = [*finetune(scpc, tmp_path / "out", "--epochs", "1", "--dry_run"), *folder]
    assert main(command) == 0
    index = tmp_path / "data" / "vqacustom.train.jsonl"
    index.write_text(index.read_text(encoding="utf-8").replace('"answer": "', '"answer": "no', 1), encoding="utf-8")
    capsys.readouterr()
    assert main(command) == 2
    assert "vqacustom.train.jsonl:1: answer 'no" in capsys.readouterr().err


def test_a_file_that_is_gone_or_has_other_bytes_has_no_prepared_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [line(0)])
    before = file_sha256(path)
    path.write_bytes(path.read_bytes().replace(b"r0", b"r1"))
    assert read_prepared_rows(path, before) is None
    assert read_prepared_rows(tmp_path / "nothing.jsonl", before) is None
