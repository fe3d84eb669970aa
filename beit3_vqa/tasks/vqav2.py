"""VQAv2: open-ended questions that ten people answered, over a vocabulary of frequent answers."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from beit3_vqa.data.index import UPSTREAMS_VQA, IndexFiles
from beit3_vqa.data.predictions import write_upstream_results
from beit3_vqa.data.types import EvalResult, PredictionsInfo
from beit3_vqa.tasks.vqa import VQACustom


class VQAv2(VQACustom):
    """Answer questions that ten people answered: an answer scores 0, 0.3, 0.6, 0.9 or 1, by how many of them gave it.

    The metric is the mean score in percent, as upstream computes it; the test server leaves each annotator out in turn,
    which makes its figure a little lower. The model has an output for each row of answer2label.txt (upstream's has
    3,129).
    """

    spec = replace(
        VQACustom.spec,
        name="vqav2",
        head="vqav2",
        files=IndexFiles("vqav2", UPSTREAMS_VQA),
        has_options=False,  # "A" is an answer like any other
        defaults={"vqa_loss": "bce"},
        upstreams_order=("vqav2",),
    )

    def _chance(self, split: str) -> float:
        """Return the score in percent of always giving the answer that scores most on the training rows."""
        if not self.folder.files("train"):
            return 100.0 / self.num_classes
        rows = self.folder.rows("train")
        scores: Counter[int] = Counter()
        for row in rows:
            for label, score in zip(row.get("labels") or (), row.get("scores") or (), strict=True):
                scores[label] += score
        return 100.0 * max(scores.values(), default=0.0) / len(rows)

    def own_results(self, result: EvalResult, info: PredictionsInfo, folder: Path, suffix: str) -> list[Path]:
        """Write the JSON that the test server takes."""
        return [write_upstream_results(result.predictions, folder / f"submit_{self.spec.name}_{info.split}.json")]
