"""`beit3-vqa download NAME`: fetch official weights."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from beit3_vqa.cli.flags import command_with
from beit3_vqa.runtime.fields import Options, option


@dataclass(frozen=True)
class DownloadOptions(Options):
    """What to fetch, and where to."""

    name: str = option(
        MISSING, "an official file, such as beit3.spm; any other name lists them", positional=True, metavar="name"
    )
    folder: Path = option(Path("checkpoints"), "folder to write to")
    url: str | None = option(None, "address to fetch it from, if not the official one")


def run(options: DownloadOptions) -> int:
    """Run the command and return its exit code."""
    from beit3_vqa.models.beit3.download import download

    print(download(**vars(options)))
    return 0


add = command_with(DownloadOptions, "download", "fetch official weights into checkpoints/", run)
