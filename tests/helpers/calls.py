"""Which functions of the package are being called when an optimizer takes its step."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_pre_hook

import beit3_vqa

PACKAGE = Path(beit3_vqa.__file__).parent


@contextmanager
def calls_of_each_step() -> Iterator[list[list[str]]]:
    """A context with a list that grows with each optimizer step by the package's functions on the stack.

    They are outermost first, such as `engine.loop.train_epoch`; torch's own and the tests' don't count.
    """
    steps: list[list[str]] = []

    def note(*_) -> None:
        names, frame = [], sys._getframe()
        while frame := frame.f_back:
            code = frame.f_code
            if Path(code.co_filename).is_relative_to(PACKAGE):
                module = frame.f_globals["__name__"].removeprefix("beit3_vqa.")
                names.append(f"{module}.{getattr(code, 'co_qualname', code.co_name)}")  # co_name before Python 3.11
        steps.append(names[::-1])

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield steps
    finally:
        handle.remove()
