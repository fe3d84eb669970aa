"""Fine-tune BEiT-3 on your own visual question answering data.

From Python, three lines:

    import beit3_vqa
    model = beit3_vqa.load("OUT/checkpoint-best.pth")
    print(model.predict("cat.jpg", "What is on the mat?", ["a cat", "a dog", "a hat", "nothing"]))

After `beit3_vqa.register_with_timm()`, `timm.create_model("beit3_base_patch16_480_vqacustom")` builds the model.
Importing the package changes nothing outside it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from beit3_vqa.errors import InputError

if TYPE_CHECKING:
    from beit3_vqa.engine.predictor import load
    from beit3_vqa.models.names import register_with_timm

__version__ = "0.2.0.dev0"
__all__ = ["InputError", "__version__", "load", "register_with_timm"]


# Name -> its module, imported when it is asked for: torch takes seconds to load, and `--help` shouldn't.
_LATER = {"load": "beit3_vqa.engine.predictor", "register_with_timm": "beit3_vqa.models.names"}


def __getattr__(name: str) -> object:
    """Import a name of `_LATER` when it is first asked for."""
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'beit3_vqa' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the names of `_LATER` too, so that a prompt completes them."""
    return sorted({*globals(), *__all__})
