"""Read and check what a report is made from: run folders and files of predictions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from beit3_vqa.apps.report.curves import Curves, read_curves
from beit3_vqa.data.predictions import get_suffix, predictions_file, read_info, read_predictions
from beit3_vqa.data.types import AttentionMap, Prediction, PredictionsInfo
from beit3_vqa.errors import InputError, one_line
from beit3_vqa.metrics.label_errors import LABEL_ERRORS_FILE, find_label_errors
from beit3_vqa.runtime.files import missing, read_json, real_path

MAX_RUNS = 8  # colours that can be told apart
MAX_JSON = 10_000_000  # bytes of config.json and of metrics.json
SPLITS = ("test", "val")  # which comes first, if none is asked for


@dataclass
class ReportRun:
    """One run, as the report shows it.

    Attributes:
        name: short name, different from every other run's.
        path: path as it was typed on the command line.
        curves: see `read_curves`; empty for a file of predictions.
        config: the values of config.json by group, empty if there is none.
        predictions: in the order of their file; empty if there are none.
        info: content of the .info.json beside the predictions, if there is one.
        split: split whose predictions are shown; empty for a file of predictions, or if there are none.
        evaluated: the values of the metrics.json of these predictions, empty if there is none.
        other_split: split that has predictions too but isn't shown; empty if there is none.
        preferred: whether the split is shown because the other one's answers aren't known.
        attention: id of a question -> where the model looked.
        label_errors: ids of the questions whose given answer is likely wrong, the likeliest first; empty unless the
            predictions are out-of-fold.
    """

    name: str
    path: Path
    curves: Curves = field(default_factory=Curves)
    config: dict[str, object] = field(default_factory=dict)
    predictions: list[Prediction] = field(default_factory=list)
    info: PredictionsInfo | None = None
    split: str = ""
    evaluated: dict[str, object] = field(default_factory=dict)
    other_split: str = ""
    preferred: bool = False
    attention: dict[str, AttentionMap] = field(default_factory=dict)
    label_errors: list[str] = field(default_factory=list)

    @property
    def answers_known(self) -> bool:
        """Return whether there is a prediction that can be scored."""
        return any(p.score is not None for p in self.predictions)


def read_runs(paths: Sequence[Path], split: str | None = None) -> list[ReportRun]:
    """Read the runs of a report.

    Args:
        paths: output folders, or predictions.json files.
        split: split whose predictions are wanted; None: the test split's if their answers are known, else the
            validation's if theirs are, else those that are there.

    Raises:
        InputError: if a path holds nothing to show, predictions can't be used, or the same ids stand for other
            questions in another run.
    """
    if len(paths) > MAX_RUNS:
        raise InputError(f"a report shows up to {MAX_RUNS} runs, not {len(paths)}: name fewer.")
    if len({real_path(path) for path in paths}) < len(paths):
        raise InputError("a run is named twice; name each once.")
    runs = [_read_run(path, split) for path in paths]
    for run, name in zip(runs, _names(paths), strict=True):
        run.name = name
    _check_same_questions(runs)
    return runs


def _read_run(path: Path, split: str | None) -> ReportRun:
    """Read a run that has no name yet."""
    if path.is_file() and path.suffix.lower() == ".json":
        info = read_info(path)
        run = ReportRun("", path, predictions=read_predictions(path, info), info=info)
        if not run.predictions:
            raise InputError(f"{path} has nothing to show: it holds no predictions.")
        run.label_errors = _find_label_errors(path, run)
        return run
    if not path.is_dir():
        raise InputError(missing("run folder or predictions file", path))
    run = ReportRun("", path, read_curves(path), _read_object(path / "config.json"))
    there = [name for name in SPLITS if predictions_file(path, name).exists()]
    if split and split not in there:
        raise InputError(
            f"{path} has no {predictions_file(path, split).name}: evaluate with --eval --split {split} first."
        )
    if there:
        _show_best(run, [split] if split else there)
        run.other_split = next((name for name in there if name != run.split), "")
    if not run.predictions and not run.curves["steps"] and not run.curves["epochs"]:
        raise InputError(f"{path} has nothing to show: no log.txt, no TensorBoard events, no predictions.json.")
    return run


def _show_best(run: ReportRun, splits: Sequence[str]) -> None:
    """Read the predictions of the first split whose answers are known; if none is, of the first."""
    for split in splits:
        _show_split(run, split)
        if run.answers_known:
            run.preferred = split != splits[0]
            return
    if len(splits) > 1:
        _show_split(run, splits[0])


def _show_split(run: ReportRun, split: str) -> None:
    """Read the predictions of a split, and what lies beside them."""
    file = predictions_file(run.path, split)
    run.split = split
    run.info = read_info(file)
    run.predictions = read_predictions(file, run.info)
    run.evaluated = _read_object(run.path / f"metrics{get_suffix(split)}.json")
    run.label_errors = _find_label_errors(file, run)


def _find_label_errors(file: Path, run: ReportRun) -> list[str]:
    """Return the ids of likely label errors if the file is cross_validate's, of models that hadn't seen the rows."""
    is_out_of_fold = run.info is not None and run.info.split == "train" and not run.info.checkpoint
    if not is_out_of_fold or not file.with_name(LABEL_ERRORS_FILE).is_file():
        return []
    return [error.prediction.id for error in find_label_errors(run.predictions)]


def _read_object(path: Path) -> dict[str, object]:
    """Read a JSON object; return {} if it can't be read, since it only adds a few facts."""
    if not path.is_file():
        return {}
    try:
        content = read_json(path, MAX_JSON)
    except InputError:
        return {}
    return content if isinstance(content, dict) else {}


def _names(paths: Sequence[Path]) -> list[str]:
    """Name each run by the last parts of its path, as many as it takes to tell all of them apart."""
    whole = [real_path(path) for path in paths]
    for parts in range(1, max(len(path.parts) for path in whole) + 1):
        names = ["/".join(path.parts[-parts:]) for path in whole]
        if len(set(names)) == len(names):
            break
    return names


def _check_same_questions(runs: Sequence[ReportRun]) -> None:
    """Raise InputError if an id stands for different questions, images, options or true answers in two runs."""
    seen: dict[str, tuple[Prediction, str]] = {}
    problems = []
    for run in runs:
        for p in run.predictions:
            other, where = seen.setdefault(p.id, (p, run.name))
            same = (other.question, other.choices) == (p.question, p.choices)
            same = same and (not other.image or not p.image or other.image == p.image)
            if not same or (other.truth is not None and p.truth is not None and other.truth != p.truth):
                problems.append(f"row {p.id}: {one_line(where)} and {one_line(run.name)}")
    if problems:
        raise InputError.of_problems(
            "the same ids stand for other questions, images, options or true answers:",
            problems,
            "Runs on other data, or with options in another order: write a report for each.",
        )
