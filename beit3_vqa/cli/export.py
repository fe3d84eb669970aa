"""`beit3-vqa export`: a trained CLIP as a folder for peft or transformers."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from beit3_vqa.cli.flags import command_with
from beit3_vqa.runtime.fields import Options, option


@dataclass(frozen=True)
class ExportOptions(Options):
    """What to export, and where to."""

    checkpoint: str = option(MISSING, "one of your checkpoints", metavar="FILE")
    output_dir: Path = option(MISSING, "new or empty", metavar="FOLDER")
    merge: bool = option(False, "the whole model, adapters added to its weights")
    pretrained: str = option("", "folder of the pretrained CLIP; default: the one it was trained on", metavar="FOLDER")


def run(options: ExportOptions) -> int:
    """Run the command and return its exit code."""
    from beit3_vqa.engine.api import export

    export(options.checkpoint, options.output_dir, merge=options.merge, pretrained=options.pretrained)
    return 0


add = command_with(ExportOptions, "export", "save a trained CLIP as a folder for peft or transformers", run)
