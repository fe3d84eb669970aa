"""The options of a search itself; those of its trainings are finetune's."""

import math
from dataclasses import MISSING, dataclass
from pathlib import Path

from beit3_vqa.runtime.fields import Options, option

SQLITE, JOURNAL = "sqlite", "journal"


@dataclass(frozen=True)
class SearchOptions(Options):
    """What to search, and for how long."""

    space: Path = option(MISSING, "JSON with the options to search and their values", metavar="FILE")
    trials: int = option(MISSING, "trainings in sum, over all calls and processes", low=1, metavar="N")
    max_hours: float | None = option(
        None,
        "this call begins no trial that may not end in so many hours: none, once the longest so far wouldn't fit",
        unit="hours",
        above=0,
        below=math.inf,
    )
    storage: str = option(
        SQLITE, "what keeps the study in --output_dir; journal for a network drive (NFS)", choices=(SQLITE, JOURNAL)
    )
