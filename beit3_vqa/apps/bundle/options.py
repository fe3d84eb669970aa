"""The options of a bundle."""

import datetime
from dataclasses import MISSING, dataclass
from pathlib import Path

from beit3_vqa.errors import InputError, one_line
from beit3_vqa.runtime.fields import Options, option


@dataclass(frozen=True)
class BundleOptions(Options):
    """What to pack, and what is to be said about it."""

    members: tuple[str, ...] = option(
        MISSING,
        "checkpoints, run folders or exported folders; the answers of several are averaged",
        positional=True,
        metavar="CHECKPOINT",
    )
    output: Path = option(MISSING, "the zip, such as submit.zip", metavar="FILE")
    table: Path | None = option(
        None,
        "try it out on this CSV, such as the contest's, and --image_root; default: --split of --data_path",
        metavar="FILE",
    )
    columns: str = option(
        "", "with --table: what columns mean, as for `prepare table`; default: by names", metavar="MEANING=NAME,..."
    )
    weights_license: str = option("", "for its README.md: licence of the weights that training began with; as you say")
    weights_date: str = option("", "for its README.md: when those weights were published, YYYY-MM-DD", metavar="DATE")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output.suffix.lower() != ".zip" or self.output.is_dir():
            raise InputError(f"--output {self.output}: give the name of a file that ends in .zip.")
        if self.columns and not self.table:
            raise InputError("--columns: belongs to --table.")
        if self.weights_license != one_line(self.weights_license):
            raise InputError(f"--weights_license {self.weights_license!r}: must be one line of text.")
        if self.weights_date:
            try:
                datetime.date.fromisoformat(self.weights_date)
            except ValueError:
                raise InputError(f"--weights_date {self.weights_date}: write it as 2025-06-30.") from None
