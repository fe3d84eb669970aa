"""Export a trained model as a folder that needs nothing else: weights or graphs, tokenizer, options."""

import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from beit3_vqa.config.config import GROUP_OF
from beit3_vqa.engine.card import check_card, model_card
from beit3_vqa.engine.checkpoint.manifest import TEMPERATURE, get_sha256, read_temperature
from beit3_vqa.engine.checkpoint.portable import WEIGHTS, write_portable
from beit3_vqa.engine.components import Components
from beit3_vqa.engine.evaluator import naming
from beit3_vqa.engine.hub import check_hub, push
from beit3_vqa.engine.predictor import find_checkpoint, load_components
from beit3_vqa.errors import InputError, first_line
from beit3_vqa.runtime.files import is_new_or_empty, make_folder, require_writable, stale_temporaries, write_text
from beit3_vqa.runtime.tensors import is_plain

SAFETENSORS = "safetensors"
FORMATS = (SAFETENSORS, "onnx", "pt2")
CARD, CONFIG, PREPROCESSING = "README.md", "config.json", "preprocessing.json"
_PATHS = frozenset({"sentencepiece_model", "pretrained"})  # of the machine of the training


def export(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    merge: bool = False,
    pretrained: str = "",
    formats: tuple[str, ...] = (SAFETENSORS,),
    license: str = "",
    dataset: str = "",
    push_to_hub: str = "",
    public: bool = False,
) -> None:
    """Write a trained model as a folder: whole, or not at all.

    Args:
        checkpoint: `checkpoint-best.pth` or `checkpoint-N.pth`, a run's folder, or one that this made.
        folder: new or empty.
        merge: CLIP: write the whole model; else the adapters alone.
        pretrained: CLIP: the model that was fine-tuned, if it has moved since.
        formats: of `FORMATS`; a family whose library has a format of its own (CLIP) is written in that.
        license: of the model, for its card: an identifier of the hub's, such as apache-2.0; empty: not stated.
        dataset: a line for the card on what it was trained on; empty: not stated.
        push_to_hub: `OWNER/NAME` of a repository on the Hugging Face hub to upload the folder to; empty: none.
        public: make a new repository public; else it is private.

    Raises:
        InputError: not such a checkpoint, a folder that isn't empty, or a format that the model can't have.
    """
    folder, path = Path(folder), find_checkpoint(Path(checkpoint))
    if not is_new_or_empty(folder):
        raise InputError(f"{folder} isn't an empty folder; name a new one.")
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise InputError(f"--format {unknown[0]}: must be one of {', '.join(FORMATS)}.")
    check_card(license, dataset)
    check_hub(push_to_hub, public)
    # In fp32, in which no weight is held in a narrower type.
    given = {"device": "cpu", "precision": "fp32"} | ({"pretrained": pretrained} if pretrained else {})
    components = load_components(path, given)
    temperature = read_temperature(path)
    family, graphs = components.family, [name for name in formats if name != SAFETENSORS]
    if family.exports and graphs:
        raise InputError(f"--format {' '.join(graphs)}: a {components.config.model.model} has no graphs.")
    if merge and not family.exports:
        raise InputError("--merge is for CLIP: the folder of a BEiT-3 always holds the whole model.")
    with naming(str(checkpoint)), _whole(folder) as place:
        if family.exports:
            family.export(components.model, components.processor, place, merge=merge)
        else:
            beside = about_model(components, without=_PATHS)
            if graphs:
                how = family.export_graphs(components.model, components.processor, place, graphs)
                meaning = {"answers": components.task.state().get("answers"), TEMPERATURE: temperature}
                write_text(place / PREPROCESSING, _json({**how, **meaning}))
            if SAFETENSORS in formats:
                write_weights(components, path, place)
            write_text(place / CONFIG, _json({"model_type": "beit3_vqa", **beside}))
            family.save_assets(components.processor, place)
        card = model_card(components, path, sorted(p.name for p in place.iterdir()), license, dataset)
        write_text(place / CARD, card)
    print(f"wrote {folder}; the prompt was {components.config.model.prompt_template!r}")
    if push_to_hub:
        print(f"uploaded to {push(folder, push_to_hub, public=public)}")


def write_weights(components: Components, checkpoint: Path, folder: Path) -> None:
    """Write the weights that answer, with the options and answers that loading them asks for.

    Args:
        components: with the checkpoint's weights.
        checkpoint: the file that they come from, whose temperature is kept.
        folder: for `model.safetensors` and `model.json`.
    """
    temperature = read_temperature(checkpoint)
    weights = {name: value for name, value in components.model.state_dict().items() if is_plain(value)}
    about = {"exported_from": get_sha256(checkpoint), **({TEMPERATURE: temperature} if temperature else {})}
    write_portable(folder / WEIGHTS, weights, about_model(components, without=_PATHS), about)


def about_model(components: Components, *, without: Collection[str] = ()) -> dict[str, object]:
    """Return what loading asks of a checkpoint beside its weights; the options `without` are left out."""
    kept = {name for name, group in GROUP_OF.items() if group == "model"}.difference(without) | {"task", "fold"}
    return {
        "args": {name: value for name, value in components.config.flat().items() if name in kept},
        "task_state": components.task.state(),
        **components.family.fingerprints(components.model, components.processor),
    }


def _json(content: dict[str, object]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Yield a folder under another name, which becomes `folder` if the block ends without an error.

    Raises:
        InputError: something there can't be written.
    """
    make_folder(folder.parent)
    require_writable(folder)
    for stale in filter(Path.is_dir, stale_temporaries(folder.parent, folder.name)):  # of an export that was killed
        shutil.rmtree(stale, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        # It is empty: `export` has looked.
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:  # a disk that is full
        raise InputError(
            f"{folder} can't be written ({error.strerror or first_line(error)}); choose another."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
