"""The command line: finds the command, runs it, and turns errors into a message and an exit code."""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn, TextIO

from beit3_vqa import __version__
from beit3_vqa.errors import InputError, RunEnded, nearest, visible

# Command -> its file here.
COMMANDS: dict[str, str] = {
    "finetune": "finetune",
    "cross_validate": "cross_validate",
    "prepare": "prepare",
    "score": "score",
    "evaluate": "evaluate",
    "predict": "predict",
    "ensemble": "ensemble",
    "report": "report",
    "serve": "serve",
    "export": "export",
    "models": "models",
    "download": "download",
    "demo": "demo",
    "completion": "completion",
}


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


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line; `function` of the result runs the command."""
    parser = _Parser(prog="beit3-vqa", description="Fine-tune BEiT-3 or CLIP on visual question answering data.")
    parser.add_argument("--version", action="version", version=f"beit3-vqa {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    adders = {name: import_module(f"beit3_vqa.cli.{file}").add for name, file in COMMANDS.items()}
    # Building only the parser that is called keeps `--help` quick.
    called = arguments[0] if arguments and arguments[0] in adders else None
    for name, add in adders.items():
        add(commands, build=called == name)
    return parser.parse_args(arguments)


class _Parser(argparse.ArgumentParser):
    """A parser that raises InputError, with its epilog, and suggests a flag for a misspelt one."""

    def __init__(self, **options: Any):
        options |= {"formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}.{self._hint()} `{self.prog} --help` lists everything.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = super().parse_known_args(args, namespace)
        flags = [flag for action in self._actions for flag in action.option_strings]
        wrong = [word for word in unknown if word.startswith("--")]
        if wrong and flags:
            raise InputError(f"unknown option {wrong[0]}.{nearest(wrong[0].split('=')[0], flags)}{self._hint()}")
        return parsed, unknown

    def _hint(self) -> str:
        return f" {self.epilog}" if self.epilog else ""
