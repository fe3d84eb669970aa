"""NLVR2: whether a sentence about two photographs is true (Suhr et al. 2019, https://lil.nlp.cornell.edu/nlvr/)."""

from pathlib import Path

from beit3_vqa.config.config import RunConfig
from beit3_vqa.data.dataset import get_text
from beit3_vqa.data.index import IndexFiles
from beit3_vqa.data.rows import Row, RowFormat, fold_problem, id_problem, image_problem, text_problem
from beit3_vqa.data.tables import csv_line
from beit3_vqa.data.types import EvalResult, Example, Inputs, PredictionsInfo
from beit3_vqa.runtime.files import write_text
from beit3_vqa.tasks.base import TaskSpec
from beit3_vqa.tasks.classification import ClassTask, label_problem
from beit3_vqa.tasks.folder import PreparedFolder

CLASSES = ("False", "True")


def _problem(row: Row) -> str:
    problem = image_problem(row) or image_problem(row, "image2_path") or id_problem(row.get("identifier"))
    problem = problem or text_problem(row) or label_problem(row) or fold_problem(row)
    return problem or ("" if row.get("label", 0) < len(CLASSES) else "label must be 0 (False) or 1 (True)")


def _name(row: Row) -> str:
    return str(row["identifier"])


class NLVR2(ClassTask):
    """Judge whether the sentence of a row is true of its two images.

    Rows are `{"image_path", "image2_path", "text_segment", "label", "identifier"}`, the sentence as text or token ids.
    """

    spec = TaskSpec(
        name="nlvr2",
        head="nlvr2",
        files=IndexFiles(
            "nlvr2",
            {
                "train": ("nlvr2.train.index.jsonl",),
                "val": ("nlvr2.dev.index.jsonl",),
                "test": ("nlvr2.test-P.index.jsonl",),
            },
        ),
        row_format=RowFormat(_problem, _name),
        inputs=Inputs(images=("image_a", "image_b"), text="text_description"),
        unit="sentences",
    )

    def __init__(self, config: RunConfig, folder: PreparedFolder | None = None):
        super().__init__(CLASSES, config, folder)

    def example(self, row: Row, place: int) -> Example:
        """Return a sentence about two images."""
        text, token_ids = get_text(row)
        example = Example(
            id=_name(row),
            image_path=row["image_path"],
            more_image_paths=(row["image2_path"],),
            question=text,
            token_ids=token_ids,
        )
        return self.labelled(example, row)

    def own_results(self, result: EvalResult, info: PredictionsInfo, folder: Path, suffix: str) -> list[Path]:
        """Write the CSV of NLVR2's own evaluation script: identifier and answer on each line."""
        lines = (csv_line((p.id, p.answer)) for p in result.predictions)
        return [write_text(folder / f"submit_{self.spec.name}_{info.split}.csv", lines)]
