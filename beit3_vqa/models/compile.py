"""torch.compile, or a line that says why not."""

from collections.abc import Callable

import torch
from torch import nn

from beit3_vqa.errors import first_line

# Training and evaluation, whole and last batch, and a few text lengths of each; torch gives up after 8 by default.
MAX_SHAPES = 64


def compile_model(model: nn.Module, backend: str = "inductor") -> None:
    """Compile a model's forward pass in place, anew for each shape of inputs; parameters stay as they are.

    If the compiler fails, say so once and go on without it.

    Args:
        model: the model, changed in place.
        backend: torch.compile's.
    """
    options = torch._dynamo.config
    limit = "recompile_limit" if hasattr(options, "recompile_limit") else "cache_size_limit"  # its name in torch 2.6
    setattr(options, limit, max(getattr(options, limit), MAX_SHAPES))
    plain = model.forward
    compiled: Callable[..., object] | None = torch.compile(plain, dynamic=False, backend=backend)

    def forward(*args: object, **kwargs: object) -> object:
        nonlocal compiled
        # The compiler runs at the first call of a shape, so this is the place where it can fail.
        if compiled is not None:
            try:
                return compiled(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                print(f"--compile: the compiler failed ({first_line(error)}); going on without it")
                compiled = None
        return plain(*args, **kwargs)

    model.forward = forward
