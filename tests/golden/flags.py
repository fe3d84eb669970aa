"""Every flag of every command, a line each: what `flags_0.1.0.txt` holds of version 0.1.0.

python -m tests.golden.flags > tests/golden/flags_NEW.txt
"""

import argparse
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from beit3_vqa.cli.main import COMMANDS


def flags() -> list[str]:
    """Return `COMMAND FLAG takes NUMBER`, and `COMMAND FLAG defaults to WORD` where its help says it in one word."""
    commands: Any = argparse.ArgumentParser().add_subparsers()
    for file in COMMANDS:
        import_module(f"beit3_vqa.cli.{file}").add(commands, build=True)
    return sorted(line for name in COMMANDS for line in _list_flags(name, commands.choices[name]))


def _list_flags(command: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from _list_flags(f"{command} {name}", inner)
            continue
        takes = (
            "many, repeated"
            if isinstance(action, argparse._AppendAction)
            else {None: "1", "+": "many"}.get(action.nargs, str(action.nargs))
        )
        said = re.search(r"default: ([^\s;)]+)(?=[;)]|$)", action.help or "")
        for name in action.option_strings or [str(action.metavar or action.dest)]:
            yield f"{command} {name} takes {takes}{', required' if action.required else ''}"
            if said:
                yield f"{command} {name} defaults to {said[1]}"


if __name__ == "__main__":
    print("\n".join(flags()))
