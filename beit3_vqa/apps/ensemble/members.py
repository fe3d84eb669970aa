"""The members of an ensemble: what the command line names, how many parameters they have, and their predictions."""

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from beit3_vqa.config.resolve import GivenOptions
from beit3_vqa.data.given_answers import is_given_answers, read_submission
from beit3_vqa.data.predictions import info_file, predictions_file, read_info, read_predictions
from beit3_vqa.data.types import Prediction, PredictionsInfo
from beit3_vqa.engine.api import evaluate
from beit3_vqa.engine.build import plan_evaluation
from beit3_vqa.engine.checkpoint.manifest import get_sha256
from beit3_vqa.engine.checkpoint.portable import find_best_checkpoint
from beit3_vqa.errors import InputError, nearest, plural
from beit3_vqa.models.families import check_parameters
from beit3_vqa.runtime.files import real_path
from beit3_vqa.tasks import find_task


@dataclass(frozen=True)
class Member:
    """A model of an ensemble.

    Attributes:
        name: name that the user typed.
        path: its file of predictions, its submission, or its checkpoint.
        parameters: all parameters of its model.
        weights: identity of its weights: the checkpoint's SHA-256, or the name if that isn't known.
        info: content of the .info.json beside its predictions; None if there is none, and for a checkpoint.
        given: options to evaluate the checkpoint with; None for a file of predictions.
        is_submission: whether its file has answers without probabilities.
    """

    name: str
    path: Path
    parameters: int
    weights: str
    info: PredictionsInfo | None = None
    given: GivenOptions | None = None
    is_submission: bool = False


@dataclass(frozen=True)
class Answered:
    """What a member answers.

    Attributes:
        predictions: one for each question.
        info: content of the .info.json beside them; None if there is none.
        origins: id -> where it is, such as `FILE:LINE`, for a submission; None for other members.
    """

    predictions: list[Prediction]
    info: PredictionsInfo | None = None
    origins: Mapping[str, str] | None = None


# A checkpoint may have any name, so that a table is told by its own.
_TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".xls", ".parquet", ".feather", ".jsonl", ".ndjson")


def is_submission(path: Path) -> bool:
    """Return whether a member is a table of answers, such as a submission."""
    return path.suffix.lower() in (*_TABLES, ".json") and is_given_answers(path)


def require_once(names: Sequence[str], paths: Sequence[Path]) -> None:
    """Raise InputError if two names mean one file; the files are those of the names."""
    resolved = [real_path(path) for path in paths]
    twice = [name for name, path in zip(names, resolved, strict=True) if resolved.count(path) > 1]
    if twice:
        raise InputError(f"{twice[-1]} is given twice; a member has one vote.")


def find_members(
    names: Sequence[str], params: Sequence[str], evaluation: Mapping[str, object], folder: Path
) -> list[Member]:
    """Find the members and their numbers of parameters, without evaluating or loading a model.

    Args:
        names: predictions.json files, submissions, checkpoints, or run folders with a checkpoint-best.pth.
        params: `FILE=N`, the parameters of members whose files don't say them, or `N,N` for all of these in order.
        evaluation: options of `--eval` by flat name, for checkpoints.
        folder: folder for the results of checkpoints, each in a folder of its own.

    Raises:
        InputError: if a file isn't there, a member is named twice, a number of parameters isn't known, or a checkpoint
            is given without --data_path.
    """
    paths = [find_best_checkpoint(name, kind="checkpoint or predictions.json") for name in names]
    require_once(names, paths)
    _require_data([n for n, path in zip(names, paths, strict=True) if not _has_answers(path)], evaluation)
    infos = {path: None if is_submission(path) else read_info(path) for path in paths if _has_answers(path)}
    untold = [name for name, path in zip(names, paths, strict=True) if path in infos and infos[path] is None]
    given: dict[str, int] = {}
    for text in params:
        given |= _given_parameters(text, names, [name for name in untold if name not in given])
    for path, info in infos.items():
        if info is not None:
            check_parameters(info.model, info.parameters, info_file(path))
    unknown = [name for name in untold if name not in given]
    if unknown:
        raise InputError.of_problems(
            "how many parameters do the models of these members have? No .info.json beside them says it:",
            unknown,
            f"Say it for each, with --params {unknown[0]}=N (`beit3-vqa models` lists models and their parameters) or "
            "--params N,N in this order, or evaluate them again, which writes it.",
        )
    return [
        _of_predictions(name, path, infos[path], given.get(name))
        if path in infos
        else _of_checkpoint(name, path, evaluation, folder / f"{number}-{path.parent.name}-{path.stem}", given)
        for number, (name, path) in enumerate(zip(names, paths, strict=True), start=1)
    ]


def _has_answers(path: Path) -> bool:
    return path.suffix == ".json" or is_submission(path)


def _given_parameters(text: str, names: Sequence[str], untold: Sequence[str]) -> dict[str, int]:
    """Parse `FILE=N` or `N,N` of --params: name -> number; InputError if it is neither, or doesn't fit the members."""
    name, equals, number = text.rpartition("=")
    numbers = [number.replace(",", "").replace("_", "")] if equals else text.split(",")
    # Three numbers or one with separators? 223,307,524 is no three models.
    grouped = not equals and len(numbers) > 1 and all(len(digits) <= 3 for digits in numbers)
    plain = all(digits.isdecimal() and 0 < len(digits) < 19 and int(digits) for digits in numbers)
    if not plain or grouped or (equals and not name) or (not equals and len(numbers) != len(untold)):
        listed = f" ({', '.join(untold)})" if untold else ""
        raise InputError(
            f"--params {text}: write FILE=N, such as {names[0]}=676582404, or N,N, numbers of four digits or more "
            f"without other commas: one for each of the {len(untold)} members whose files don't say theirs{listed}, in "
            "order."
        )
    if equals and name not in names:
        raise InputError(f"--params {text}: {name} isn't one of the members.{nearest(name, names)}")
    return dict(zip([name] if equals else untold, map(int, numbers), strict=True))


def _require_data(checkpoints: Sequence[str], evaluation: Mapping[str, object]) -> None:
    """Raise InputError if checkpoints are given without --data_path, on which to evaluate them."""
    if checkpoints and not evaluation.get("data_path"):
        raise InputError(
            f"{checkpoints[0]} is a checkpoint, which has to be evaluated first: give the prepared folder with "
            "--data_path, or its predictions.json in its place."
        )


def _of_predictions(name: str, path: Path, info: PredictionsInfo | None, given: int | None) -> Member:
    """Make a member of a file of predictions; raise InputError if --params contradicts its .info.json."""
    if info is not None and given not in (None, info.parameters):
        raise InputError(
            f"--params {name}={given}: {info_file(path)} says {info.parameters:,}, as counted when it was evaluated. "
            "Leave the option out."
        )
    parameters = info.parameters if info is not None else given
    assert parameters is not None
    weights = info.sha256 if info is not None and info.sha256 else name
    return Member(name, path, parameters, weights, info, is_submission=is_submission(path))


def _of_checkpoint(
    name: str, path: Path, evaluation: Mapping[str, object], folder: Path, given: Mapping[str, int]
) -> Member:
    """Make a member of a checkpoint; raise InputError if its task has no single answers, or --params contradicts it."""
    values = {**evaluation, "eval": True, "resume": str(path), "output_dir": str(folder)}
    options = GivenOptions(values, typed_flags=frozenset(evaluation))  # nobody typed the file after --resume
    options, parameters = plan_evaluation(options)
    task = options["task"]
    if not find_task(task).spec.per_example:
        raise InputError(f"{name}: was trained on {task}, whose results aren't answers that can be joined.")
    if given.get(name, parameters) != parameters:
        raise InputError(f"--params {name}={given[name]}: its model has {parameters:,}. Leave the option out.")
    return Member(name, path, parameters, get_sha256(path), given=options)


def total_parameters(members: Iterable[Member]) -> int:
    """Count the parameters of all models, even if they are loaded one after the other; the same weights count once."""
    counted: dict[str, int] = {}
    for member in members:
        counted[member.weights] = max(member.parameters, counted.get(member.weights, 0))
    return sum(counted.values())


def load_answers(member: Member, split: str) -> Answered:
    """Read a member's predictions, or submission; evaluate a checkpoint on the split first."""
    if member.is_submission:
        predictions, origins = read_submission(member.path)
        return Answered(predictions, origins=origins)
    if member.given is None:
        return Answered(read_predictions(member.path, member.info), member.info)
    result = evaluate(member.given.also(split=split))
    gc.collect()  # one model at a time: nothing of this one is left when the next is loaded
    return Answered(result.predictions, read_info(predictions_file(Path(member.given["output_dir"]), split)))


def _way(info: PredictionsInfo) -> str:
    """Return the options of --eval on which the probabilities depend."""
    return f"--temperature {info.temperature:g} --tta {info.tta}"


def load_validation(members: Sequence[Member], given: Sequence[str], *, needed: bool) -> list[list[Prediction]] | None:
    """Read each member's validation predictions; evaluate checkpoints to get theirs.

    Args:
        members: in order.
        given: files of `--val`, one for each member that is a file of predictions, in order; empty: the
            predictions_val.json beside each.
        needed: if False, return None instead of evaluating a checkpoint or missing a file.

    Raises:
        InputError: if a file that is needed isn't there, or comes from another checkpoint than the member,
            or was made with another temperature or averaged otherwise.
    """
    of_files = [member for member in members if member.given is None]
    if given and len(given) != len(of_files):
        raise InputError(
            f"--val: {plural(len(given), 'file')} for {plural(len(of_files), 'member')} with predictions; "
            "give one for each, in order."
        )
    beside = [predictions_file(member.path.parent, "val") for member in of_files]
    files = dict(zip((member.name for member in of_files), map(Path, given) if given else beside, strict=True))
    absent = [name for name, path in files.items() if not path.is_file()]
    if not needed and (absent or len(of_files) < len(members)):
        return None
    if absent:
        raise InputError.of_problems(
            "validation predictions, on which weights are fitted and members chosen, aren't there:",
            [f"of {name}: {files[name]}" for name in absent],
            "Evaluate each member with --eval --split val, or name the files with --val FILE..., in order.",
        )
    infos = {member.name: read_info(files[member.name]) for member in of_files}
    for member in of_files:
        info = infos[member.name]
        ours = member.info.sha256 if member.info else ""
        if info is not None and ours and info.sha256 and info.sha256 != ours:
            raise InputError(
                f"{files[member.name]}: comes from another checkpoint ({info.checkpoint}) than {member.name}. "
                "Evaluate both splits with one checkpoint."
            )
        if info is not None and member.info is not None and _way(info) != _way(member.info):
            raise InputError(
                f"{files[member.name]}: was made with {_way(info)}, {member.name} with {_way(member.info)}: weights "
                "fitted on the one don't fit the other. Evaluate both splits in the same way."
            )
    return [
        read_predictions(files[m.name], infos[m.name]) if m.given is None else load_answers(m, "val").predictions
        for m in members
    ]
