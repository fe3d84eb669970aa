"""`beit3-vqa export`: a trained CLIP as a folder for peft or transformers."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any, build: bool) -> None:
    """Adds the command to the parser; its options only if it is to be built."""
    parser = commands.add_parser("export", help="a trained CLIP as a folder for peft or transformers")
    if not build:
        return
    parser.set_defaults(function=run)
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="one of your checkpoints")
    parser.add_argument("--output_dir", required=True, metavar="FOLDER", type=Path, help="new or empty")
    parser.add_argument("--merge", action="store_true", help="the whole model, adapters added to its weights")
    parser.add_argument("--pretrained", default="", metavar="FOLDER", help="default: the one it was trained on")


def run(parsed: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from beit3_vqa.engine.api import export

    export(parsed.checkpoint, parsed.output_dir, merge=parsed.merge, pretrained=parsed.pretrained)
    return 0
