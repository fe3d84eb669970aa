"""Byte-mutation fuzzing of everything that is read from others.

    python -m tests.faults.fuzz csv=10000 jpeg=10000 ... [--only N]

Each reader named (`targets` has them all) gets that many mutated copies of a good file. Only InputError may come out,
in less than `MAX_SECONDS`, the process may grow by less than `MAX_GROWTH`, and nothing may appear outside the reader's
output folder. Input number N is a function of the reader's name and N: `--only N` repeats one. A JSON line is printed
for each reader.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from beit3_vqa.config.config import RunConfig, read_config_values
from beit3_vqa.config.options import DEFAULT_PROMPT_TEMPLATE
from beit3_vqa.config.resolve import GivenOptions, SavedOptions, resolve
from beit3_vqa.data.images import image_size, open_image
from beit3_vqa.data.prompt import PromptTemplate
from beit3_vqa.data.tokenizer import Tokenizer, train_tokenizer
from beit3_vqa.data.transforms import EvalTransform
from beit3_vqa.engine.checkpoint.io import get_options, read_checkpoint, set_random_state
from beit3_vqa.engine.checkpoint.validate import validate_content
from beit3_vqa.engine.optim import load_optimizer, make_optimizer
from beit3_vqa.errors import InputError
from beit3_vqa.models.beit3.key_layout import check_key_layout
from beit3_vqa.models.beit3.pretrained import load_pretrained
from beit3_vqa.models.beit3.processor import BEiT3Processor
from beit3_vqa.models.names import build_model
from beit3_vqa.models.weights import find_weights
from beit3_vqa.preparation import prepare
from beit3_vqa.preparation.writer import PrepareOptions
from beit3_vqa.tasks.vqa import VQACustom
from tests.faults.mutate import change_archive, change_checkpoint, change_json, change_png, mutate
from tests.helpers import tables
from tests.helpers.options import build_config

MAX_SECONDS = 5.0
MAX_GROWTH = 2**30  # bytes of resident memory
SIZES = {"embed_dim": 16, "depth": 1, "num_heads": 2, "vocab_size": 300}


class Target:
    """A good file, what reads it, and how its bytes are changed."""

    def __init__(self, good: bytes, name: str, read: Callable[[Path], Any], change: Callable[..., bytes] = mutate):
        self.good, self.name, self.read, self.change = good, name, read, change


def targets(home: Path) -> dict[str, Target]:
    """Every reader, by name; `home` holds what they need beside the file."""
    images = home / "images"
    images.mkdir()
    picture = Image.linear_gradient("L").resize((48, 40)).convert("RGB")
    for name in ("a.jpg", "b.jpg", "v7w_1.jpg"):
        picture.save(images / name)
    tokenizer = train_tokenizer(
        ["what is it? Choices: A. cat B. dog C. hat D. map 무엇인가요"] * 4, 300, home / "t.spm"
    )
    csv = _csv().encode()
    (home / "t.csv").write_bytes(csv)
    _prepare("choices", "train", home / "folder")(home / "t.csv")
    processor = BEiT3Processor(tokenizer, 64, PromptTemplate(DEFAULT_PROMPT_TEMPLATE), EvalTransform(32))

    def open_folder(_: Path) -> None:
        config = build_config({"data_path": str(home / "folder")})
        task = VQACustom.from_folder(config)
        dataset = task.dataset("train", processor, training=True)
        processor.measure(map(dataset.example, range(len(dataset))), 300)
        dataset.balancing_weights(1.0)

    def folder_target(name: str, extra: bytes = b"") -> Target:
        return Target((home / "folder" / name).read_bytes() + extra, f"folder/{name}", open_folder, change_json)

    return {
        "csv": Target(csv, "x.csv", _prepare("choices", "train", home / "out", images)),
        "jsonl": folder_target("vqacustom.train.jsonl", _UPSTREAM_ROWS),
        "answers": folder_target("answer2label.txt"),
        "dataset": folder_target("dataset.json"),
        "config": Target(
            json.dumps(RunConfig().to_dict(), indent=1).encode(),
            "config.json",
            lambda path: build_config(read_config_values(path)),
            change_json,
        ),
        "visual7w": Target(_visual7w(), "x.json", _prepare("visual7w", "json", home / "out", images), change_json),
        "dacon": Target(_dacon(), "x.json", _prepare("dacon_json", "train", home / "out", images), change_json),
        "lines": Target(tables.json_lines(), "x.jsonl", _prepare("table", "train", home / "out", images), change_json),
        "xlsx": Target(tables.xlsx(), "x.xlsx", _prepare("table", "train", home / "out", images), change_archive),
        "xls": Target(tables.xls(), "x.xls", _prepare("table", "train", home / "out", images)),
        "parquet": Target(tables.parquet(home), "x.parquet", _prepare("table", "train", home / "out", images)),
        "feather": Target(tables.feather(home), "x.feather", _prepare("table", "train", home / "out", images)),
        "zip": Target(_zip(picture), "x.zip", _unpack(home), change_archive),
        "jpeg": Target(_image(picture, "JPEG"), "x.jpg", _look),
        "progressive": Target(_image(picture, "JPEG", progressive=True), "x.jpg", _look),
        "png": Target(_image(picture.convert("RGBA"), "PNG"), "x.png", _look, change_png),
        "checkpoint": Target(_checkpoint(), "x.pth", _load, change_checkpoint),
        "tokenizer": Target((home / "t.spm").read_bytes(), "x.spm", _tokenize),
    }


def _csv() -> str:
    rows = ["ID,img_path,Question,A,B,C,D,answer,weight"]
    rows += [
        f'Q{i},{"ab"[i % 2]}.jpg,"What, ""is"" it? {i} 무엇",cat,dog,hat,map,{"ABCD"[i % 4]},{i}.5' for i in range(6)
    ]
    return "\n".join(rows) + "\n"


_UPSTREAM_ROWS = b"".join(
    json.dumps({"image_path": "a.jpg", "text_segment": segment, "labels": [2], "scores": [0.6], "qid": 17 + i}).encode()
    + b"\n"
    for i, segment in enumerate(([5, 6], "what is it?"))
)


def _visual7w() -> bytes:
    pairs = [
        {"qa_id": i, "question": "What is it?", "answer": "A cat.", "type": "what", "multiple_choices": list("bcd")}
        for i in range(3)
    ]
    one = {"image_id": 1, "filename": "v7w_1.jpg", "split": "train", "qa_pairs": pairs}
    return json.dumps({"images": [one]}).encode()


def _dacon() -> bytes:
    items = [{"image_id": "ab"[i % 2], "question": "무엇?", "answer": "teal", "question_id": f"Q{i}"} for i in range(4)]
    return json.dumps(items, ensure_ascii=False).encode()


def _zip(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("a.jpg", "sub/b.jpg"):
            archive.writestr(name, _image(picture, "JPEG"))
    return buffer.getvalue()


def _unpack(home: Path) -> Callable[[Path], Any]:
    (home / "one.csv").write_text("id,img,question,A,B,answer\n1,a.jpg,Q?,x,y,A\n")

    def read(path: Path) -> None:
        options = PrepareOptions(str(home / "out" / "zip"), str(path), val_ratio=0, verify_images=False, check=True)
        prepare("table", {"train": str(home / "one.csv")}, options)

    return read


def _image(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


def _prepare(kind: str, argument: str, out: Path, images: Path | None = None) -> Callable[[Path], Any]:
    root = images or out.parent / "images"
    options = PrepareOptions(data_path=str(out), image_root=str(root), val_ratio=0, verify_images=False)
    return lambda path: prepare(kind, {argument: str(path)}, options).text()


def _look(path: Path) -> None:
    with contextlib.suppress(InputError):
        image_size(path)
    with contextlib.suppress(InputError):
        open_image(path, at_least=16)
    open_image(path)


def _tokenize(path: Path) -> None:
    tokenizer = Tokenizer(path)
    tokenizer.encode_batch(["What is it? Choices: A. 무엇 <s> \u2581 \U0001f642", "", "x" * 200])
    tokenizer.decode(range(tokenizer.vocab_size))


@lru_cache(maxsize=1)
def _tiny_model() -> Any:
    torch.manual_seed(0)
    return build_model("beit3_tiny_patch8_32_vqacustom", num_classes=4, **SIZES)


def _checkpoint() -> bytes:
    model = _tiny_model()
    optimizer = make_optimizer(model, RunConfig().optim)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "scaler": {}}
    content |= {
        "args": RunConfig().flat(),
        "best_score": 25.0,
        "best_epoch": 1,
        "task_state": {"answers": list("ABCD")},
    }
    content |= {"random_state": {"cpu": torch.get_rng_state()}, "tokenizer_sha256": "0" * 64}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _load(path: Path) -> None:
    with contextlib.suppress(InputError):
        check_key_layout(path, vocab_rows=None)
    content = read_checkpoint(path, "--resume")
    validate_content(content, "--resume")
    saved = {n: v for n, v in get_options(content).items() if n != "num_classes"}
    resolve(GivenOptions({}), saved=SavedOptions(saved, "--resume"))
    if "random_state" in content:
        set_random_state(content["random_state"])
    model = _tiny_model()
    load_pretrained(model, find_weights(content), "--resume")
    if "optimizer" in content:
        try:
            load_optimizer(make_optimizer(model, RunConfig().optim), content["optimizer"])
        except (ValueError, KeyError) as error:  # as `restore` does
            raise InputError(str(error)) from error


def run(name: str, target: Target, home: Path, numbers: range) -> dict[str, Any]:
    """Reads the good file, then mutated copies; the first few failures are in the result, by number."""
    path = home / target.name
    refused, slowest, failures = 0, 0.0, []
    path.write_bytes(target.good)
    target.read(path)
    before, peak = _files(home), _peak_memory()
    for number in numbers:
        path.write_bytes(target.change(target.good, random.Random(f"{name}/{number}")))
        # Where the process dies in native code, this file says on which input.
        (home / "now").write_text(f"{name} {number}")
        started = time.perf_counter()
        try:
            target.read(path)
        except InputError:
            refused += 1
        except BaseException:
            failures.append(f"{name} {number}: {traceback.format_exc(limit=-3)[:3000]}")
        seconds = time.perf_counter() - started
        if seconds > MAX_SECONDS:
            failures.append(f"{name} {number}: took {seconds:.1f} s")
        slowest = max(slowest, seconds)
        if len(failures) > 20:
            break
    path.write_bytes(target.good)
    growth = _peak_memory() - peak
    if growth > MAX_GROWTH:
        failures.append(f"{name}: memory grew by {growth:,} bytes")
    if _files(home) - before - {str(home / target.name), str(home / "now")}:
        failures.append(f"{name}: wrote {_files(home) - before}")
    return {"reader": name, "inputs": len(numbers), "refused": refused, "slowest_s": round(slowest, 3),
            "growth_mb": growth // 10**6, "failures": failures}  # fmt: skip


def _files(home: Path) -> set[str]:
    """Everything in `home` that isn't under its output folder."""
    return {str(path) for path in home.rglob("*") if not path.is_relative_to(home / "out")}


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER=COUNT")
    parser.add_argument("--only", type=int, metavar="N")
    given = parser.parse_args()
    counts = [(name, int(count)) for name, _, count in (word.partition("=") for word in given.readers)]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.chdir(home)  # a relative path that is written to shows up
        every = targets(home)
        warnings.simplefilter("error")
        for name, count in counts:
            numbers = range(count) if given.only is None else range(given.only, given.only + 1)
            started = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):  # what readers say of files that they take
                result = run(name, every[name], home, numbers)
            print(json.dumps({**result, "seconds": round(time.perf_counter() - started, 1)}), flush=True)


if __name__ == "__main__":
    main()
