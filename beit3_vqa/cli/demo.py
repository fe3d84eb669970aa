"""`beit3-vqa demo`: the whole pipeline on easy-VQA."""

from dataclasses import dataclass
from pathlib import Path

from beit3_vqa.cli.flags import command_with
from beit3_vqa.runtime.fields import Options, option


@dataclass(frozen=True)
class DemoOptions(Options):
    """Which model the demo trains, how long, and where to."""

    output_dir: Path = option(
        Path("demo_output"),
        "folder for everything; new or empty, or one in which the demo was interrupted: it goes on there",
    )
    model: str = option("beit3", "family of models", choices=("beit3", "clip"))
    quick: bool = option(False, "fewer images and epochs, and a weaker model")
    seed: int = option(0, "seed of the trainings")


def run(options: DemoOptions) -> int:
    """Run the command and return its exit code."""
    from beit3_vqa.apps.demo import demo
    from beit3_vqa.cli.main import main

    return demo(main, **vars(options))


add = command_with(DemoOptions, "demo", "try everything on a small data set (easy-VQA), on a CPU", run)
