"""The page about an exported model (README.md), with the front matter that the Hugging Face hub reads."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from beit3_vqa.data.predictions import predictions_file, read_info
from beit3_vqa.engine.checkpoint.manifest import MAX_MANIFEST, get_sha256
from beit3_vqa.engine.checkpoint.portable import WEIGHTS
from beit3_vqa.engine.components import Components
from beit3_vqa.errors import InputError, one_line
from beit3_vqa.models.beit3.processor import BEiT3Processor
from beit3_vqa.runtime.files import read_json

logger = logging.getLogger(__name__)

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]{0,40}")
_METRICS = re.compile(r"metrics(_\w+)?\.json")


def check_card(license: str, dataset: str) -> None:
    """Raise InputError if what the user says about the model can't stand in its card."""
    if license and not _LICENSE.fullmatch(license):
        raise InputError(f"--license {license!r}: write it as the hub does, such as apache-2.0, mit or cc-by-nc-4.0.")
    if dataset != one_line(dataset):
        raise InputError(f"--dataset {dataset!r}: must be one line of text.")


def model_card(components: Components, checkpoint: Path, files: Sequence[str], license: str, dataset: str) -> str:
    """Return the page as Markdown.

    Args:
        components: of the model.
        checkpoint: the file that was exported; the metrics*.json beside it that were measured on it are shown.
        files: names of the files in the folder.
        license: identifier; empty: not stated.
        dataset: a line; empty: not stated.

    Raises:
        InputError: a metrics*.json, or the info beside its predictions, can't be read.
    """
    config, spec = components.config, components.task.spec
    library = "peft" if "adapter_config.json" in files else "transformers" if components.family.exports else "beit3_vqa"
    tables = _metrics(checkpoint, spec.best_metric)
    front = [f"license: {license}"] if license else []
    front += [f"library_name: {library}"]
    front += ["pipeline_tag: visual-question-answering"] if spec.supports_questions else []
    front += ["metrics:", f"- {spec.best_metric}"] if tables else []
    front += ["tags:", f"- {config.model.model.split('_')[0]}"]
    parameters = sum(parameter.numel() for parameter in components.model.parameters())
    lines = ["---", *front, "---", "", f"# {config.model.model}", ""]
    lines += [f"A {config.model.model} ({parameters:,} parameters), trained with beit3_vqa on `{spec.name}`.", ""]
    lines += [f"- Training data: {_plain(dataset) or 'not stated'}", f"- License: {license or 'not stated'}"]
    reads = components.processor
    # With other than four options BEiT-3 doesn't read the default template.
    prompt = reads.prompt.template if isinstance(reads, BEiT3Processor) else config.model.prompt_template
    lines += [f"- Prompt: `{one_line(prompt)}`", ""]
    lines += [
        "## Metrics",
        "",
        *(tables or ["None were measured."]),
        "",
        "## How to load",
        "",
        *_loading(library, files),
    ]
    return "\n".join(lines) + "\n"


def _metrics(checkpoint: Path, name: str) -> list[str]:
    """Return a table of the metric `name`, a row for each metrics*.json that was measured on the checkpoint."""
    rows, folder = [], checkpoint.parent
    found = sorted(path for path in folder.glob("metrics*.json") if _METRICS.fullmatch(path.name))
    sha256 = get_sha256(checkpoint) if found else ""
    for path in found:
        split = path.stem.removeprefix("metrics").removeprefix("_") or "test"
        info = read_info(predictions_file(folder, split))
        if info is None or info.sha256 != sha256:
            logger.warning(
                f"{path} was measured on another checkpoint, or doesn't say on which: the model card leaves it out"
            )
            continue
        content = read_json(path, MAX_MANIFEST)
        value = content.get(name) if isinstance(content, dict) else None
        if type(value) not in (int, float):
            raise InputError(f"{path}: has no number under {name!r}, so it isn't this model's; move it away.")
        interval = content.get(f"{name}_interval")
        known = isinstance(interval, dict) and all(type(interval.get(end)) is float for end in ("low", "high"))
        shown = f"{interval['low']:.2f} to {interval['high']:.2f}" if known else ""
        questions = content.get("questions")
        averaged = "" if info.tta == "none" else f" (`--tta {info.tta}`)"
        rows.append(f"| {split}{averaged} | {value:.2f} | {shown} | {questions if type(questions) is int else ''} |")
    return [f"| split | {name} | 95% interval | questions |", "|---|---|---|---|", *rows] if rows else []


def _plain(text: str) -> str:
    """Escape what Markdown or HTML would read as more than text."""
    return re.sub(r"([\\`*_\[\]<>#|!])", r"\\\1", text)


def _loading(library: str, files: Sequence[str]) -> list[str]:
    if library != "beit3_vqa":
        call = "PeftModel.from_pretrained(base, FOLDER)" if library == "peft" else "CLIPModel.from_pretrained(FOLDER)"
        return ["```python", f"{library}.{call}", "```"]
    lines = []
    if WEIGHTS in files:
        lines += ["```python", "import beit3_vqa", "", "model = beit3_vqa.load(FOLDER)"]
        lines += ['print(model.predict("image.jpg", "What is it?", ["a cat", "a dog", "a hat", "a mat"]))', "```", ""]
    graphs = [name for name in ("model.onnx", "model.pt2") if name in files]
    if graphs:
        lines += [f"`{'` and `'.join(graphs)}` run without beit3_vqa: `preprocessing.json` says what they are given."]
    return lines
