"""The options of an ensemble."""

import math
from dataclasses import MISSING, dataclass
from pathlib import Path

from beit3_vqa.runtime.fields import Options, option


@dataclass(frozen=True)
class EnsembleOptions(Options):
    """What to join, and how."""

    members: tuple[str, ...] = option(
        MISSING, "predictions (.json), submission, checkpoint, or run folder", positional=True, metavar="MEMBER"
    )
    output: Path = option(MISSING, "the submission, such as e/submission.csv", metavar="FILE")
    vote: str = option("soft", "how the members decide", choices=("hard", "soft", "weighted"))
    max_params: float = option(
        3e9, "limit on the parameters of all models together; default: 3e9, as in SCPC", above=0, below=math.inf
    )
    greedy: bool = option(False, "choose members by forward selection on validation, within --max_params")
    val: tuple[str, ...] = option(
        (),
        "validation predictions of those members that are files of predictions, in the same order; default: "
        "predictions_val.json beside each",
        metavar="FILE",
    )
    params: tuple[str, ...] = option(
        (),
        "parameters of a member whose file doesn't say them; or N,N,... of all such members, in order",
        repeated=True,
        metavar="FILE=N",
    )
    submission_like: Path | None = option(
        None, "a sample submission: write the answers under its columns, in its order", metavar="FILE"
    )
    seed: int = option(0, "seed of the folds and the bootstrap", low=0)
