"""The options of a soup."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from beit3_vqa.runtime.fields import Options, option

UNIFORM, GREEDY, LEARNED = "uniform", "greedy", "learned"
METHODS = (UNIFORM, GREEDY, LEARNED)
ALL = "all"
MOST_MEMBERS = 8


@dataclass(frozen=True)
class SoupOptions(Options):
    """What to average, and how."""

    members: tuple[str, ...] = option(
        MISSING,
        f"checkpoints of one model, at most {MOST_MEMBERS}, or run folders",
        positional=True,
        metavar="CHECKPOINT",
    )
    output_dir: Path = option(MISSING, "folder for checkpoint-best.pth and soup.json", metavar="FOLDER")
    method: tuple[str, ...] = option(
        (UNIFORM, GREEDY),
        "how the checkpoints are weighted; several are compared, and the best is kept",
        choices=(*METHODS, ALL),
        metavar="METHOD",
    )
    split: str = option("val", "what the soups are compared on", choices=("test", "test-dev", "val", "train"))
    keep_anyway: bool = option(False, "write the best soup even if the best single checkpoint scores higher")
    passes: int = option(
        20, "passes with gradients over the split that learned weights may take at most", low=1, high=1000
    )
    seed: int = option(0, "seed of the tests", low=0)

    @property
    def methods(self) -> tuple[str, ...]:
        """Return the methods to compare, each once, the cheapest first."""
        return tuple(name for name in METHODS if name in self.method or ALL in self.method)
