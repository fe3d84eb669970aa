"""The sources of a run, as --data_path, --image_root, --mix and --val_from say them."""

import json

import pytest

from beit3_vqa.cli.main import main
from beit3_vqa.config.config import read_config_values
from beit3_vqa.errors import InputError
from tests.helpers.options import build_config

TWO = ["x/a", "x/b"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data_path", *TWO, "--mix", "1"], "--mix 1: has 1 number for 2 folders"),
        (["--data_path", *TWO, "--mix", "1,2,3"], "--mix 1,2,3: has 3 numbers for 2 folders"),
        (["--data_path", *TWO, "--mix", "1,-1"], "--mix 1,-1: give a number from 0 up"),
        (["--data_path", *TWO, "--mix", "0,0"], "--mix 0,0: give a number from 0 up"),
        (["--data_path", *TWO, "--mix", "1,nan"], "--mix 1,nan: give a number from 0 up"),
        (["--data_path", *TWO, "--mix", "1,inf"], "--mix 1,inf: give a number from 0 up"),
        (["--data_path", *TWO, "--mix", "1e308,1e308"], "--mix 1e308,1e308: give a number from 0 up"),
        (["--data_path", *TWO, "--mix", "1,half"], "--mix 1,half: give a number from 0 up"),
        (["--data_path", *TWO, "--mix", "1,"], "--mix 1,: give a number from 0 up"),
        (["--data_path", *TWO, "--mix", "1,1", "--balance_answers", "1"], "--balance_answers and --mix both say"),
        (["--data_path", "x/a", "--mix", "0"], "--mix 0: give a number from 0 up"),
        (["--mix", "1,2"], "--data_path: give the folder that"),
        (["--data_path", *TWO, "x/./a"], "--data_path: x/a and x/./a are the same folder"),
        (["--data_path", *TWO, "--val_from", "3"], "--val_from 3: give one of the folders of --data_path (x/a, x/b)"),
        (["--data_path", *TWO, "--val_from", "0"], "or its number, 1 to 2"),
        (["--data_path", *TWO, "--val_from", "x"], "--val_from x: give one of the folders"),
        (["--data_path", *TWO, "--image_root", "i", "j", "k"], "--image_root: has 3 folders for 2 folders"),
    ],
)
def test_bad_input_is_one_line(flags, says, tmp_path, capsys):
    assert main(["finetune", "--output_dir", str(tmp_path / "out"), *flags]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def sources(**values):
    return build_config(values).sources


def test_one_folder_is_what_it_was():
    one = sources(data_path="x/a", mix="3")
    assert (one.folders, one.image_roots, one.shares, one.main) == (("x/a",), ("",), (), 0)
    config = build_config({"data_path": "x/a"})
    assert config.of_source(0) is config
    assert sources().folder == ""


def test_the_last_validates_unless_another_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sources(data_path=("a", "b")).folder == "b"
    assert sources(data_path=("a", "b"), val_from="1").folder == "a"
    assert sources(data_path=("a", "b"), val_from=str(tmp_path / "a")).folder == "a"
    assert sources(data_path=("2", "1"), val_from="1").folder == "1"  # a folder's name is stronger than a number


def test_names_are_short_if_they_differ():
    assert sources(data_path=("x/a", "x/b")).names == ("a", "b")
    assert sources(data_path=("x/a", "y/a")).names == ("x/a", "y/a")
    assert sources(data_path=(".", "y/a")).names == (".", "y/a")


def test_an_epoch_shows_once_what_validates_or_else_the_last_with_a_share():
    three = {"data_path": ("a", "b", "c")}
    assert (sources(**three, mix="1,1,1").trained, sources(**three, mix="1,1,1").once) == ((0, 1, 2), 2)
    assert (sources(**three, mix="1,1,0").trained, sources(**three, mix="1,1,0").once) == ((0, 1), 1)
    assert (sources(**three, mix="1,0,1", val_from="2").trained, sources(**three, mix="1,0,1").once) == ((0, 2), 2)


def test_each_source_has_its_own_options():
    flags = {"eval": True, "submission_like": "s.csv"}
    config = build_config({"data_path": ("a", "b"), "image_root": ("", "j"), "fold": 1, "mix": "1,2", **flags})
    first, last = config.of_source(0), config.of_source(1)
    assert (first.data.data_path, first.data.image_root, first.data.fold, first.run.submission_like) == (
        "a",
        "",
        None,
        "",
    )
    assert (last.data.data_path, last.data.image_root, last.data.fold, last.run.submission_like) == (
        "b",
        "j",
        1,
        "s.csv",
    )
    assert build_config({"data_path": ("a", "b"), "image_root": "i"}).of_source(0).data.image_root == "i"


@pytest.mark.parametrize(("written", "means"), [("a", "a"), (["a"], "a"), (["a", "b"], ("a", "b"))])
def test_a_config_file_holds_one_folder_or_a_list(tmp_path, written, means):
    (tmp_path / "config.json").write_text(json.dumps({"data": {"data_path": written}}))
    assert read_config_values(tmp_path / "config.json") == {"data_path": means}


@pytest.mark.parametrize("written", [[], ["a", 1], 1, None])
def test_a_config_file_with_something_else_is_refused(tmp_path, written):
    (tmp_path / "config.json").write_text(json.dumps({"data_path": written}))
    with pytest.raises(InputError, match=r"data_path can't be .* expected str or a list of str"):
        read_config_values(tmp_path / "config.json")
