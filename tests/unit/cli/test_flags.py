"""A dataclass of options as the flags of a command, and back."""

import argparse
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

import pytest

from beit3_vqa.cli.flags import command_with
from beit3_vqa.errors import InputError
from beit3_vqa.runtime.fields import Options, option


@dataclass(frozen=True)
class Example(Options):
    """All that an option may be."""

    files: tuple[Path, ...] = option(MISSING, "what to read", positional=True, metavar="FILE")
    output: Path = option(MISSING, "where to", metavar="FILE")
    pair: tuple[float, ...] = option((1.0, 2.0), "numbers of one flag")
    note: tuple[str, ...] = option((), "texts, each with its flag", repeated=True)
    size: int | Literal["auto"] = option(8, "100% of it", low=1, aliases=("length",))
    name: str | None = option(None, "a text")
    keep: bool = option(True, "keep it")


def parse(*arguments):
    parser = argparse.ArgumentParser(prog="x", exit_on_error=False)
    seen = []
    command_with(Example, "try", "a command", lambda options: seen.append(options) or 0)(parser.add_subparsers(), True)
    parsed = parser.parse_args(["try", *map(str, arguments)])
    assert parsed.function(parsed) == 0
    return seen[0]


def test_options_that_are_not_typed_keep_their_default():
    assert parse("a", "b", "--output", "c") == Example((Path("a"), Path("b")), Path("c"))


def test_every_kind_of_value_is_parsed():
    given = ["--pair", 3, 4, "--note", "p", "--output", "c", "--note", "q", "--length", 5, "--name", "n", "--no_keep"]
    assert parse("a", *given) == Example((Path("a"),), Path("c"), (3.0, 4.0), ("p", "q"), 5, "n", False)


def test_a_repeated_flag_takes_one_value_each_time():
    assert parse("--output", "c", "--note", "p", "a").files == (Path("a"),)


def test_a_word_is_parsed_as_itself_and_bounds_are_checked():
    assert parse("a", "--output", "c", "--size", "auto").size == "auto"
    with pytest.raises(InputError, match=r"^--size 0: must be at least 1, or auto\.$"):
        parse("a", "--output", "c", "--size", 0)


def test_help_shows_types_and_defaults(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    said = " ".join(capsys.readouterr().out.split())
    for text in (
        "FILE what to read",
        "--length INT|auto 100% of it (default: 8)",
        "--pair FLOAT [FLOAT ...] numbers of one flag (default: 1.0 2.0)",
        "--note STR texts, each with its flag (default: none)",
        "--keep keep it (default: on; --no_keep)",
    ):
        assert text in said
    assert "--size INT|auto, --length" in said or "--size, --length" in said  # as Python 3.13 writes it
    assert "--no_keep keep" not in said
