"""`beit3-vqa demo`: the whole pipeline on easy-VQA, by the same commands that a user types.

BEiT-3: first open-ended from scratch, so that the model learns what colours and shapes are; then that checkpoint on
four options, one at a time (`vqarank`). Straight to four options from scratch, a model this small hardly leaves chance;
and where it reads all four at once (`vqacustom`), it forgets most of what it had learned while it looks for the letter.

CLIP: a small one with random weights and a tokenizer of its own is written as a Hugging Face folder, in the place of a
user's pretrained one; all of its weights are trained, since adapters of random weights would learn little.
"""

import hashlib
import json
import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from beit3_vqa.config.options import OPTION_PROMPT_TEMPLATE
from beit3_vqa.data.index import split_file
from beit3_vqa.data.prompt import OptionTemplate
from beit3_vqa.data.rows import read_rows
from beit3_vqa.engine.logging import format_seconds
from beit3_vqa.errors import InputError, plural
from beit3_vqa.metrics.summary import without_looking
from beit3_vqa.models.clip.scratch import TinyCLIP, write_tiny_clip
from beit3_vqa.runtime.files import is_new_or_empty, make_folder, read_json, write_text

Main = Callable[[Sequence[str]], int]

PROGRESS = "demo.json"  # in the demo's folder: which demo it is, and the steps that are done
MAX_PROGRESS = 100_000  # bytes

Step = tuple[str, list[str] | Callable[[], object]]  # a title, and a command line or a function to call


@dataclass(frozen=True)
class CLIPRecipe:
    """Epochs, sizes of the model, and how many of the training images it sees (0: all)."""

    epochs: int
    sizes: TinyCLIP
    train_images: int = 0


CLIP_FULL = CLIPRecipe(epochs=3, sizes=TinyCLIP(), train_images=3200)
CLIP_QUICK = CLIPRecipe(epochs=2, sizes=TinyCLIP(), train_images=1200)
CLIP_TRAINING = ["--batch_size", "64", "--lr", "7e-4", "--warmup_steps", "100", "--opt_betas", "0.9", "0.98"]
CLIP_TRAINING += ["--clip_grad", "1", "--sched", "cosine", "--label_smoothing", "0"]


@dataclass(frozen=True)
class Recipe:
    """How both trainings go.

    Attributes:
        model: a name without a head.
        open_images: how many of the training images the first sees.
        open_options: options of the first.
        choices_images: how many the second sees, in which a question takes four passes.
        choices_options: options of the second.
    """

    model: str
    open_images: int
    open_options: str
    choices_images: int
    choices_options: str


# Seven in eight times "is the shape red?" is answered no. A model that may say no without looking learns nothing else
# of such questions for many epochs; where both answers come equally often, it has to look.
LOOK = "--balance_answers 1 --balance_within question"
FULL = Recipe(
    "beit3_tiny_patch8_48",
    3300,
    f"--epochs 3 --batch_size 128 --lr 1.4e-3 --warmup_steps 100 {LOOK}",
    2000,
    f"--epochs 1 --batch_size 64 --lr 7e-4 --warmup_steps 40 {LOOK}",
)
QUICK = Recipe(
    "beit3_tiny_patch8_32",
    1000,
    "--epochs 2 --batch_size 64 --lr 1.4e-3 --warmup_steps 100 --balance_answers 0.5",
    600,
    "--epochs 1 --batch_size 64 --lr 7e-4 --warmup_steps 40",
)
COMMON = "--opt muon --vocab_size 200 --layer_decay 1.0 --drop_path 0 --opt_betas 0.9 0.98"
COMMON += " --clip_grad 1 --crop_scale 1"
# An option follows the question, without a word that the first training never saw.
ONE_OPTION = ["--prompt_template", "{question} {choice}"]
# The second training goes on from here, so the first needn't come to rest.
OPEN_ENDED = "--min_lr 3e-4"


def demo(main: Main, output_dir: Path, *, model: str = "beit3", quick: bool = False, seed: int = 0) -> int:
    """Prepare, train, stop, resume, fine-tune, evaluate and report; print accuracy beside chance.

    Args:
        main: the command line's entry point.
        output_dir: folder for everything; new, empty, or one in which the same demo was begun, which then goes on.
        model: a key of `PIPELINES`.
        quick: fewer images and epochs, and a weaker model.
        seed: seed of the trainings.

    Returns:
        0, or the exit code of the command that failed.

    Raises:
        InputError: if the folder isn't empty, or a package of the extras isn't installed.
    """
    missing = [package for package in PACKAGES[model] if find_spec(package) is None]
    if missing:
        extras = "demo,clip" if "transformers" in missing else "demo"
        raise InputError(f'the demo needs {", ".join(missing)}: pip install "beit3_vqa[{extras}]".')
    # A demo of another version trains otherwise, and couldn't go on with this one's commands.
    commands = [shlex.join(step) for _, step in PIPELINES[model](quick, Path("demo"), seed) if isinstance(step, list)]
    recipe = hashlib.sha256("\n".join(commands).encode()).hexdigest()
    kind = {"model": model, "quick": quick, "seed": seed, "recipe": recipe}
    progress = output_dir / PROGRESS
    done = _read_done(progress, kind)
    if done is None and not is_new_or_empty(output_dir):
        raise InputError(
            f"{output_dir} isn't an empty folder, nor one in which this demo was begun; name a new one with "
            "--output_dir."
        )
    make_folder(output_dir)

    def keep(titles: Sequence[str]) -> None:
        write_text(progress, json.dumps({**kind, "done": list(titles)}, indent=2) + "\n")

    return take(PIPELINES[model](quick, output_dir, seed), main, output_dir, done=done or [], keep=keep)


def _read_done(progress: Path, kind: dict[str, object]) -> list[str] | None:
    """Return the titles of the steps that an earlier call finished; None if there is no such demo of this kind."""
    if not progress.is_file():
        return None
    found = read_json(progress, MAX_PROGRESS)
    same = isinstance(found, dict) and {name: found.get(name) for name in kind} == kind
    return [str(title) for title in found.get("done", [])] if same else None


def take(
    steps: Sequence[Step],
    main: Main,
    output_dir: Path,
    *,
    done: Sequence[str] = (),
    keep: Callable[[Sequence[str]], None] = lambda titles: None,
) -> int:
    """Take the steps one after the other.

    Args:
        steps: what to do.
        main: the command line's entry point.
        output_dir: folder of the demo.
        done: titles of steps that an earlier call finished; they aren't taken again.
        keep: called with the titles of all finished steps after each of them.

    Returns:
        0, or the exit code of the command that failed.
    """
    started, finished = time.monotonic(), list(done)
    keep(finished)
    for title, step in steps:
        if title in done:
            print(f"=== {title}: done before")
            continue
        print(f"\n=== {title}", flush=True)
        if callable(step):
            step()
        else:
            print(f"$ beit3-vqa {shlex.join(step)}", flush=True)
            code = main(step)
            if code:
                return code
        finished.append(title)
        keep(finished)
    _print_outcome(output_dir / "choices", time.monotonic() - started)
    return 0


def beit3_steps(recipe: Recipe, folder: Path, seed: int) -> list[Step]:
    """List the steps for BEiT-3: open-ended questions from scratch, then four options."""
    open_data, choices_data = str(folder / "data-open"), str(folder / "data-choices")
    open_out, choices_out = str(folder / "open"), str(folder / "choices")
    tokenizer = ["--sentencepiece_model", f"{choices_data}/tokenizer.spm"]
    common = ["--model", recipe.model, *COMMON.split(), *tokenizer, "--seed", str(seed)]
    first = ["finetune", "--task", "vqacustom", *common, *OPEN_ENDED.split(), *recipe.open_options.split()]
    first += ["--data_path", open_data, "--output_dir", open_out]
    second = ["finetune", "--task", "vqarank", *common, *recipe.choices_options.split(), *ONE_OPTION]
    second += ["--data_path", choices_data, "--output_dir", choices_out]
    second += ["--finetune", f"{open_out}/checkpoint-best.pth", "--init", "unit"]
    evaluate = ["finetune", "--task", "vqarank", "--eval", "--resume", f"{choices_out}/checkpoint-best.pth"]
    evaluate += ["--data_path", choices_data, "--output_dir", choices_out, "--device", "cpu"]
    prepare = ["prepare", "easy_vqa", "--val_ratio", "0.05", "--mode"]
    choices = [*prepare, "choices", "--train_images", str(recipe.choices_images), "--data_path", choices_data]
    choices += ["--train_tokenizer", "200"]
    open_ended = [*prepare, "open", "--train_images", str(recipe.open_images), "--data_path", open_data, *tokenizer]
    stop = ["--stop_after_epochs", "1"]
    report = ["report", choices_out, "--output", str(folder / "report.html"), "--device", "cpu"]
    return [
        ("1. prepare: four options", choices),
        ("2. prepare: open-ended questions", open_ended),
        ("3. train from scratch on open-ended questions, and stop after an epoch", [*first, *stop]),
        ("4. the same command again: it resumes", first),
        ("5. fine-tune on four options, one at a time", second),
        ("6. evaluate the best epoch on the test questions, on one device", evaluate),
        ("7. a page to look at: curves, metrics, every question", report),
    ]


def clip_steps(recipe: CLIPRecipe, folder: Path, seed: int) -> list[Step]:
    """List the steps for CLIP: four options, each judged by its own text."""
    data, out, clip = folder / "data-choices", str(folder / "choices"), folder / "clip"
    prepare = ["prepare", "easy_vqa", "--train_images", str(recipe.train_images), "--val_ratio", "0.05"]
    prepare += ["--mode", "choices", "--data_path", str(data)]
    train = ["finetune", "--task", "vqacustom", "--model", recipe.sizes.name, "--pretrained", str(clip)]
    train += [*CLIP_TRAINING, "--epochs", str(recipe.epochs), "--seed", str(seed)]
    train += ["--data_path", str(data), "--output_dir", out]
    evaluate = ["finetune", "--task", "vqacustom", "--eval", "--resume", f"{out}/checkpoint-best.pth"]
    evaluate += ["--data_path", str(data), "--output_dir", out, "--device", "cpu"]
    report = ["report", out, "--output", str(folder / "report.html"), "--device", "cpu"]

    def make_model() -> None:
        template = OptionTemplate(OPTION_PROMPT_TEMPLATE)
        rows = read_rows(data / split_file("train"))
        texts = (template(row["question"], choice) for row in rows for choice in row["choices"])
        print(f"wrote {write_tiny_clip(clip, texts, recipe.sizes, seed)}")

    return [
        ("1. prepare: four options", prepare),
        ("2. a small CLIP with random weights, and a tokenizer trained on the questions", make_model),
        ("3. train it from scratch, and stop after an epoch", [*train, "--stop_after_epochs", "1"]),
        ("4. the same command again: it resumes", train),
        ("5. evaluate the best epoch on the test questions, on one device", evaluate),
        ("6. a page to look at: curves, metrics, every question", report),
    ]


PIPELINES: dict[str, Callable[[bool, Path, int], list[Step]]] = {
    "beit3": lambda quick, folder, seed: beit3_steps(QUICK if quick else FULL, folder, seed),
    "clip": lambda quick, folder, seed: clip_steps(CLIP_QUICK if quick else CLIP_FULL, folder, seed),
}
# What the steps import on the way; looked for before the first, since the last is minutes away.
PACKAGES = {"beit3": ("easy_vqa", "jinja2"), "clip": ("easy_vqa", "jinja2", "transformers")}


def _print_outcome(out: Path, seconds: float) -> None:
    """Print the test accuracy and what the run's folder holds."""
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    print(
        f"\nTest accuracy with four options: {metrics['accuracy']:.1f}% (chance: 25%), "
        f"{plural(metrics['questions'], 'question')}, after {format_seconds(seconds)}."
    )
    if blind := without_looking(metrics):
        print(f"  ({blind}%)")
    for word, group in metrics["accuracy_by_question_word"].items():
        print(f"  {word:<6} {group['accuracy']:5.1f}% of {plural(group['questions'], 'question')}")
    print("Where everything is:")
    for name, what in (
        ("../report.html", "open it in a browser: curves, metrics, every question, where the model looked"),
        ("submission.csv", "ID,answer of every test question"),
        ("predictions.json", "with the probability of every option"),
        ("metrics.json", "accuracy, by question word, answers against truth"),
        ("checkpoint-best.pth", "ask it: beit3-vqa predict --checkpoint ... --image ... --question ... --choices ..."),
        ("tensorboard", f"curves: tensorboard --logdir {out.parent}"),
    ):
        print(f"  {os.path.normpath(out / name)}: {what}")
