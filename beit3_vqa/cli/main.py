"""The command line: finds the command, runs it, and turns errors into a message and an exit code."""

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn, TextIO

from beit3_vqa import __version__
from beit3_vqa.cli import other_names
from beit3_vqa.errors import InputError, RunEnded, nearest, visible

MAX_WORD = 100  # characters of a command for which a similar one is looked for

# Each has a file here with its name; in the order of --help.
COMMANDS = (
    "finetune",
    "cross_validate",
    "search",
    "prepare",
    "score",
    "evaluate",
    "predict",
    "ensemble",
    "soup",
    "report",
    "serve",
    "export",
    "bundle",
    "models",
    "download",
    "demo",
    "completion",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    0: done; 2: unusable input; 3: training diverged; 4: another process was lost; 141: the reader of the output
    closed it; 128 + N: signal N came, so 130 for Ctrl-C and 143 for SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _print_anything()
    try:
        with contextlib.redirect_stdout(_VisibleText(sys.stdout)):
            parsed = _parse(arguments)
            code: int = parsed.function(parsed)
            return code
    except InputError as error:
        if not error.said_elsewhere:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except RunEnded as ended:
        print(f"{ended.title}: {ended}", file=sys.stderr)
        return ended.exit_code
    except BrokenPipeError:  # as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a name that is too long, a folder that isn't ours: the system says it well enough
        if not error.filename:
            raise
        print(visible(f"error: {error.filename}: {error.strerror}."), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted. Type the same command again: training goes on from its last checkpoint", file=sys.stderr)
        return 130


def _print_anything() -> None:
    """Print characters that the terminal's encoding lacks as escapes, so that they don't stop the run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _VisibleText(io.TextIOBase):
    """Standard output in which text from data (ids, names in a checkpoint) can't steer the terminal."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(visible(text))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def close(self) -> None:
        """Do nothing: Python closes a stream that it frees, and by then the one below may be closed."""


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line; `function` of the result runs the command."""
    parser = _Parser(prog="beit3-vqa", description="Fine-tune BEiT-3 or CLIP on visual question answering data.")
    parser.add_argument("--version", action="version", version=f"beit3-vqa {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    adders = {name: import_module(f"beit3_vqa.cli.{name}").add for name in COMMANDS}
    # Building only the parser that is called keeps `--help` quick.
    called = arguments[0] if arguments and arguments[0] in adders else None
    for name, add in adders.items():
        add(commands, build=called == name)
    if not arguments:
        listed = "\n".join(f"  {action.dest:<16}{action.help}" for action in commands._choices_actions)
        raise InputError(f"type a COMMAND:\n{listed}\n`beit3-vqa COMMAND --help` shows a command's options.")
    if called is None and not arguments[0].startswith("-"):
        raise InputError(f"there is no command {arguments[0]!r}.{_similar_command(arguments[0])}")
    return parser.parse_args(arguments)


def _similar_command(word: str) -> str:
    """Return what a word that is no command may have meant, or that there is a list."""
    names = {name: name for name in COMMANDS} | other_names.COMMANDS
    found = get_close_matches(word, names, n=1, cutoff=0.5) if len(word) < MAX_WORD else []
    meant = f" Did you mean `beit3-vqa {names[found[0]]}`?" if found else ""
    return f"{meant} `beit3-vqa` alone lists the commands."


def _similar_flag(flag: str, flags: Sequence[str]) -> str:
    """Return ` Did you mean ...?` for an unknown flag: ours for another tool's name, or the nearest of ours."""
    typed = f"--{flag.lstrip('-').replace('-', '_')}"
    ours = typed if typed in flags else other_names.FLAGS.get(typed)
    return f" Did you mean {ours!r}?" if ours in flags and ours != flag else nearest(flag, flags)


class _Parser(argparse.ArgumentParser):
    """A parser that raises InputError, with its epilog, and suggests a flag for a misspelt one."""

    def __init__(self, **options: Any):
        options |= {"formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        if "are required" in message:  # perhaps one of them is there, misspelt
            self._refuse_unknown(self.typed)
        raise InputError(f"{message}.{self._hint()} `{self.prog} --help` lists everything.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.typed: Sequence[str] = args or ()
        parsed, unknown = super().parse_known_args(args, namespace)
        self._refuse_unknown(unknown)
        return parsed, unknown

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        """Raise InputError if one of the words looks like a flag, but is neither one of ours nor how one begins."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        typed = [word.split("=")[0] for word in words]
        typed = [word for word in typed if re.fullmatch(r"--\S+|-[^0-9.\s]\S*", word)]  # a number below 0 is a value
        wrong = [word for word in typed if not any(flag.startswith(word) for flag in flags)]
        if wrong and flags:
            raise InputError(f"unknown option {wrong[0]}.{_similar_flag(wrong[0], flags)}{self._hint()}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            meant = nearest(str(value), map(str, action.choices or ()))
            raise InputError(f"{error}.{meant} `{self.prog} --help` lists everything.") from error

    def _hint(self) -> str:
        return f" {self.epilog}" if self.epilog else ""
