"""What messages quote from data: no control characters, no flood, no lines that aren't ours."""

import argparse
import sys

import pytest

from beit3_vqa.cli.main import main
from beit3_vqa.errors import MAX_LINE, InputError, nearest, one_line, plural, short, visible

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202eevil\x7f"


def harmless(text):
    return all(c in "\t\n" or c.isprintable() or c == "\u3000" for c in text)


def test_control_characters_become_escapes():
    assert visible(HOSTILE) == r"\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202eevil\x7f"
    assert visible("한국어 é\t\n🙂") == "한국어 é\t\n🙂"
    assert one_line("a\nerror: b\u2028c") == r"a\nerror: b\u2028c"


def test_messages_are_harmless_and_short():
    message = str(InputError(f"row {HOSTILE}: " + "x" * 10**6 + " save it as UTF-8"))
    assert harmless(message)
    assert len(message) <= MAX_LINE + 10
    assert message.startswith(r"row \x1b]0;")
    assert message.endswith("save it as UTF-8")
    assert str(InputError(str(InputError(HOSTILE)))) == str(InputError(HOSTILE))


def test_a_listed_problem_takes_one_line():
    said = str(InputError.of_problems("two rows:", ["row a\nerror: forged", "row b"]))
    assert said.split("\n") == ["two rows:", r"  row a\nerror: forged", "  row b"]


def test_values_of_any_size_depth_and_shape_are_named():
    circular: list = []
    circular.append(circular)
    laughs: list = ["ha"]
    for _ in range(60):
        laughs = [laughs] * 10
    deep: list = []
    for _ in range(10**5):
        deep = [deep]
    for value in (circular, laughs, deep, 10**6000, "x" * 10**7, {"k" * 10**6: [HOSTILE] * 99}):
        assert len(short(value)) <= 100
        assert harmless(short(value))


def test_no_suggestion_is_sought_for_a_very_long_word():
    assert nearest("x" * 10**6, ["y" * 10**6]) == ""
    assert nearest("confg", ["config"]) == " Did you mean 'config'?"


@pytest.mark.parametrize("arguments", [["finetune", f"--{HOSTILE}"], ["finetune", "--config", HOSTILE], [HOSTILE]])
def test_the_terminal_gets_no_control_characters(arguments, capsys):
    assert main(arguments) == 2
    assert harmless(capsys.readouterr().err)


def test_standard_output_is_guarded_while_a_command_runs(monkeypatch, capsys):
    def command(parsed):
        print(HOSTILE)
        return 0

    stream = sys.stdout
    monkeypatch.setattr("beit3_vqa.cli.main._parse", lambda arguments: argparse.Namespace(function=command))
    assert main([]) == 0
    assert capsys.readouterr().out == visible(HOSTILE) + "\n"
    assert sys.stdout is stream


def test_one_thing_is_counted_in_the_singular():
    assert [plural(number, "epoch") for number in (0, 1, 2, 9673)] == [
        "0 epochs",
        "1 epoch",
        "2 epochs",
        "9,673 epochs",
    ]


def test_what_was_typed_is_never_suggested():
    assert nearest("val", ["val"]) == ""
    assert nearest("val", ["val", "vale"]) == " Did you mean 'vale'?"
