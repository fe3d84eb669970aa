"""Import the packages that only some commands need, and that an extra of ours installs."""

from importlib import import_module
from typing import Any

from beit3_vqa.errors import InputError


def import_extra(module: str, extra: str, what: str) -> Any:
    """Import and return a module.

    Args:
        module: its name, such as `pyarrow.parquet`.
        extra: the extra that installs it.
        what: needs it, for the message.

    Raises:
        InputError: it can't be imported; it says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        said = f"{what} needs {package}, which can't be imported ({error})"
        raise InputError(f'{said}: pip install "beit3_vqa[{extra}]".') from error
