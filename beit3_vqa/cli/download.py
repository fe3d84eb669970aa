"""`beit3-vqa download NAME`: fetch official weights."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any, build: bool) -> None:
    """Adds the command to the parser; its options only if it is to be built."""
    parser = commands.add_parser("download", help="fetch official weights into checkpoints/")
    if not build:
        return
    parser.set_defaults(function=run)
    parser.add_argument("name", help="a file name of checkpoints/README.md, such as beit3.spm")
    parser.add_argument("--folder", type=Path, default=Path("checkpoints"), help="default: checkpoints")
    parser.add_argument("--url", help="another address to fetch it from")


def run(parsed: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from beit3_vqa.models.beit3.download import download

    print(download(parsed.name, parsed.folder, url=parsed.url))
    return 0
