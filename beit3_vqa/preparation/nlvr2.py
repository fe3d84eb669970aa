"""NLVR2: the files train.json, dev.json and test1.json of its repository (https://github.com/lil-lab/nlvr).

Images lie under `--image_root` in `images/train/DIRECTORY`, `dev` and `test1`, as they are handed out. dev becomes the
validation split, test1 (test-P) the test split.
"""

import json
from dataclasses import MISSING, dataclass
from pathlib import Path

from beit3_vqa.data.rows import Row, is_count
from beit3_vqa.data.tables import read_text
from beit3_vqa.errors import MAX_PROBLEMS, InputError
from beit3_vqa.preparation.writer import Prepared, PrepareOptions
from beit3_vqa.runtime.fields import Options, option
from beit3_vqa.runtime.files import is_text


@dataclass(frozen=True)
class Arguments(Options):
    """The files to read."""

    annotations: str = option(MISSING, "folder of train.json, dev.json and test1.json (nlvr2/data)")


# Split -> its file, and the folder of its images.
_SOURCES = {"train": ("train.json", "images/train"), "val": ("dev.json", "dev"), "test": ("test1.json", "test1")}
_LABELS = {"True": 1, "False": 0}


def read(arguments: Arguments, options: PrepareOptions) -> Prepared:
    """Read the three files; test1.json may be missing."""
    prepared = Prepared("nlvr2", [], options.image_root, task="nlvr2")
    for split, (name, images) in _SOURCES.items():
        path = Path(arguments.annotations) / name
        if split == "test" and not path.exists():
            prepared.notes.append(f"{name} isn't there: no test split")
            continue
        try:
            # Not splitlines: a sentence may hold Unicode's other line ends.
            lines = read_text(path, options.encoding, prepared.notes).split("\n")
        except InputError as error:
            prepared.problems.append(str(error))
            continue
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row, problem = _parse(line, images)
            if problem:
                prepared.problems.append(f"{path}:{number}: {problem}")
            else:
                prepared.add(split, row, f"{path}:{number}")
            if len(prepared.problems) >= MAX_PROBLEMS:
                return prepared
    return prepared


def _parse(line: str, images: str) -> tuple[Row, str]:
    """Return the row on a line and what is wrong with it."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {}, f"isn't JSON: {error}"
    if not isinstance(entry, dict):
        return {}, "isn't an object"
    identifier, sentence, directory = (entry.get(name) for name in ("identifier", "sentence", "directory"))
    if not is_text(identifier) or len(str(identifier).split("-")) < 2 or "/" in str(identifier):
        return {}, "identifier must be text such as dev-850-0-0"
    if not is_text(sentence) or not str(sentence).strip():
        return {}, "sentence must be text and not empty"
    if directory is not None and not is_count(directory):
        return {}, "directory must be a whole number"
    label = entry.get("label")
    if label is not None and not (isinstance(label, str) and label in _LABELS):
        return {}, 'label must be "True" or "False"'
    # dev-850-0-1 is sentence 1 about the images dev-850-0-img0.png and dev-850-0-img1.png.
    pair = str(identifier).rsplit("-", 1)[0]
    place = "/".join([images, *([] if directory is None else [str(directory)]), pair])
    row = {"image_path": f"{place}-img0.png", "image2_path": f"{place}-img1.png", "text_segment": sentence}
    known = {} if label is None else {"label": _LABELS[label]}
    return {**row, **known, "identifier": identifier}, ""
