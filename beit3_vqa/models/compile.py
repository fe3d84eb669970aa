"""torch.compile, or a line that says why not."""

import logging
from collections.abc import Callable

import torch

from beit3_vqa.errors import first_line
from beit3_vqa.models.base import TrainableModel

logger = logging.getLogger(__name__)

# Training and evaluation, whole and last batch, and a few text lengths of each; torch gives up after 8 by default.
MAX_SHAPES = 64


def compile_model(model: TrainableModel, backend: str = "inductor") -> None:
    """Compile a model's layers in place, anew for each shape of inputs; parameters stay as they are.

    Layers that differ in their weights alone share what was compiled for the first of them, so the compiler's time
    doesn't grow with the depth. If it fails, say so once and go on without it.

    Args:
        model: the model, changed in place.
        backend: torch.compile's.
    """
    options = torch._dynamo.config
    limit = "recompile_limit" if hasattr(options, "recompile_limit") else "cache_size_limit"  # its name in torch 2.6
    setattr(options, limit, max(getattr(options, limit), MAX_SHAPES))
    failed = False

    def with_fallback(plain: Callable[..., object]) -> Callable[..., object]:
        compiled: Callable[..., object] = torch.compile(plain, dynamic=False, backend=backend)

        def forward(*args: object, **kwargs: object) -> object:
            nonlocal failed
            # The compiler runs at the first call of a shape, so this is the place where it can fail.
            if not failed:
                try:
                    return compiled(*args, **kwargs)
                except torch._dynamo.exc.TorchDynamoException as error:
                    logger.warning(f"--compile: the compiler failed ({first_line(error)}); going on without it")
                    failed = True
            return plain(*args, **kwargs)

        return forward

    for layer, method in model.layers():
        setattr(layer, method, with_fallback(getattr(layer, method)))
