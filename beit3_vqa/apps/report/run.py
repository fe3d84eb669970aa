"""Make a report, from its runs to its file; the attention maps are computed here, by the runs' own checkpoints."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from beit3_vqa.apps.report.collect import ReportRun, read_runs
from beit3_vqa.apps.report.content import image_file
from beit3_vqa.apps.report.page import read_template, require_own_report, write_report
from beit3_vqa.apps.report.scalars import write_scalars
from beit3_vqa.data.types import AttentionMap, Prediction
from beit3_vqa.engine.logging import Progress
from beit3_vqa.engine.predictor import Predictor, PreparedQuestion, load
from beit3_vqa.errors import InputError, NotFiniteError, plural
from beit3_vqa.models.families import check_parameters
from beit3_vqa.runtime.files import is_file, refuse_to_replace, require_writable

BATCH = 16
WRONG_SHARE = 0.75  # share of wrong answers among the questions that get a map; right ones are there to compare with


def report(
    paths: Sequence[Path],
    output: Path,
    *,
    split: str | None = None,
    attention: int = 200,
    image_root: str = "",
    device: str = "auto",
    tensorboard: str = "",
) -> Path:
    """Write one HTML file about one run or several and return its path.

    Args:
        paths: output folders, or predictions.json files.
        output: the HTML file. A report of the same runs is replaced, any other file isn't.
        split: split whose predictions are shown; None: see `read_runs`.
        attention: for how many questions of each run to compute where the model looked; 0: none.
        image_root: folder of the images, if they have moved.
        device: device that computes the attention.
        tensorboard: folder to which the metrics go as scalars too; empty: nowhere.

    Raises:
        InputError: if a path or an option can't be used.
    """
    if not output.absolute().parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.absolute().parent}; make it first.")
    require_writable(output.parent)
    if output.is_dir():
        raise InputError(f"--output {output} is a folder: give the file a name, such as {output / 'report.html'}.")
    refuse_to_replace("--output", output, [path for path in paths if path.is_file()])
    for path in filter(Path.is_dir, paths):  # a run's own files stay, even those that aren't read
        refuse_to_replace("--output", output, [file for file in path.iterdir() if file.suffix not in (".html", ".htm")])
    read_template()
    runs = read_runs(paths, split)
    other_split = require_own_report(output, runs)
    for run in runs:
        _print_split(run)
        if run.info is not None:
            check_parameters(run.info.model, run.info.parameters, run.path)
    if attention:
        for run in runs:
            run.attention = _load_attention(run, attention, image_root, device)
    for folder in write_scalars(runs, Path(tensorboard)) if tensorboard else ():
        print(f"wrote {folder}")
    written = write_report(runs, output, image_root)
    if other_split:
        print(f"{written}: replaced the report of the split {other_split}; another --output keeps both")
    print(f"wrote {written}, {written.stat().st_size / 1e6:.1f} MB")
    return written


def _print_split(run: ReportRun) -> None:
    """Print which of two splits is shown, and how to see the other."""
    if run.other_split:
        why = f", since the answers of {run.other_split} aren't known" if run.preferred else ""
        print(f"{run.name}: shows the split {run.split}{why}; --split {run.other_split} shows the other")


def worth_a_look(predictions: Sequence[Prediction], most: int) -> list[Prediction]:
    """Choose the questions that get a map: wrong and confident ones first, a quarter right ones.

    If there aren't enough of them, the first ones without a known answer follow.

    Args:
        predictions: predictions of a run.
        most: largest number of questions.
    """

    def sure(p: Prediction) -> float:
        return -p.probabilities.get(p.answer, 0.0)

    known = [p for p in predictions if p.score is not None]
    wrong = sorted((p for p in known if not p.score), key=sure)
    right = sorted((p for p in known if p.score), key=sure)
    of_wrong = min(len(wrong), max(round(WRONG_SHARE * most), most - len(right)))
    chosen = wrong[:of_wrong] + right[: most - of_wrong]
    return chosen + [p for p in predictions if p.score is None][: most - len(chosen)]


def _load_attention(run: ReportRun, most: int, image_root: str, device: str) -> dict[str, AttentionMap]:
    """Compute the maps of the questions worth a look, by id; if that can't be done, print why and return {}."""
    wanted = [(p, image_file(p, image_root or (run.info.image_root if run.info else ""))) for p in run.predictions]
    file_of = {p.id: path for p, path in wanted if path is not None and is_file(path) and p.question}
    chosen = worth_a_look([p for p in run.predictions if p.id in file_of], most)
    if not chosen or run.info is None or not run.info.checkpoint:
        if run.predictions:
            print(f"{run.name}: no attention maps; its images, or the checkpoint that answered, aren't known")
        return {}
    try:
        model = load(run.info.checkpoint, device)
    except InputError as error:
        print(f"{run.name}: no attention maps; {error}")
        return {}
    spec = model.components.task.spec
    if not spec.supports_questions:
        print(f"{run.name}: no attention maps; they exist only for questions about one image, not for {spec.name}")
        return {}
    try:
        return _maps(model, [(p, file_of[p.id]) for p in chosen], run.name)
    except NotFiniteError as error:
        print(f"{run.name}: no attention maps; {error}")
        return {}


def _maps(model: Predictor, chosen: Sequence[tuple[Prediction, Path]], name: str) -> dict[str, AttentionMap]:
    """Compute the maps of questions with image files, by id; print how many answers differ from the predictions."""
    found: dict[str, AttentionMap] = {}
    changed = 0
    progress = Progress(f"attention of {name}", len(chosen))
    for start in range(0, len(chosen), BATCH):
        batch = chosen[start : start + BATCH]
        asked: dict[str, PreparedQuestion] = {}
        for p, path in batch:
            with suppress(InputError):  # it was answered without its image, say
                asked[p.id] = model.prepare(path, p.question, p.choices)
        answer_of = {p.id: p.answer for p, _ in batch}
        for count in {len(one.example.choices) for one in asked.values()}:  # a batch has one number of options
            alike = {row: one for row, one in asked.items() if len(one.example.choices) == count}
            again, maps = model.predict_with_attention(list(alike.values()))
            changed += sum(answer_of[row] != p.answer for row, p in zip(alike, again, strict=True))
            found |= dict(zip(alike, maps, strict=True))
        progress.update(len(batch), dict)
    progress.close()
    if changed:
        print(
            f"{name}: {changed} of {plural(len(found), 'answer')} differ{'s' * (changed == 1)} from the predictions "
            "file. Was it another checkpoint, or --tta?"
        )
    return found
