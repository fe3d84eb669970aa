"""Fine-tune BEiT-3 on your own visual question answering data.

From Python, with pandas:

    import pandas as pd, beit3_vqa
    as_it_is = {"dtype": str, "keep_default_na": False}  # IDs keep their zeros, "None" and "NA" stay options
    data = beit3_vqa.prepare(pd.read_csv("train.csv", **as_it_is), image_root="images", data_path="data")
    run = beit3_vqa.fit(data, model="beit3_base_patch16_480", finetune="beit3_base.pth", epochs=5, output_dir="out")
    predictor = beit3_vqa.load("out/checkpoint-best.pth")
    answers = predictor.predict_frame(pd.read_csv("test.csv", **as_it_is), image_root="images")
    print(predictor.predict("cat.jpg", "What is on the mat?", ["a cat", "a dog", "a hat", "nothing"]))

After `beit3_vqa.register_with_timm()`, `timm.create_model("beit3_base_patch16_480_vqacustom")` builds the model.
Importing the package changes nothing outside it. What it tells of its work goes through the logger
`beit3_vqa`: `setLevel(logging.WARNING)` leaves warnings, progress and results. Before you add a handler of your own,
`handlers.clear()` removes ours; `propagate = True` hands the messages on to the root's.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from beit3_vqa.errors import InputError
from beit3_vqa.runtime.console import show_logs

if TYPE_CHECKING:
    from beit3_vqa.apps.ensemble.frames import average_frames
    from beit3_vqa.engine.fitting import TrainedRun, fit
    from beit3_vqa.engine.predictor import Predictor, load
    from beit3_vqa.models.names import register_with_timm
    from beit3_vqa.preparation.frames import prepare

__version__ = "0.2.0.dev0"
__all__ = [
    "InputError",
    "Predictor",
    "TrainedRun",
    "__version__",
    "average_frames",
    "fit",
    "load",
    "prepare",
    "register_with_timm",
]

show_logs()

# Name -> its module, imported when it is asked for: torch takes seconds to load, and `--help` shouldn't.
_LATER = {
    "Predictor": "beit3_vqa.engine.predictor",
    "TrainedRun": "beit3_vqa.engine.fitting",
    "average_frames": "beit3_vqa.apps.ensemble.frames",
    "fit": "beit3_vqa.engine.fitting",
    "load": "beit3_vqa.engine.predictor",
    "prepare": "beit3_vqa.preparation.frames",
    "register_with_timm": "beit3_vqa.models.names",
}


def __getattr__(name: str) -> object:
    """Import a name of `_LATER` when it is first asked for."""
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'beit3_vqa' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the names of `_LATER` too, so that a prompt completes them."""
    return sorted({*globals(), *__all__})
