"""Bundles: what is in the zip, and that it answers by itself as its checkpoints do here."""

import ast
import csv
import os
import re
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import beit3_vqa
from beit3_vqa.apps.bundle import run as bundle_run
from beit3_vqa.apps.bundle.contents import NEEDED, write_zip
from beit3_vqa.apps.bundle.trial import Trial, run_bundle
from beit3_vqa.cli.main import main
from beit3_vqa.errors import InputError
from beit3_vqa.models.clip.family import CLIPFamily
from tests.helpers.commands import finetune_clip
from tests.helpers.pages import ROOT

FP32 = ["--device", "cpu", "--precision", "fp32"]


def pack(members, output, *more):
    return main(["bundle", *map(str, members), "--output", str(output), *FP32, *map(str, more)])


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def answer_as_a_stranger(bundle: Path, folder: Path, *arguments: object) -> list[list[str]]:
    """Unpack a bundle and run its script in a process that can't import this repository."""
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(folder / "unpacked")
    venv.create(folder / "venv")
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    python = [str(folder / "venv" / "bin" / "python"), "-I"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    look = "import importlib.util as u; print(u.find_spec('beit3_vqa'))"
    assert subprocess.check_output([*python, "-c", look], cwd=folder, env=clean, text=True) == "None\n"
    command = [*python, str(folder / "unpacked" / "script.py"), "--device", "cpu", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return rows_of(folder / "submission.csv")


@pytest.mark.slow
def test_a_bundle_of_two_runs_by_itself_and_answers_as_the_ensemble(scpc, trained, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members = [trained / f"checkpoint-{epoch}.pth" for epoch in (0, 1)]
    bundle = Path("new", "submit.zip")
    stated = ["--weights_license", "MIT, as BEiT-3", "--weights_date", "2022-08-31"]
    assert pack(members, bundle, "--data_path", scpc / "data", "--num_workers", "0", *stated) == 0
    said = capfd.readouterr().out
    parameters = beit3_vqa.load(members[0], "cpu").components.model.parameters()
    total = 2 * sum(parameter.numel() for parameter in parameters)
    assert f"parameters: {total:,} in 2 models" in said
    assert "all 13 answers equal those of ensemble on test" in said
    assert re.search(r"[\d.]+ seconds a row", said)
    assert f"wrote {bundle}: {bundle.stat().st_size:,} bytes, {total:,} parameters" in said
    assert [path.name for path in bundle.parent.iterdir()] == ["submit.zip"]
    with zipfile.ZipFile(bundle) as archive:
        names, readme = set(archive.namelist()), archive.read("README.md").decode()
        wanted = archive.read("requirements.txt").decode()
        ast.parse(archive.read("script.py"))
        assert 'PRECISION = "fp32"' in archive.read("script.py").decode()
    assert {"script.py", "packages/LICENSE", "packages/beit3_vqa/data/page.css", "model/1/tokenizer.spm"} <= names
    assert {"model/1/model.safetensors", "model/2/model.safetensors"} <= names
    assert not [name for name in names if "__pycache__" in name]
    assert "as stated by who made this: MIT, as BEiT-3" in readme
    assert "as stated by who made this: 2022-08-31" in readme
    assert f"Parameters in sum: {total:,}" in readme
    assert f"torch=={version('torch').partition('+')[0]}" in wanted
    assert f"\nfairscale=={version('fairscale')}" in wanted  # what torchscale asks for


def test_the_script_names_a_missing_column_of_ids_before_it_answers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text((bundle_run.PACKAGE / "apps/bundle/script.txt").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "t.csv").write_text("key,Question\n1,What?\n")
    command = [sys.executable, str(script), "--table", str(tmp_path / "t.csv")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "has no column ID; it has key, Question" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "t.csv").write_text("번호,질문\n1,이 그림에는 무엇이 있습니까?\n", encoding="cp949")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "has no column ID; it has 번호, 질문" in done.stderr


@pytest.mark.slow
def test_a_stranger_gets_the_answers_of_the_ensemble(scpc, trained, tmp_path):
    members = [str(trained / f"checkpoint-{epoch}.pth") for epoch in (0, 1)]
    data = ["--data_path", str(scpc / "data"), "--num_workers", "0"]
    expected = tmp_path / "here" / "submission.csv"
    assert main(["ensemble", *members, "--output", str(expected), *data, *FP32]) == 0
    bundle = tmp_path / "submit.zip"
    assert pack(members, bundle, *data) == 0
    asked = ["--table", scpc / "test.csv", "--image_root", scpc / "images"]
    (tmp_path / "there").mkdir()
    assert answer_as_a_stranger(bundle, tmp_path / "there", *asked) == rows_of(expected)


@pytest.mark.slow
def test_a_table_with_other_names_is_answered_as_predict_does_and_twice_the_same_bytes(scpc, trained, tmp_path, capfd):
    text = (scpc / "test.csv").read_text(encoding="utf-8").replace("ID,img_path,Question", "번호,Bild,Frage", 1)
    table = tmp_path / "their test.csv"
    table.write_text(text, encoding="utf-8-sig")
    asked = ["--table", table, "--image_root", scpc / "images"]
    columns = ["--columns", "id=번호,image=Bild,question=Frage"]
    for name in "ab":
        assert pack([trained], tmp_path / f"{name}.zip", *asked, *columns) == 0
    assert "all 13 answers equal those of `predict`" in capfd.readouterr().out
    bundle = tmp_path / "a.zip"
    assert bundle.read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert main(["predict", "--checkpoint", str(trained), "--output", str(tmp_path / "p.csv"), *FP32,
                 *map(str, asked), *columns]) == 0  # fmt: skip
    header, *rows = rows_of(tmp_path / "p.csv")
    id, answer = header.index("번호"), header.index("answer")
    expected = [["번호", "answer"], *([row[id], row[answer]] for row in rows)]
    assert answer_as_a_stranger(bundle, tmp_path, *asked) == expected


@pytest.mark.slow
def test_a_clip_takes_its_pretrained_model_along(scpc, clip_folder, tmp_path):
    assert main(finetune_clip(scpc, clip_folder, tmp_path / "out", "--epochs", "1", "--lr", "1e-2")) == 0
    bundle = tmp_path / "submit.zip"
    assert pack([tmp_path / "out"], bundle, "--data_path", scpc / "data", "--split", "val") == 0
    with zipfile.ZipFile(bundle) as archive:
        assert "model/1/pretrained/model.safetensors" in archive.namelist()
        assert f"\npeft=={version('peft')}" in archive.read("requirements.txt").decode()
        assert str(tmp_path).encode() not in b"".join(map(archive.read, archive.namelist()))


def test_a_bundle_that_answers_otherwise_is_not_written(scpc, trained, tmp_path, capsys, monkeypatch):
    bundle = tmp_path / "submit.zip"
    bundle.write_bytes(b"an earlier one")

    def wrong(made, place, table, *_):
        assert zipfile.is_zipfile(made)
        header, *rows = rows_of(table)
        assert header == ["ID", "img_path", "Question", "A", "B", "C", "D"]
        return Trial([(row[0], "no letter") for row in rows], "", "", 1.0)

    monkeypatch.setattr(bundle_run, "run_bundle", wrong)
    data = ["--data_path", scpc / "data", "--split", "val", "--num_workers", "0"]
    assert pack([trained / "checkpoint-best.pth"], bundle, *data) == 2
    said = capsys.readouterr().err
    assert "by itself it answers otherwise than --eval on val" in said
    assert "'no letter', not" in said
    assert bundle.read_bytes() == b"an earlier one"
    assert [path.name for path in tmp_path.iterdir()] == ["submit.zip"]


GUARDED = """
import socket, sys
tries = {
    "connect": lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
    "bind": lambda: socket.socket().bind(("127.0.0.1", 0)),
    "look up": lambda: socket.getaddrinfo("example.org", 80),
    "open": lambda: open(%r).read(),
}
for name, attempt in tries.items():
    try:
        attempt()
        sys.exit(name + " was possible")
    except OSError as error:
        print(name, "refused:", error)
assert "beit3_vqa" not in sys.modules
with socket.socket(socket.AF_UNIX) as here, socket.socket(socket.AF_UNIX) as there:  # as between loaders of data
    here.bind("between")
    here.listen()
    there.connect("between")
with open(sys.argv[sys.argv.index("--output") + 1], "w") as file:
    file.write("ID,answer\\n1,A\\n")
"""


def test_a_trial_has_no_network_and_does_not_see_what_is_hidden(tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "file").write_text("x")
    link = tmp_path / "link"
    link.symlink_to(hidden)
    (tmp_path / "content").mkdir()
    (tmp_path / "content" / "script.py").write_text(GUARDED % str(hidden / "file"))
    write_zip(tmp_path / "content", tmp_path / "a.zip")
    (tmp_path / "place").mkdir()
    trial = run_bundle(tmp_path / "a.zip", tmp_path / "place", tmp_path / "t.csv", tmp_path, "cpu", [link])
    assert trial.answers == [("1", "A")]
    assert trial.said.count("refused: ") == 4
    assert "a bundle must do without this file" in trial.said


def test_a_script_that_fails_is_an_error_with_its_last_words(tmp_path):
    (tmp_path / "content").mkdir()
    (tmp_path / "content" / "script.py").write_text("raise SystemExit('no such luck')")
    write_zip(tmp_path / "content", tmp_path / "a.zip")
    (tmp_path / "place").mkdir()
    with pytest.raises(InputError, match=r"script\.py failed by itself.*\n.*no such luck"):
        run_bundle(tmp_path / "a.zip", tmp_path / "place", tmp_path / "t.csv", tmp_path, "cpu", [])


def test_what_a_bundle_asks_for_is_what_setup_asks_for():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")

    def names(part):
        return re.findall(r'^\s+"([a-z]+)[=>"]', part, flags=re.M)

    assert tuple(names(text.split("install_requires=[")[1].split("],")[0])) == NEEDED
    assert re.findall(r'"([a-z]+)>=', re.search(r'"clip": \[(.*)\]', text)[1]) == list(CLIPFamily.packages)


@pytest.mark.parametrize(
    ("members", "flags", "says"),
    [
        (["checkpoint-best.pth"], [], "--data_path, or a table"),
        (["checkpoint-best.pth"], ["--table", "t.csv", "--data_path", "DATA"], "one of the two"),
        (["checkpoint-best.pth"], ["--table", "t.csv"], "--table needs --image_root"),
        (["checkpoint-best.pth"], ["--columns", "id=x", "--data_path", "DATA"], "--columns: belongs to --table"),
        (["checkpoint-0.pth"] * 2, ["--data_path", "DATA"], "is given twice"),
        (["checkpoint-9.pth"], ["--data_path", "DATA"], "checkpoint-9.pth"),
        (["config.json"], ["--data_path", "DATA"], "config.json"),
        (["checkpoint-0.pth"], ["--data_path", "DATA", "--weights_date", "last year"], "write it as 2025-06-30"),
        (["checkpoint-0.pth"], ["--data_path", "DATA", "--weights_license", "a\nb"], "must be one line"),
        (["checkpoint-0.pth"], ["--data_path", "DATA", "--split", "test-dev"], "has no test-dev split"),
        (["checkpoint-0.pth"], ["--table", "NOWHERE.csv", "--image_root", "DATA"], "NOWHERE.csv"),
        (["checkpoint-0.pth"], ["--table", "LICENSE", "--image_root", "DATA"], "LICENSE"),
    ],
)
def test_bad_input_is_one_error_and_leaves_nothing(scpc, trained, tmp_path, capsys, members, flags, says):
    real = {"DATA": str(scpc / "data"), "LICENSE": str(ROOT / "LICENSE")}
    flags = [real.get(word, word) for word in flags]
    assert pack([trained / name for name in members], tmp_path / "submit.zip", *flags) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("error: ") == 1
    assert not list(tmp_path.iterdir())


def test_the_name_of_a_bundle_ends_in_zip(trained, tmp_path, capsys):
    assert pack([trained], tmp_path / "submit.tar", "--data_path", "x") == 2
    assert "ends in .zip" in capsys.readouterr().err
