"""`beit3-vqa finetune`, the same as `run_beit3_finetuning.py`: train, resume, evaluate."""

import argparse
from typing import Any

from beit3_vqa.cli.flags import add_option, command, given
from beit3_vqa.config.config import GROUPS, option_fields
from beit3_vqa.config.resolve import DEFAULTS, TITLES, GivenOptions

# Flags of upstream that no longer do anything -> how many values they take, and why, or what does it instead.
REPLACED_FLAGS: dict[str, tuple[str, str]] = {
    "momentum": ("1", "the first of --opt_betas is what comes nearest"),
    "warmup_lr": ("1", "the warm-up starts at 0, as it always did upstream"),
    "start_epoch": ("1", "the checkpoint of --resume says it"),
    "task_cache_path": ("1", "results go to --output_dir"),
    "dist_eval": ("0", "validation is never truncated or doubled"),
    "world_size": ("1", "torchrun says it"),
    "local_rank": ("1", "torchrun says it"),
    "dist_on_itp": ("0", "torchrun says it"),
    "dist_url": ("1", "torchrun says it"),
    "enable_deepspeed": ("0", "torchrun and --strategy do what DeepSpeed was there for"),
    "initial_scale_power": ("1", "gradient scaling finds its own scale"),
    "resplit": ("0", "upstream's scripts never used it"),
    "smoothing": ("1", "upstream's scripts never used it; --label_smoothing is what smooths"),
}
# Stage of DeepSpeed -> --strategy.
STRATEGY_OF_STAGE = {"0": "ddp", "1": "zero1", "2": "fsdp", "3": "fsdp"}


def add_options(parser: argparse.ArgumentParser, without: frozenset[str] = frozenset()) -> None:
    """Add the flags of a run: every option but some, and those of upstream that no longer do anything."""
    parser.add_argument("--config", metavar="FILE", help="a saved config.json; flags take precedence over it")
    groups = {group: parser.add_argument_group(group, cls.__doc__) for group, cls in GROUPS.items()}
    for group, field, _ in option_fields():
        if field.name in without:
            continue
        elsewhere = {TITLES[key]: own[field.name] for key, own in DEFAULTS.items() if field.name in own}
        add_option(groups[group], field, elsewhere)
    for name, (values, _) in REPLACED_FLAGS.items():
        _add_ignored(parser, name, values)
    parser.add_argument("--zero_stage", help=argparse.SUPPRESS, default=argparse.SUPPRESS, choices=STRATEGY_OF_STAGE)


def _add_ignored(parser: argparse.ArgumentParser, name: str, values: str) -> None:
    """Add a flag of upstream that is accepted, has no effect, and isn't listed."""
    action: dict[str, Any] = {"action": "store_true"} if values == "0" else {}
    names = [f"--{name}"] + (["--local-rank"] if name == "local_rank" else [])  # torch.distributed.launch types this
    parser.add_argument(*names, help=argparse.SUPPRESS, default=argparse.SUPPRESS, **action)


def run(parsed: argparse.Namespace) -> int:
    """Train, or with `--eval` evaluate; return the exit code."""
    options = options_from(parsed)
    from beit3_vqa.engine.api import evaluate, train

    if options["eval"]:
        evaluate(options)
    else:
        train(options)
    return 0


def options_from(parsed: argparse.Namespace) -> GivenOptions:
    """Return the options of a command line, whose flags take precedence over its `--config`.

    Raises:
        InputError: if the file can't be read, or options contradict each other.
    """
    values = {name: value for cls in GROUPS.values() for name, value in given(cls, parsed).items()}
    for name in (name for name in REPLACED_FLAGS if name in parsed):
        print(f"--{name} has no effect: {REPLACED_FLAGS[name][1]}")
    if "zero_stage" in parsed:
        strategy = STRATEGY_OF_STAGE[parsed.zero_stage]
        values.setdefault("strategy", strategy)
        print(f"--zero_stage {parsed.zero_stage} is --strategy {strategy} here")
    return GivenOptions.with_config(values, parsed.config or "")


add = command("finetune", "train, resume and evaluate; the same as run_beit3_finetuning.py", add_options, run)
