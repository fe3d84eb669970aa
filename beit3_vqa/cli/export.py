"""`beit3-vqa export`: a trained model as a folder that others can use."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from beit3_vqa.cli.flags import command_with
from beit3_vqa.runtime.fields import Options, option


@dataclass(frozen=True)
class ExportOptions(Options):
    """What to export, and where to."""

    checkpoint: str = option(MISSING, "one of your checkpoints", metavar="FILE")
    output_dir: Path = option(MISSING, "new or empty", metavar="FOLDER")
    format: tuple[str, ...] = option(
        ("safetensors",), "BEiT-3: weights (safetensors), graphs (onnx, pt2), or several of them", metavar="NAME"
    )
    merge: bool = option(False, "CLIP: the whole model, adapters added to its weights")
    pretrained: str = option("", "folder of the pretrained CLIP; default: the one it was trained on", metavar="FOLDER")
    license: str = option("", "for the model card, such as apache-2.0; default: not stated", metavar="NAME")
    dataset: str = option("", "a line for the model card: what it was trained on", metavar="TEXT")
    push_to_hub: str = option("", "also upload the folder to the Hugging Face hub", metavar="OWNER/NAME")
    public: bool = option(False, "a repository that --push_to_hub makes can be seen by everybody")


def run(options: ExportOptions) -> int:
    """Run the command and return its exit code."""
    from beit3_vqa.engine.export import export

    export(
        options.checkpoint,
        options.output_dir,
        merge=options.merge,
        pretrained=options.pretrained,
        formats=options.format,
        license=options.license,
        dataset=options.dataset,
        push_to_hub=options.push_to_hub,
        public=options.public,
    )
    return 0


add = command_with(ExportOptions, "export", "save a trained model as a folder for other programs, or for the hub", run)
