"""`beit3-vqa models`: names, resolutions and parameters."""

import argparse
from typing import Any


def add(commands: Any, build: bool) -> None:
    """Adds the command to the parser; its options only if it is to be built."""
    commands.add_parser("models", help="names, resolutions and parameters").set_defaults(function=run)


def run(parsed: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from beit3_vqa.models.registry import count_parameters, listed_names, parse_name

    print(f"{'model':<28} {'resolution':>10} {'parameters':>13}   (4 classes; any resolution the patch divides works)")
    for name in listed_names():
        parsed_name = parse_name(name, head="vqacustom")
        print(f"{name:<28} {parsed_name.img_size:>10} {count_parameters(parsed_name, num_classes=4):>13,}")
    return 0
