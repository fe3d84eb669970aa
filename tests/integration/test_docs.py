"""Every command in README.md and get_started/ is run, in order, in a folder such as their reader has.

What differs from the reader's run: the model is tiny and has weights of its own, and downloads come from this machine.
The two commands that install are run by `.ci/run` and tests/integration/test_demo.py.
"""

import ast
import csv
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from beit3_vqa.cli.main import main
from beit3_vqa.models.beit3.download import OFFICIAL_WEIGHTS
from beit3_vqa.models.names import (
    LISTED_CLIP,
    build_model,
    count_adapters,
    count_clip_parameters,
    count_parameters,
    listed_names,
    parse_clip_name,
    parse_name,
)
from tests.helpers.captioned import write_captioned
from tests.helpers.commands import CLIP, TINY
from tests.helpers.generated import write_imagenet, write_nlvr2, write_vqav2
from tests.helpers.pages import ROOT, commands
from tests.helpers.processes import ENVIRONMENT

PAGES = ["README.md", "get_started/get_started_for_vqacustom.md", "checkpoints/README.md"]
PAGES += ["get_started/evaluation_and_reports.md", "get_started/reports.md"]
_TASKS = ("vqav2", "nlvr2", "image_classification", "retrieval", "captioning")
SLOW_PAGES = [
    "README.ko.md",
    "get_started/clip.md",
    "get_started/ensembles.md",
    "get_started/code_contests.md",
    "get_started/search.md",
    *(f"get_started/get_started_for_{name}.md" for name in _TASKS),
]
PAGES += SLOW_PAGES
# serve.md: tests/unit/apps/serve/test_server.py runs its commands, which don't end by themselves.
OTHER_PAGES = ["get_started/serve.md", "get_started/several_gpus.md", "get_started/reliability.md"]
OTHER_PAGES += [f"get_started/{name}.md" for name in ("models", "results", "experiments", "benchmarks", "differences")]
OTHER_PAGES += [
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "get_started/export.md",
]  # tests/integration/test_export.py, test_graphs.py
LARGE = "beit3_large_indomain_patch16_224.pth"
BASE = "beit3_base_patch16_224.pth"
ITC = "beit3_base_itc_patch16_224.pth"


@pytest.fixture(scope="module")
def reader(scpc, clip_folder, tmp_path_factory) -> Path:
    """A folder with train.csv, test.csv, images/ and the other things that the pages speak of."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(scpc / "images", folder / "images")
    shutil.copy(folder / "images" / "0_chelsea.jpg", folder / "images" / "0.jpg")
    for name in ("train.csv", "test.csv"):
        shutil.copy(scpc / name, folder / name)
    (folder / "image" / "train").mkdir(parents=True)
    (folder / "image" / "test").mkdir()
    (folder / "visual7w_images").mkdir()
    with (scpc / "train.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    dacon, images = [], []
    for number, row in enumerate(rows):
        source = scpc / "images" / row["img_path"]
        shutil.copy(source, folder / "image" / "train" / f"i{number}.jpg")
        shutil.copy(source, folder / "image" / "test" / f"i{number}.jpg")
        shutil.copy(source, folder / "visual7w_images" / f"v7w_{number}.jpg")
        answer = row[row["answer"]]
        dacon.append(
            {"image_id": f"i{number}", "question": row["Question"], "answer": answer, "question_id": row["ID"]}
        )
        wrong = [row[letter] for letter in "ABCD" if letter != row["answer"]]
        pair = {"qa_id": number, "question": row["Question"], "answer": answer, "type": "what"}
        split = ("train", "train", "val", "test")[number % 4]
        images.append(
            {
                "image_id": number,
                "filename": f"v7w_{number}.jpg",
                "split": split,
                "qa_pairs": [{**pair, "multiple_choices": wrong}],
            }
        )
    (folder / "train.json").write_text(json.dumps(dacon))
    (folder / "test.json").write_text(json.dumps([{**row, "answer": None} for row in dacon][:5]))
    (folder / "dataset_v7w_telling.json").write_text(json.dumps({"images": images}))
    (folder / "checkpoints").mkdir()
    shutil.copy(scpc / "data" / "tokenizer.spm", folder / "checkpoints" / "beit3.spm")
    source = build_model("beit3_tiny_patch8_64_nlvr2", vocab_size=300)  # a head that has the last norm, as theirs do
    weights = {name: value for name, value in source.state_dict().items() if name.startswith("beit3.")}
    for name in (LARGE, BASE, ITC):
        torch.save({"model": weights}, folder / "checkpoints" / name)
    write_vqav2(folder / "coco", 40)
    (folder / "coco" / "vqa").mkdir()
    for file in (folder / "coco").glob("*.json"):
        file.rename(folder / "coco" / "vqa" / file.name)
    (folder / "aokvqa").mkdir()
    (folder / "coco" / "train2017").mkdir()
    asked = []
    for number, row in enumerate(rows):
        shutil.copy(scpc / "images" / row["img_path"], folder / "coco" / "train2017" / f"{number:012}.jpg")
        one = {"question_id": f"q{number}", "image_id": number, "split": "train", "question": row["Question"]}
        asked.append(one | {"choices": [row[letter] for letter in "ABCD"], "correct_choice_idx": number % 4})
    (folder / "aokvqa" / "aokvqa_v1p0_train.json").write_text(json.dumps(asked))
    write_nlvr2(folder / "nlvr2_images", 12)
    (folder / "nlvr" / "nlvr2" / "data").mkdir(parents=True)
    for file in (folder / "nlvr2_images").glob("*.json"):
        file.rename(folder / "nlvr" / "nlvr2" / "data" / file.name)
    write_imagenet(folder / "imagenet", 2)
    for name in ("coco", "flickr30k"):
        write_captioned(folder / name, train=12, val=4, test=4)
    shutil.copytree(clip_folder, folder / "checkpoints" / "clip-vit-large-patch14")
    return folder


@pytest.fixture
def release(tmp_path, scpc):
    """The release's files, at their official sizes, served on this machine: tensors of one stored number each."""
    folder = tmp_path / "release"
    folder.mkdir()
    shutil.copy(scpc / "data" / "tokenizer.spm", folder / "beit3.spm")
    with torch.device("meta"):
        shapes = build_model("beit3_large_patch16_224_vqacustom").state_dict()
    torch.save({"model": {n: torch.zeros(1).expand(v.shape) for n, v in shapes.items()}}, folder / LARGE)
    handler = partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def as_here(command: list[str]) -> list[str]:
    """The reader's command with a tiny model, for this machine."""
    arguments = command[1:] if command[0] == "beit3-vqa" else ["finetune", *command[2:]]
    names = ["beit3_large_patch16_480", *(f"beit3_base_patch16_{size}" for size in (224, 384, 480))]
    tiny = dict.fromkeys(names, "beit3_tiny_patch8_32")
    tiny["clip_vit_large_patch14_lora"] = f"{CLIP.name}_lora"
    arguments = [tiny.get(word, word) for word in arguments]
    if arguments[0] in ("finetune", "cross_validate", "search"):
        arguments += [*TINY[2:], "--num_workers", "0"]
    return ["300" if arguments[i - 1 : i] == ["--train_tokenizer"] else word for i, word in enumerate(arguments)]


@pytest.mark.parametrize("page", [pytest.param(p, marks=[pytest.mark.slow] * (p in SLOW_PAGES)) for p in PAGES])
def test_commands_on_a_page_run_as_written(page, reader, release, monkeypatch, tmp_path):
    shutil.copytree(reader, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    if page == "get_started/search.md":
        pytest.importorskip("optuna")
        text = (ROOT / page).read_text(encoding="utf-8")
        Path("space.json").write_text(re.search(r"```json\n(.*?)```", text, flags=re.S)[1], encoding="utf-8")
    ran = 0
    for command in commands(page):
        if command[0] in ("pip", "pytest", "ruff", "hf"):
            continue  # these install (.ci/run and test_demo.py run them) or download
        if command[1] == "download":
            name = command[2]
            assert name in OFFICIAL_WEIGHTS
            if "--folder" not in command and name in ("beit3.spm", LARGE):
                assert main([*command[1:], "--folder", str(tmp_path / "fetched"), "--url", release + name]) == 0, (
                    command
                )
        else:
            assert command[0] == "beit3-vqa" or command[:2] == ["python", "run_beit3_finetuning.py"], command
            assert main(as_here(command)) == 0, command
        ran += 1
    assert ran


@pytest.mark.slow
def test_commands_for_several_gpus_run_as_written(scpc, reader, tmp_path):
    """As the page has them, but for the tiny model and the processors in the place of GPUs."""
    shutil.copytree(reader, tmp_path / "work")
    shutil.copytree(scpc / "data", tmp_path / "work" / "data")
    shutil.copy(ROOT / "run_beit3_finetuning.py", tmp_path / "work")
    for command in commands("get_started/several_gpus.md"):
        here = 2 if command[0] == "torchrun" else 1
        start = [sys.executable, "-m", "torch.distributed.run", command[1]] if here == 2 else [sys.executable]
        arguments = as_here(["python", *command[here:]])[1:]
        subprocess.run([*start, command[here], *arguments], cwd=tmp_path / "work", env=ENVIRONMENT, check=True)
    assert (tmp_path / "work" / "out" / "submission.csv").is_file()


def test_the_page_on_models_lists_them():
    page = (ROOT / "get_started" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `(beit3_\w+)` \| (\d+) \| ([\d,]+) \|", page)
    assert [name for name, _, _ in rows] == listed_names()
    for name, resolution, parameters in rows:
        parsed = parse_name(name, head="vqacustom")
        assert (parsed.img_size, count_parameters(parsed)) == (int(resolution), int(parameters.replace(",", "")))


def test_clips_page_lists_its_models():
    rows = re.findall(
        r"\| `(clip_\w+)_lora` \| `([\w/:-]+)` \| ([\d,]+) \| ([\d,]+) \|",
        (ROOT / "get_started" / "clip.md").read_text(encoding="utf-8"),
    )
    assert {name: weights for name, weights, *_ in rows} == LISTED_CLIP
    for name, _, total, trained in rows:
        parsed = parse_clip_name(name)
        adapters = count_adapters(parsed, 32)
        assert f"{count_clip_parameters(parsed) + adapters:,}" == total
        assert f"{adapters:,}" == trained


def python_of(page: str) -> str:
    code = re.search(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)
    assert code is not None
    return code[1]


@pytest.mark.parametrize("page", ["README.md", "get_started/get_started_for_vqacustom.md"])
def test_python_on_a_page_runs_as_written(page, reader, monkeypatch, tmp_path):
    """As the page has it, but for a tiny model and one epoch."""
    assert python_of("README.ko.md") == python_of("README.md")
    shutil.copytree(reader, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    shutil.copy("train.csv", "val.csv")
    text = python_of(page).replace("beit3_base_patch16_480", "beit3_tiny_patch8_32")
    assert "epochs=5," in text
    names: dict[str, object] = {}
    exec(text.replace("epochs=5,", 'epochs=1, vocab_size=300, device="cpu", num_workers=0,'), names)
    assert {"answer", "probability", "p_D"} <= set(names["answers"])
    assert 0 <= names["scores"]["accuracy"] <= 100


def test_links_lead_somewhere():
    for page in [*PAGES, *OTHER_PAGES]:
        for link, _, heading in re.findall(r"\]\(([^)#]+)(#([^)]*))?\)", (ROOT / page).read_text(encoding="utf-8")):
            if not link.startswith("http"):
                target = (ROOT / page).parent / link
                assert target.exists(), f"{page}: {link}"
                assert not heading or heading in anchors_of(target), f"{page}: {link}#{heading}"


def anchors_of(page: Path) -> list[str]:
    """What follows # in a link to each heading of a page, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_korean_pages_errors_are_what_the_program_says():
    rows = re.findall(
        r"^\| `([^`]*)`(?:, `[^`]*`)* \|", (ROOT / "README.ko.md").read_text(encoding="utf-8"), flags=re.M
    )
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "beit3_vqa").rglob("*.py")]
    said = [
        n.value for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]
    assert len(rows) >= 10
    assert [row for row in rows if not any(row in text for text in said)] == []
