"""A bundle from its checkpoints to the zip: answer here, pack, run the zip as a stranger would, compare, publish."""

import csv
import gc
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from beit3_vqa.apps.bundle.contents import (
    MODELS,
    NEEDED,
    PACKAGE,
    PRETRAINED,
    Packed,
    copy_package,
    write_readme,
    write_requirements,
    write_script,
    write_zip,
)
from beit3_vqa.apps.bundle.options import BundleOptions
from beit3_vqa.apps.bundle.trial import Trial, run_bundle
from beit3_vqa.apps.ensemble.compare import vote_all
from beit3_vqa.apps.ensemble.members import find_members, load_answers, require_once
from beit3_vqa.apps.ensemble.vote import align_predictions
from beit3_vqa.data.answers import answer_key
from beit3_vqa.data.table_files import read_table
from beit3_vqa.data.types import Prediction
from beit3_vqa.engine.checkpoint.manifest import get_sha256
from beit3_vqa.engine.export import write_weights
from beit3_vqa.engine.predictor import EVALUATE, find_checkpoint, load, load_components
from beit3_vqa.errors import InputError, plural, short
from beit3_vqa.preparation.columns import find_columns
from beit3_vqa.preparation.questions import read_questions
from beit3_vqa.runtime.distributed import refuse_several
from beit3_vqa.runtime.files import (
    make_folder,
    move_into,
    refuse_to_replace,
    require_writable,
    staged,
)

ID = "ID"  # the column of ids in a table that is made of a prepared folder


@dataclass(frozen=True)
class Reference:
    """What a bundle is tried out on, and the answers that it must give.

    Attributes:
        table: file with the questions.
        image_root: the folder that its image paths start from.
        id: name of its column of ids.
        answers: (id, answer) as the checkpoints answer here.
        by: what answered, in words.
    """

    table: Path
    image_root: Path
    id: str
    answers: list[tuple[str, str]]
    by: str


def bundle(options: BundleOptions, evaluation: Mapping[str, object]) -> Path:
    """Write a zip that answers offline, once it has done so here in an environment of its own.

    Args:
        options: what to pack.
        evaluation: options of `--eval` by flat name.

    Returns:
        The zip's path.

    Raises:
        InputError: something can't be used, or the bundle fails or answers otherwise than its checkpoints do here; no
            zip is written then, and one that was there stays.
    """
    refuse_several("bundle works on one device: start it without torchrun.")
    if bool(options.table) == bool(evaluation.get("data_path")):
        raise InputError(
            "a bundle is tried out before it is written: give a prepared folder with --data_path, or a table with "
            "--table and --image_root; one of the two."
        )
    if options.table and not evaluation.get("image_root"):
        raise InputError("--table needs --image_root, where its images are.")
    paths = [find_checkpoint(Path(name)) for name in options.members]
    require_once(options.members, paths)
    refuse_to_replace("--output", options.output, [*paths, *([options.table] if options.table else [])])
    make_folder(options.output.parent)
    require_writable(options.output.parent)
    with staged(options.output.parent) as place:
        return _bundle(options, evaluation, paths, place)


def _bundle(options: BundleOptions, evaluation: Mapping[str, object], paths: Sequence[Path], place: Path) -> Path:
    content, new = place / "content", place / options.output.name
    packed = [_pack(path, content / MODELS / str(number), evaluation) for number, path in enumerate(paths, start=1)]
    total = sum(model.parameters for model in packed)
    print(f"parameters: {total:,} in {plural(len(packed), 'model')}", flush=True)
    ask = _ask_table if options.table else _ask_split
    reference = ask(options, evaluation, paths, place)
    write_script(content, reference.id, options.columns, _text(evaluation, "precision", "auto"))
    copy_package(content)
    write_requirements(content, [*NEEDED, *(name for model in packed for name in model.packages)])
    write_readme(content, packed, options.weights_license, options.weights_date)
    write_zip(content, new)
    shutil.rmtree(content)  # its weights are in the zip; the trial unpacks them once more
    print("running it once by itself", flush=True)
    room = place / "trial"
    room.mkdir()
    hidden = [PACKAGE, *paths]
    trial = run_bundle(new, room, reference.table, reference.image_root, _text(evaluation, "device", "auto"), hidden)
    _check(trial, reference)
    for line in trial.said.splitlines():
        print(f"  {line}")
    print(
        f"ran in a new environment: {trial.network}; this package came from the zip, and neither its own folder nor "
        "the checkpoints could be opened by Python there; torch and the other libraries were the installed ones"
    )
    rows = len(reference.answers)
    print(f"all {plural(rows, 'answer')} equal those of {reference.by}")
    print(f"{trial.seconds / rows:.3g} seconds a row, start and loading counted ({trial.seconds:.1f} s)")
    size = new.stat().st_size
    (path,) = move_into([new], options.output.parent)
    print(f"wrote {path}: {size:,} bytes, {total:,} parameters")
    return path


def _pack(path: Path, folder: Path, evaluation: Mapping[str, object]) -> Packed:
    """Write a checkpoint's model as a folder that needs nothing else."""
    names = ("pretrained", "sentencepiece_model")
    given = {"device": "cpu", "precision": "fp32"} | {n: text for n in names if (text := _text(evaluation, n))}
    components = load_components(path, given)
    spec = components.task.spec
    if not spec.supports_questions:
        raise InputError(f"{path}: was trained on {spec.name}, which has no single questions. {EVALUATE}")
    folder.mkdir(parents=True)
    write_weights(components, path, folder)
    components.family.save_assets(components.processor, folder)
    base = components.family.base_files()
    if base:
        (folder / PRETRAINED).mkdir()
        for file in base:
            shutil.copyfile(file, folder / PRETRAINED / file.name)
    parameters = sum(parameter.numel() for parameter in components.model.parameters())
    return Packed(components.config.model.model, path.name, get_sha256(path), parameters, components.family.packages)


def _ask_split(
    options: BundleOptions, evaluation: Mapping[str, object], paths: Sequence[Path], place: Path
) -> Reference:
    """Evaluate the checkpoints on a split, and write its questions as a table."""
    split = _text(evaluation, "split", "test")
    members = find_members([str(path) for path in paths], (), evaluation, place / "results")
    answered = [load_answers(member, split) for member in members]
    predictions = _joined(options.members, [a.predictions for a in answered])
    info = answered[0].info
    assert info is not None  # of an evaluation just now
    if not all(p.question for p in predictions):
        raise InputError(f"--data_path: questions of {split} have no text, only token ids: give a --table.")
    table = place / "test.csv"
    width = max(len(p.choices) for p in predictions)
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow([ID, "img_path", "Question", *(chr(ord("A") + place) for place in range(width))])
        for p in predictions:
            writer.writerow([p.id, p.image, p.question, *p.choices, *[""] * (width - len(p.choices))])
    how = "ensemble" if len(members) > 1 else "--eval"
    return Reference(table, Path(info.image_root), ID, [(p.id, p.answer) for p in predictions], f"{how} on {split}")


def _ask_table(
    options: BundleOptions, evaluation: Mapping[str, object], paths: Sequence[Path], place: Path
) -> Reference:
    """Answer the questions of a table."""
    assert options.table
    root, where = _text(evaluation, "image_root"), str(options.table)
    header = read_table(options.table).header
    columns = find_columns(header, f"{where}:1", options.columns, needs_answer=False)
    if "id" not in columns.places:
        raise InputError(f"--table {where}: no column of ids was recognised; say which it is: --columns id=NAME")
    id_place = columns.places["id"]
    each, ids = [], []
    for path in paths:
        model = load(
            path,
            _text(evaluation, "device", "auto"),
            _text(evaluation, "sentencepiece_model"),
            _text(evaluation, "pretrained"),
            _text(evaluation, "precision", "auto"),
        )
        questions = read_questions(read_table(options.table), where, root, options.columns)
        each.append(model.answer(questions, skip_bad_images=len(questions.rows)))
        ids = [str(cells[id_place]) for cells in questions.cells]
        del model
        gc.collect()  # one model at a time
    if not ids:
        raise InputError(f"--table {where}: has a header but no rows.")
    answers = [(id, p.answer) for id, p in zip(ids, _joined(options.members, each), strict=True)]
    return Reference(
        options.table, Path(root), header[id_place], answers, "`predict`" if len(paths) == 1 else "the models"
    )


def _text(evaluation: Mapping[str, object], name: str, default: str = "") -> str:
    """Return an option of the evaluation that is text."""
    return str(evaluation.get(name, default))


def _joined(names: Sequence[str], each: Sequence[list[Prediction]]) -> list[Prediction]:
    """Return the only model's predictions, or those of the models' mean probabilities."""
    return each[0] if len(each) == 1 else vote_all(align_predictions(names, each, answer_key), "soft")


def _check(trial: Trial, reference: Reference) -> None:
    """Raise InputError if the bundle answered otherwise than its checkpoints did."""
    problems = [
        f"{short(here[0])}: {short(there[1])}"
        + (f" for {short(there[0])}" if there[0] != here[0] else "")
        + f", not {short(here[1])}"
        for here, there in zip(reference.answers, trial.answers, strict=False)
        if here != there
    ]
    if len(trial.answers) != len(reference.answers):
        problems.insert(0, f"{plural(len(trial.answers), 'row')}, not {len(reference.answers):,}")
    if problems:
        raise InputError.of_problems(
            f"the bundle isn't written: by itself it answers otherwise than {reference.by}:",
            problems,
            "Was a file changed meanwhile? --precision fp32 keeps a batch's size from moving an answer.",
        )
