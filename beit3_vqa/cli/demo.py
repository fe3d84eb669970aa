"""`beit3-vqa demo`: the whole road on easy-VQA."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any, build: bool) -> None:
    """Adds the command to the parser; its options only if it is to be built."""
    parser = commands.add_parser("demo", help="the whole road on easy-VQA, on a CPU")
    if not build:
        return
    parser.set_defaults(function=run)
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"), help="default: demo_output")
    parser.add_argument("--model", choices=("beit3", "clip"), default="beit3", help="default: beit3")
    parser.add_argument("--quick", action="store_true", help="fewer images and epochs, and a weaker model")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")


def run(parsed: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from beit3_vqa.apps.demo import demo

    return demo(parsed.main, parsed.output_dir, model=parsed.model, quick=parsed.quick, seed=parsed.seed)
