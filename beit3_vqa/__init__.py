"""Fine-tune BEiT-3 on your own visual question answering data.

From Python, three lines:

    import beit3_vqa
    model = beit3_vqa.load("OUT/checkpoint-best.pth")
    print(model.predict("cat.jpg", "What is on the mat?", ["a cat", "a dog", "a hat", "nothing"]))

After `import beit3_vqa`, `timm.create_model("beit3_base_patch16_480_vqacustom")` builds the model.
"""

from typing import TYPE_CHECKING, Any

from beit3_vqa.errors import InputError
from beit3_vqa.models import timm_hook

if TYPE_CHECKING:
    from beit3_vqa.engine.predictor import load

__version__ = "0.1.0"
__all__ = ["InputError", "__version__", "load"]

timm_hook.install()


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `--help` shouldn't.
    if name == "load":
        from beit3_vqa.engine.predictor import load

        return load
    raise AttributeError(f"module 'beit3_vqa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
