"""torch.compile, or a line that says why not."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from beit3_vqa.errors import first_line

# Training and evaluation, first and last batch, and a few text lengths each.
MAX_SHAPES = 64


def compile_model(model: nn.Module, backend: str = "inductor") -> None:
    """Compiles a model's forward pass in place, for each shape of inputs it meets; parameters stay as they are.

    Where the compiler fails, that is said once, and the model goes on as it was.

    Args:
        model: to be compiled.
        backend: of torch.compile.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_SHAPES)
    plain = model.forward
    compiled: Callable[..., Any] | None = torch.compile(plain, dynamic=False, backend=backend)

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal compiled
        if compiled is not None:
            try:
                return compiled(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                print(f"--compile: the compiler failed ({first_line(error)}); going on without it")
                compiled = None
        return plain(*args, **kwargs)

    model.forward = forward
