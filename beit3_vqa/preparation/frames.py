"""`beit3_vqa.prepare`: the tables of a data set, as DataFrames or files, become a prepared folder."""

import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from beit3_vqa.errors import InputError, short
from beit3_vqa.preparation import prepare as prepare_format
from beit3_vqa.preparation.columns import as_flag
from beit3_vqa.preparation.summary import Summary
from beit3_vqa.preparation.table import Arguments
from beit3_vqa.preparation.writer import PrepareOptions
from beit3_vqa.runtime.fields import from_python

if TYPE_CHECKING:
    import pandas as pd

Source: TypeAlias = "pd.DataFrame | str | Path"


def prepare(
    train: Source,
    val: "Source | None" = None,
    test: "Source | None" = None,
    *,
    image_root: str | Path,
    data_path: str | Path,
    columns: str | Mapping[str, str | Sequence[str]] = "",
    **options: object,
) -> Summary:
    """Check the questions and images of a data set, and write the folder that training reads.

    Args:
        train: training questions: a pandas DataFrame, or a file that `beit3-vqa prepare table` reads.
        val: validation questions; None: a share of the training images, `val_ratio`.
        test: test questions, whose answers may be missing.
        image_root: the folder that image paths start from.
        data_path: the folder to write.
        columns: what columns mean if their names don't say it, such as `{"image": "file", "question": "text",
            "options": ("opt1", "opt5"), "answer": "gt"}`, or the text of `--columns`.
        **options: any other option of `beit3-vqa prepare table`, such as `val_ratio=0.1` or `train_tokenizer=8000`.

    Returns:
        What was found. `print` shows it as the command does; `data_path` is the folder, `rows` maps each split to its
        number of rows, `answers` each split to how often each answer occurs.

    Raises:
        InputError: every problem of rows, images and options at once; then nothing is written.
    """
    sources = {"train": train, "val": val, "test": test}
    for name, source in sources.items():
        if source is not None and not isinstance(source, (str, Path)) and not hasattr(source, "iloc"):
            raise InputError(f"prepare: {name} is {short(source)}; give a pandas DataFrame or a file.")
    own, shared = (typing.get_type_hints(cls) for cls in (Arguments, PrepareOptions))
    kinds = {name: kind for name, kind in (own | shared).items() if name not in sources}
    given = from_python(
        {"image_root": image_root, "data_path": data_path, "columns": as_flag(columns), **options}, kinds, "prepare"
    )
    names = {field.name for field in fields(Arguments)}
    values = {name: value for name, value in given.items() if name in names}
    rest = {name: value for name, value in given.items() if name not in names}
    return prepare_format("table", {**sources, **values}, PrepareOptions(**rest))
