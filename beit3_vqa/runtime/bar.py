"""Progress bars for terminals and notebooks."""

import sys
import warnings
from typing import Any

MIN_SECONDS = 0.5  # between two states of a bar; a notebook that is saved as it runs keeps every one of them


def progress_bar(*arguments: Any, **options: Any) -> Any:
    """Make a bar of tqdm, with its arguments: a widget in a notebook, text on a terminal, disabled elsewhere."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")  # no ipywidgets: text does as well
        from tqdm.auto import tqdm

    shown = sys.stderr.isatty() or in_notebook()
    return tqdm(*arguments, mininterval=MIN_SECONDS, disable=not shown, **options)


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config
