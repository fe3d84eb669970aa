"""Every option of a run: its name, default, meaning and check, in one place.

`cli.py` makes the flags and `--help` from these dataclasses, `config.json` in an output folder is their JSON form, and
the engine reads them. Names are upstream's where upstream has the option; what differs is said in `help`.
"""

import dataclasses
import json
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beit3_vqa.errors import InputError, nearest
from beit3_vqa.files import missing, write_text
from beit3_vqa.option import check_option, option, typed

DEFAULT_PROMPT_TEMPLATE = "{question} Choices: A. {a} B. {b} C. {c} D. {d}"
MAX_BPE_TOKENS = 64


@dataclass(frozen=True)
class ModelConfig:
    """What the weights mean: saved with every checkpoint and taken from there by --eval and --resume."""

    model: str = option("beit3_base_patch16_480", "name of the model, with or without the task at its end")
    input_size: int | None = option(None, "only checked: the model's name decides the resolution", unit="pixels")
    sentencepiece_model: str = option("", "SentencePiece file; default: tokenizer.spm in --data_path, if it's there")
    vocab_size: int = option(
        64010, "rows of the token embedding; 64,010 in the official checkpoints", within="[4, 1e8]"
    )
    num_classes: int | None = option(
        None,
        "answers; default: as many as answer2label.txt has, else an error if it differs",
        aliases=("nb_classes",),
        within="[1, 1e7]",
    )
    num_max_bpe_tokens: int | None = option(
        None,
        f"longest text, <s> and </s> included; default: what the data need, {MAX_BPE_TOKENS} at most",
        unit="tokens",
    )
    prompt_template: str = option(DEFAULT_PROMPT_TEMPLATE, "text of a multiple-choice question")
    vqa_loss: str = option("ce", "cross entropy, or upstream's binary cross entropy per class", choices=("ce", "bce"))


@dataclass(frozen=True)
class InitConfig:
    """Where the weights come from."""

    finetune: str = option("", "checkpoint to start from, official or anybody's")
    model_key: str = option("model|module", "keys of that file that may hold the weights, tried in order")
    model_prefix: str = option("", "prefix to strip from its parameter names")
    allow_missing: str = option("", "regular expression of parameter names that --finetune may leave out")
    trust_checkpoint: bool = option(False, "let --finetune run code that the file brings (pickle); for files you trust")
    init: str = option(
        "auto",
        "scale of fresh weights: upstream's, or unit, for training from scratch; auto: unit without --finetune",
        choices=("auto", "unit", "upstream"),
    )
    drop_path: float = option(
        0.1, "stochastic depth of the last layer, growing linearly from 0", unit="probability", within="[0, 1)"
    )
    checkpoint_activations: bool = option(False, "recompute activations in the backward pass to save memory")


@dataclass(frozen=True)
class DataConfig:
    """Where the questions are and how they are read."""

    data_path: str = option("", "folder that `beit3-vqa prepare` wrote")
    image_root: str = option("", "folder of the images, where it isn't the one written in dataset.json")
    fold: int | None = option(
        None, "with `prepare --folds K`: the fold to validate on, 0..K-1, train on the others", within="[0, 1e6]"
    )
    shuffle_choices: bool = option(True, "permute the options, and the answer with them, anew in every epoch")
    balance_answers: float = option(
        0.0,
        "draw training rows in proportion to (rows with the same answer)^-this; 0: every row once an epoch, "
        "1: answers equally often",
        within="[0, 1]",
    )
    randaug: bool = option(False, "RandAugment(2, 7) on training images")
    train_interpolation: str = option("bicubic", "of the training crop", choices=("bicubic", "bilinear", "random"))
    crop_scale: float = option(
        0.5, "smallest share of the image that a training crop keeps; 1: no cropping", within="(0, 1]"
    )
    flip: float = option(
        0.5, "horizontal flips in training, never where left or right matters", unit="probability", within="[0, 1]"
    )
    num_workers: int | None = option(
        None,
        "processes that load data; default: one per core, at most 10; on a CPU half of them; 0: none",
        within="[0, 1000]",
    )
    pin_mem: bool = option(True, "page-locked memory for faster copies to a GPU")


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its schedule."""

    epochs: int = option(20, "passes over the training data", within="[1, 1e6]")
    batch_size: int = option(64, "examples in a forward pass", within="[1, 1e6]")
    update_freq: int = option(1, "forward passes per optimizer step", within="[1, 1e6]")
    eval_batch_size: int | None = option(
        None, "examples in an evaluation pass; default: 1.5 times --batch_size", within="[1, 1e6]"
    )
    lr: float = option(5e-4, "peak learning rate", within="[0, 1e6]")
    min_lr: float = option(1e-6, "learning rate at the end of the cosine", within="[0, 1e6]")
    warmup_epochs: float | None = option(
        None,
        "linear warm-up, fractions allowed; default: 5, and at most a quarter of --epochs",
        unit="epochs",
        within="[0, 1e6]",
    )
    warmup_steps: int = option(
        -1, "warm-up in optimizer steps, instead of --warmup_epochs, if positive", within="[-1, 1e12]"
    )
    layer_decay: float = option(0.9, "factor of the learning rate from one layer to the one below", within="(0, 1]")
    task_head_lr_weight: float = option(
        0.0, "factor of the head's learning rate, on top of --layer_decay; 0: none", within="[0, 1e6]"
    )
    weight_decay: float = option(0.05, "AdamW's; none on biases, norms, [CLS] and image positions", within="[0, 1e6]")
    opt: str = option("adamw", "optimizer", choices=("adamw",))
    opt_eps: float = option(1e-8, "AdamW's epsilon", within="[0, 1]")
    opt_betas: tuple[float, ...] = option((0.9, 0.999), "AdamW's betas")
    clip_grad: float | None = option(None, "largest norm of the gradient; default: no clipping", within="[0, 1e12]")
    label_smoothing: float = option(0.0, "for cross entropy", unit="probability", within="[0, 1)")
    model_ema: bool = option(False, "keep a moving average of the weights, and evaluate that")
    model_ema_decay: float = option(0.9999, "of the moving average, per optimizer step", within="[0, 1)")
    model_ema_force_cpu: bool = option(False, "keep the moving average in main memory")


@dataclass(frozen=True)
class RunOptions:
    """The run itself: what to do, where, and what to keep."""

    task: str = option("vqacustom", "kind of task")
    output_dir: str = option("", "folder for checkpoints, logs and results")
    log_dir: str = option("", "TensorBoard folder; default: --output_dir/tensorboard")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = option(
        "auto",
        "compute precision; auto: bf16 where the hardware has it, else fp16 on a GPU, else fp32",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    seed: int = option(0, "of everything random", within="[0, 4294967295]")
    eval: bool = option(False, "no training: evaluate --resume or --finetune on --split")
    split: str = option("test", "what --eval evaluates", choices=("test", "val", "train"))
    resume: str = option("", "one of your own checkpoints to go on from")
    auto_resume: bool = option(True, "go on from the newest checkpoint in --output_dir")
    resume_weights_only: bool = option(False, "with --resume: weights and epoch, but a new optimizer")
    stop_after_epochs: int = option(
        0, "stop after that many epochs of this session, to be resumed later; 0: never", within="[0, 1e6]"
    )
    save_ckpt: bool = option(True, "write checkpoints")
    save_ckpt_freq: int = option(
        1, "epochs between checkpoints (upstream: 5); the last is always written", within="[1, 1e6]"
    )
    keep_checkpoints: int = option(0, "newest epoch checkpoints to keep beside the best; 0: all", within="[0, 1e6]")
    dry_run: bool = option(False, "two training and two evaluation steps, sizes and a time estimate, then stop")
    tune_allocator: bool = option(
        True, "on Linux: keep freed memory for the next step (BEIT3_VQA_TUNE_ALLOCATOR=0 turns it off too)"
    )
    log_interval: float = option(
        10.0, "between progress lines where there's no terminal", unit="seconds", within="[0, 1e9]"
    )


@dataclass(frozen=True)
class RunConfig:
    """All options of a run, and which of them the user gave."""

    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunOptions = field(default_factory=RunOptions)
    given: frozenset[str] = frozenset()

    def __post_init__(self):
        _check(self)

    def to_dict(self) -> dict[str, Any]:
        """JSON form: one object per group."""
        return {group: dataclasses.asdict(getattr(self, group)) for group in GROUPS}

    def flat(self) -> dict[str, Any]:
        """Option name -> value, over all groups."""
        return {name: value for group in self.to_dict().values() for name, value in group.items()}

    def updated(self, values: dict[str, Any], given: frozenset[str] | None = None) -> "RunConfig":
        """A copy with some options changed, by flat name."""
        groups = {
            group: dataclasses.replace(
                getattr(self, group), **{name: value for name, value in values.items() if GROUP_OF[name] == group}
            )
            for group in GROUPS
        }
        return RunConfig(**groups, given=self.given if given is None else given)

    def with_model_of(self, saved: dict[str, Any], where: str) -> "RunConfig":
        """Takes the model options that weren't given from those saved (flat) with the checkpoint `where`.

        Raises:
            InputError: one of them has a value that option can't have.
        """
        kinds = {name: kind for group, name, kind in _kinds() if group == "model" and name not in self.given}
        try:
            return self.updated({n: typed(saved[n], kind, f"its {n}") for n, kind in kinds.items() if n in saved})
        except InputError as error:
            raise InputError(f"{where} was saved with options that no model can have: {error}") from error

    def num_workers(self, beside_model: bool) -> int:
        """Worker processes of a data loader; fewer where they share the cores with the model (`beside_model`)."""
        if self.data.num_workers is not None:
            return self.data.num_workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(10, max(1, cores // 2) if beside_model else cores)

    @property
    def eval_batch_size(self) -> int:
        """Examples in an evaluation pass."""
        return self.optim.eval_batch_size or max(1, int(self.optim.batch_size * 1.5))


GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "init": InitConfig,
    "data": DataConfig,
    "optim": OptimConfig,
    "run": RunOptions,
}
SESSION_OPTIONS = frozenset(
    {"eval", "split", "resume", "auto_resume", "resume_weights_only", "stop_after_epochs", "dry_run"}
)
GROUP_OF = {f.name: group for group, cls in GROUPS.items() for f in dataclasses.fields(cls)}


def option_fields() -> list[tuple[str, dataclasses.Field, Any]]:
    """(group, field, resolved type) of every option, in the order of `--help`."""
    return [
        (group, f, typing.get_type_hints(cls)[f.name]) for group, cls in GROUPS.items() for f in dataclasses.fields(cls)
    ]


def _kinds() -> list[tuple[str, str, Any]]:
    return [(group, f.name, kind) for group, f, kind in option_fields()]


def write_config(config: RunConfig, path: Path) -> None:
    """Writes config.json whole or not at all, without what was meant for one session only."""
    groups = config.to_dict()
    groups["run"] = {name: value for name, value in groups["run"].items() if name not in SESSION_OPTIONS}
    write_text(path, json.dumps(groups, indent=2, ensure_ascii=False) + "\n")


def read_config_values(path: str | Path) -> dict[str, Any]:
    """Flat option values of a config.json; groups may be left out, unknown names are an error.

    Raises:
        InputError: no such file, not JSON, an unknown option, or a value of the wrong type.
    """
    path = Path(path)
    try:
        loaded = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"--config: {missing('file', path)}") from None
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"--config {path} isn't JSON: {error}.") from error
    if not isinstance(loaded, dict):
        raise InputError(f"--config {path}: expected an object of options.")
    values: dict[str, Any] = {}
    for name, value in loaded.items():
        values |= value if name in GROUPS and isinstance(value, dict) else {name: value}
    types = {name: kind for _, name, kind in _kinds()}
    for name, value in values.items():
        if name not in types:
            raise InputError(f"--config {path}: unknown option {name!r}.{nearest(name, types)}")
        values[name] = typed(value, types[name], f"--config {path}: {name}")
    return values


def _check(config: RunConfig) -> None:
    """Ranges, choices and contradictions that can be told without opening a file."""
    values = config.flat()
    for _, f, _ in option_fields():
        check_option(f, values[f.name])
    if not config.optim.min_lr <= config.optim.lr:
        raise InputError(
            f"--min_lr {config.optim.min_lr:g} is above --lr {config.optim.lr:g}, where the cosine begins; lower it."
        )
    if len(config.optim.opt_betas) != 2 or not all(0 <= beta < 1 for beta in config.optim.opt_betas):
        raise InputError("--opt_betas: give two numbers from 0 up to, not including, 1.")
    if config.optim.label_smoothing and config.model.vqa_loss == "bce":
        raise InputError("--label_smoothing works with --vqa_loss ce, not with bce.")
