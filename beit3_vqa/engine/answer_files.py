"""Answer the questions of a table file, or one question about every image of a folder, and write a CSV file."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from beit3_vqa.data.file_kinds import IMAGE_ENDINGS
from beit3_vqa.data.table_files import Cell, read_table
from beit3_vqa.data.tables import csv_line
from beit3_vqa.data.types import Prediction
from beit3_vqa.engine.one_question import as_choices, as_text, check_question
from beit3_vqa.engine.predictor import Predictor
from beit3_vqa.errors import InputError, one_line
from beit3_vqa.preparation.questions import Questions, read_questions
from beit3_vqa.runtime.files import is_file, missing, refuse_to_replace, require_writable, write_text

logger = logging.getLogger(__name__)


def answer_file(
    predictor: Predictor,
    table: Path,
    image_root: str,
    output: Path,
    *,
    columns: str = "",
    sheet: str = "",
    encoding: str = "",
    skip_bad_images: int = 0,
) -> Path:
    """Write the rows of a table with their answers to a CSV file, and return its path.

    Args:
        predictor: which answers.
        table: a file that `prepare table` reads.
        image_root: the folder that image paths start from.
        output: the CSV; it is written when the last question is answered, whole or not at all.
        columns, sheet, encoding: as for `prepare table`.
        skip_bad_images: see `Predictor.predict_frame`.

    Raises:
        InputError: the file can't be read, rows can't be answered (all are listed), or `output` can't be written or
            is the table, the checkpoint or one of the images.
    """
    _require_output(output, [table, Path(predictor.checkpoint)])
    notes: list[str] = []
    questions = read_questions(read_table(table, encoding, sheet, notes), str(table), image_root, columns)
    for note in [*notes, *questions.notes]:
        logger.info(note)
    _refuse_images(output, questions)
    predictions = predictor.answer(questions, skip_bad_images=skip_bad_images)
    return _write(predictor, predictions, questions.header, questions.cells, output, skip_bad_images > 0)


def answer_folder(
    predictor: Predictor,
    folder: Path,
    question: str,
    choices: Sequence[str],
    output: Path | None = None,
    *,
    skip_bad_images: int = 0,
) -> Iterator[str]:
    """Ask one question about every image in a folder and those below it, and yield a line for each, by name.

    Args:
        predictor: which answers.
        folder: of the images; files without an image's ending are passed over.
        question: as text.
        choices: the options; empty for an open-ended model.
        output: a CSV to write; None: only the lines.
        skip_bad_images: see `Predictor.predict_frame`.

    Yields:
        A line for each image; with `output` only one, that the file was written.

    Raises:
        InputError: there is no image, one can't be read (all are listed), or the question can't be answered.
    """
    choices = as_choices(choices)
    check_question(as_text(question, "the question"), choices, predictor.option_counts)
    if output:
        _require_output(output, [Path(predictor.checkpoint)])
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS and is_file(p))
    names = [path.relative_to(folder).as_posix() for path in paths]
    if not names:
        raise InputError(f"--image {folder}: holds no image ({', '.join(IMAGE_ENDINGS)}).")
    questions = Questions(f"--image {folder}", ("image",), image_root=folder, origins=names)
    questions.rows = [{"id": name, "image_path": name, "question": question} for name in names]
    if choices:
        questions.rows = [{**row, "choices": list(choices)} for row in questions.rows]
    if output:
        _refuse_images(output, questions)
    predictions = predictor.answer(questions, skip_bad_images=skip_bad_images)
    if output:
        cells = [[name] for name in names]
        yield f"wrote {_write(predictor, predictions, questions.header, cells, output, skip_bad_images > 0)}"
        return
    # Letter -> text of the option; empty if there are no options.
    texts = dict(zip(predictions[0].probabilities, choices, strict=False))
    for name, p in zip(names, predictions, strict=True):
        answer = f"{p.answer}  {texts[p.answer]}" if texts else p.answer
        yield one_line(f"{name}  {p.probabilities[p.answer]:6.1%}  {answer}{'  (image unreadable)' * bool(p.problem)}")


def _require_output(output: Path, inputs: Sequence[Path]) -> None:
    """Raise InputError, before hours of answering, if a file can't be written there or is read."""
    if output.is_dir():
        raise InputError(f"--output {output}: is a folder; give a file's name.")
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: {missing('folder', output.parent)}")
    require_writable(output.parent)
    refuse_to_replace("--output", output, inputs)


def _refuse_images(output: Path, questions: Questions) -> None:
    names = dict.fromkeys(row["image_path"] for row in questions.rows)
    if output.exists():  # else no image has its name
        refuse_to_replace("--output", output, (questions.image_root / name for name in names))


def _write(
    predictor: Predictor,
    predictions: Sequence[Prediction],
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    output: Path,
    with_problems: bool,
) -> Path:
    """Write the table's own columns and those of the answers; a column of the same name is replaced."""
    added = predictor.columns(predictions, with_problems=with_problems)
    kept = [place for place, name in enumerate(header) if name not in added]
    columns = list(added.values())
    replaced = [name for name in header if name in added]
    if replaced:
        logger.info(f"{output}: the table's own {', '.join(replaced)} made way for the model's")

    def lines() -> Iterator[str]:
        yield csv_line([*(header[place] for place in kept), *added])
        for number, cells in enumerate(rows):
            own = [cells[place] for place in kept]
            texts = [cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False) for cell in own]
            yield csv_line([*texts, *(_shown(column[number]) for column in columns)])

    return write_text(output, lines())


def _shown(value: object) -> str:
    """Return a text or a number as a cell of CSV; an option that a row doesn't have is empty, as pandas writes it."""
    return "" if value != value else str(value)
