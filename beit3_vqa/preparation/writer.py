"""Writing a prepared folder from what a format read: every check first, then all files at once or none.

The files are written to a hidden folder inside the prepared one and moved from there when the last of them is
complete, dataset.json at the very end. An error, Ctrl-C or a full disk before that leaves what was there before.
"""

import itertools
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from beit3_vqa.config.options import DEFAULT_PROMPT_TEMPLATE
from beit3_vqa.config.resolve import prompt_for
from beit3_vqa.data import index
from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.images import resolve_image_path
from beit3_vqa.data.index import DatasetInfo, image_key, image_paths, path_key
from beit3_vqa.data.prompt import PromptTemplate
from beit3_vqa.data.rows import Row, write_rows
from beit3_vqa.data.tables import check_encoding
from beit3_vqa.data.tokenizer import Tokenizer, train_tokenizer
from beit3_vqa.errors import MAX_PROBLEMS, SHOWN_PROBLEMS, InputError, plural
from beit3_vqa.preparation import check, check_page
from beit3_vqa.preparation.copies import Copies, ImageInfo, find_copies, read_image_info
from beit3_vqa.preparation.publish import publish, require_own_files, staging
from beit3_vqa.preparation.summary import Summary, build_prompts, count_answers, describe_sizes, measure_prompts
from beit3_vqa.runtime.bar import progress_bar
from beit3_vqa.runtime.fields import Options, option
from beit3_vqa.runtime.files import file_sha256, is_file, is_folder, missing, one_form

Splits = dict[str, list[Row]]
_NAMED = 3  # rows that stand for all others in a message
# What a problem says -> what mends it, if many rows have it.
_ADVICE = {
    "answer is empty": "rows without an answer belong in --test",
    "is none of the options": "--columns says which columns the options and the answer are",
    "the ID ": "--columns id=NAME names another column",
    "cells where the header has": "save the file anew from the spreadsheet, as CSV",
    "is absolute": "keep the part below the image root in the column",
}
_MOST_FOLDERS = 100  # in which images are looked for that aren't where they should be


@dataclass(frozen=True)
class PrepareOptions(Options):
    """Options that every format has; a wrong or contradictory one raises InputError."""

    data_path: str = option(MISSING, "folder to write")
    image_root: str = option("", "folder that image paths start from, or a zip of it; easy_vqa brings its own images")
    val_ratio: float = option(
        0.15, "share of the training images for validation, if no validation file is given; 0: none", low=0, below=1
    )
    seed: int = option(41, "seed of the split, the folds and the shuffles")
    encoding: str = option(
        "",
        "encoding of the text files, such as cp949 or cp1252; none: UTF-8, or CP949 if that reads as Korean",
    )
    folds: int = option(0, "assign the training rows to K folds instead of splitting off validation; 0: none", low=0)
    sentencepiece_model: str = option("", "tokenizer to count tokens with, such as beit3.spm")
    train_tokenizer: int = option(0, "train a tokenizer of that many ids on the training texts; 0: none", low=0)
    check: bool = option(False, "read every row, open every image, report every problem, and write nothing")
    verify_images: bool = option(True, "decode every image, not only its header")
    group_near_copies: bool = option(
        False, "keep near copies of an image on one side of the split that --val_ratio or --folds makes"
    )
    skip_bad_images: int = option(0, "keep up to N rows whose image can't be read, and name them", metavar="N", low=0)
    prompt_template: str = option(DEFAULT_PROMPT_TEMPLATE, "text of a multiple-choice question, to count tokens")

    def __post_init__(self) -> None:
        if not os.fspath(self.data_path):
            raise InputError("--data_path is missing: the folder to write to")
        super().__post_init__()
        if self.folds == 1:
            raise InputError("--folds 1: must be at least 2, or 0 for none.")
        if self.train_tokenizer and self.sentencepiece_model:
            raise InputError(
                "--train_tokenizer makes a tokenizer and --sentencepiece_model names one: give one of them"
            )
        if self.group_near_copies and not self.verify_images:
            raise InputError("--group_near_copies compares decoded images: leave --no_verify_images out")
        check_encoding(self.encoding)
        PromptTemplate(self.prompt_template)


@dataclass
class Prepared:
    """The rows that a format read, with problems and notes.

    Attributes:
        format: its name.
        answers: the label table, in order; for multiple choice the letters; empty if the task has none.
        image_root: the folder that image paths start from.
        splits: index rows of each split. Each has at least an id and an image path, even one with a problem.
        origins: where each row comes from (`train.csv:12`), parallel to `splits`.
        problems: what is wrong, one line each, with its origin.
        notes: what was interpreted, counted or left aside, for the summary.
        extra_files: returns name -> text of further files to write beside the index, from the final splits.
        extra_names: names of such files, `{split}` for the split, to be removed if an earlier run left them.
        task: the task that the index is for.
    """

    format: str
    answers: list[str]
    image_root: str | os.PathLike[str]
    splits: Splits = field(default_factory=dict)
    origins: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra_files: Callable[[Splits], dict[str, str]] = lambda splits: {}
    extra_names: tuple[str, ...] = ()
    task: str = index.VQACUSTOM.name

    def checked(
        self, entries: Iterable[Any], path: Path, what: str, problem_of: Callable[[Any], str]
    ) -> Iterator[tuple[str, Any]]:
        """Yield the entries of a file in which nothing is wrong, and note the others; end at `MAX_PROBLEMS`.

        Args:
            entries: the list in the file.
            path: the file.
            what: an entry is.
            problem_of: returns what is wrong with an entry; empty: nothing.

        Yields:
            The entry's origin (`dataset.json: image 3`), and the entry.
        """
        for place, entry in enumerate(entries, start=1):
            origin = f"{path}: {what} {place}"
            if len(self.problems) >= MAX_PROBLEMS:
                self.problems.append(f"{origin}: too many problems before this {what}; the rest wasn't read")
                return
            problem = problem_of(entry)
            if problem:
                self.problems.append(f"{origin}: {problem}")
            else:
                yield origin, entry

    def add(self, split: str, row: Row, origin: str) -> None:
        """Append a row to a split."""
        self.splits.setdefault(split, []).append(row)
        self.origins.setdefault(split, []).append(origin)


def write_prepared(prepared: Prepared, options: PrepareOptions) -> Summary:
    """Check rows and images, make the splits, and write the prepared folder unless `options.check` is set.

    Raises:
        InputError: problems of every kind at once; then nothing is written.
    """
    infos, image_problems = _check_images(prepared, options.verify_images)
    sizes = {image: info.size for image, info in infos.items()}
    bad = len(image_problems) if is_folder(prepared.image_root) else 0  # else no image was looked at
    kept = bad if bad <= options.skip_bad_images else 0
    if kept:
        # In training the same option lets them be.
        shown = "; ".join(image_problems[:_NAMED]) + "; ..." * (kept > _NAMED)
        prepared.notes.append(f"rows kept though their image can't be read: {kept:,}: {shown}")
        image_problems = []
    problems = [*prepared.problems, *_repeated_ids(prepared), *_shared(image_problems, prepared, sizes)]
    if not problems and not any(prepared.splits.values()):
        problems.append("there isn't a single row")
    splits, notes, tokenizer = prepared.splits, [*prepared.notes], None
    has_questions = prepared.task == index.VQACUSTOM.name
    wanted = not problems and (has_questions or options.group_near_copies)
    copies = find_copies(infos if wanted else {}, Path(prepared.image_root))
    try:
        splits, division_notes = _divide(prepared.splits, options, copies)
        notes += division_notes
    except InputError as error:
        told = "; with --group_near_copies, near copies count as one image" if options.group_near_copies else ""
        problems.append(f"{error}{told}")
    try:
        tokenizer = Tokenizer(options.sentencepiece_model) if options.sentencepiece_model else None
    except InputError as error:
        problems.append(str(error))
    if problems:
        title = f"prepare {prepared.format}: {len(problems)} problem{'s' * (len(problems) > 1)} found"
        problems = _grouped(problems)
        advice = "Nothing was written."
        if bad > kept:
            advice += f" --skip_bad_images {bad} keeps the rows whose image can't be read."
        raise InputError.of_problems(title, problems, advice)

    data_path = Path(options.data_path)
    template = _template(splits, options.prompt_template)
    with staging(data_path, options.check) as folder:
        files = _write(folder, splits, prepared)
        if options.train_tokenizer:
            prompts = build_prompts(splits.get("train", []), template)
            if not prompts:
                raise InputError("--train_tokenizer: the training rows have no text to train it on")
            tokenizer = train_tokenizer(prompts, options.train_tokenizer, folder / index.TOKENIZER_FILE)
            files.append(index.TOKENIZER_FILE)
            notes.append(f"tokenizer trained on {plural(len(prompts), 'prompt')}: {tokenizer.vocab_size:,} ids")
        findings = None
        if has_questions:
            found = check.find(splits, copies, tokenizer)
            findings = tuple(check.tell(found, cut_here="val" not in prepared.splits))
            files[:0] = check_page.write_check(folder, found, findings, prepared.format, Path(prepared.image_root))
        stale = _stale_files(data_path, files, prepared)
        # The record also keeps the files of other formats in this folder.
        before = require_own_files(data_path, folder, files, stale)
        written = {name: sha for name, sha in before.items() if name not in stale}
        written |= {name: file_sha256(folder / name) for name in files}
        notes += [f"{name} of an earlier run removed" for name in stale]
        every_row = [row for rows in splits.values() for row in rows]
        summary = Summary(
            format=prepared.format,
            data_path=data_path,
            rows={split: len(rows) for split, rows in splits.items()},
            answers=count_answers(splits),
            classes=len(prepared.answers),
            images=len(sizes),
            sizes=describe_sizes(sizes.values()),
            prompts=measure_prompts(every_row, template, tokenizer),
            notes=tuple(notes),
            files=(*files, index.INFO_FILE),
            check=options.check,
            findings=findings,
        )
        root, numbers = Path(prepared.image_root), summary.numbers()
        info = DatasetInfo(root, prepared.format, options.seed, summary.rows, numbers, written)
        info.write(data_path, folder)
        if not options.check:
            publish(folder, data_path, summary.files, stale)
    return summary


def _template(splits: Splits, template: str) -> PromptTemplate:
    """Return the template of the rows' prompts."""
    counts = {len(row["choices"]) for rows in splits.values() for row in rows if row.get("choices")}
    return PromptTemplate(prompt_for(template, counts))


_VALUE = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+")  # what differs between rows with one fault


def _grouped(problems: list[str]) -> list[str]:
    """Return the problems; if they are too many to be listed, those of one kind as one line with a count."""
    if len(problems) <= SHOWN_PROBLEMS:
        return problems
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(_VALUE.sub("", problem), []).append(problem)
    lines = []
    for same in kinds.values():
        advice = next((f" ({text})" for sign, text in _ADVICE.items() if sign in same[0]), "")
        many = len(same) > _NAMED
        lines += [f"{len(same):,} like these{advice}: {'; '.join(same[:_NAMED])}; ..."] if many else same
    return lines


def _shared(problems: list[str], prepared: Prepared, sizes: Mapping[str, tuple[int, int]]) -> list[str]:
    """Return the problems of images, or one line for all of them if a single mistake explains them."""
    root = Path(prepared.image_root)
    paths = [path for rows in prepared.splits.values() for row in rows for path in image_paths(row)]
    wrong = [path for path in paths if path_key(path) not in sizes]
    if len(problems) <= _NAMED or not is_folder(root):
        return problems
    samples = wrong[:_NAMED]
    inside = (entry for entry in sorted(root.iterdir()) if entry.is_dir())
    for other in (root.absolute().parent, *itertools.islice(inside, _MOST_FOLDERS)):
        if all(is_file(other / path) for path in samples):
            found = {path for path in set(wrong) if is_file(other / path)}
            there = [problem for problem, path in zip(problems, wrong, strict=True) if path in found]
            places = "; ".join(there[:_NAMED])
            line = f"{len(there):,} rows' images are in {other}: give --image_root {other}. The first: {places}"
            return [line, *(p for p, path in zip(problems, wrong, strict=True) if path not in found)]
    return problems


def _repeated_ids(prepared: Prepared) -> list[str]:
    """Return a problem for each row whose id another row of its split has, or one that looks the same."""
    problems = []
    for split, rows in prepared.splits.items():
        first: dict[str, tuple[str, str]] = {}
        for row, origin in zip(rows, prepared.origins[split], strict=True):
            name = row.get("id", row.get("identifier"))
            if name is None:
                continue
            other, place = first.setdefault(one_form(name).strip(), (name, origin))
            if place != origin and name == other:
                problems.append(f"{origin}: the ID {name!r} is at {place} too")
            elif place != origin:
                problems.append(f"{origin}: the ID {name!a} looks like {other!a} at {place}: rename one of them")
    return problems


def _check_images(prepared: Prepared, decode: bool) -> tuple[dict[str, ImageInfo], list[str]]:
    """Return path -> what was seen of each image that can be read, and a problem for each other row.

    `decode` reads every pixel, not only the header.
    """
    root = Path(prepared.image_root)
    if not os.fspath(prepared.image_root):
        return {}, ["--image_root is missing: the folder that the image paths start from"]
    if not root.is_dir():
        return {}, [missing("image folder", root)]

    def read(image_path: str) -> ImageInfo | InputError:
        try:
            return read_image_info(resolve_image_path(root, image_path), decode)
        except InputError as error:
            return error

    every_row = (row for rows in prepared.splits.values() for row in rows)
    paths = {path_key(path): path for row in every_row for path in image_paths(row)}
    # `open_image` silences warnings, which Python can only do for all threads at once: without this outer frame one
    # thread would undo what another did, and leave the process silenced at the end.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")
        progress = progress_bar(pool.map(read, paths.values()), "images", len(paths), unit="image")
        found = dict(zip(paths, progress, strict=True))
    infos = {image: seen for image, seen in found.items() if not isinstance(seen, InputError)}
    problems = [
        f"{origin}: {found[path_key(path)]}"
        for split, rows in prepared.splits.items()
        for row, origin in zip(rows, prepared.origins[split], strict=True)
        for path in image_paths(row)
        if path_key(path) not in infos
    ]
    return infos, problems


def _divide(splits: Splits, options: PrepareOptions, copies: Copies) -> tuple[Splits, list[str]]:
    """Return the final splits in order, with folds or a validation split cut from train, and notes about them."""
    divided, notes = dict(splits), []
    train = splits.get("train", [])
    grouped = ", near copies together" if options.group_near_copies else ""

    def key(row: Row) -> str:
        image = image_key(row)
        return copies.near.get(image, image) if grouped else image

    if train and options.folds:
        folds = index.assign_folds(train, options.folds, options.seed, key)
        divided["train"] = [{**row, "fold": fold} for row, fold in zip(train, folds, strict=True)]
        notes.append(f"{options.folds} folds in train, by image{grouped}")
        if "val" not in splits:
            notes.append("no validation split: each fold serves as one in turn")
    elif train and "val" not in splits and options.val_ratio:
        divided["train"], divided["val"] = index.split_by_image(train, options.val_ratio, options.seed, key)
        of = f"ratio {options.val_ratio:g}, seed {options.seed}{grouped}"
        notes.append(f"validation split cut from train by image, {of}")
    elif grouped:
        notes.append("--group_near_copies changes nothing: neither a validation split nor folds were made")
    images = {split: {path_key(path) for row in rows for path in image_paths(row)} for split, rows in divided.items()}
    for other in ("val", "test"):
        shared = len(images.get("train", set()) & images.get(other, set()))
        if shared:
            notes.append(f"train and {other} share {plural(shared, 'image')}")
    return {split: divided[split] for split in index.ALL_SPLITS if split in divided}, notes


def _stale_files(data_path: Path, files: list[str], prepared: Prepared) -> list[str]:
    """Return files of an earlier run's splits that this run lacks: they would be taken for part of it."""
    names = [
        name
        for split in index.ALL_SPLITS
        for name in (index.split_file(split, prepared.task), *(n.format(split=split) for n in prepared.extra_names))
    ]
    return [name for name in names if name not in files and (data_path / name).exists()]


def _write(folder: Path, splits: Splits, prepared: Prepared) -> list[str]:
    """Write the index, the label table and the format's own files, and return their names."""
    for split, rows in splits.items():
        write_rows(folder / index.split_file(split, prepared.task), rows)
    answers = [index.ANSWERS_FILE] if prepared.answers else []
    if answers:
        AnswerTable(prepared.answers).write(folder / index.ANSWERS_FILE)
    extra_files = prepared.extra_files(splits)
    for name, text in extra_files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
    return [*(index.split_file(split, prepared.task) for split in splits), *answers, *extra_files]
