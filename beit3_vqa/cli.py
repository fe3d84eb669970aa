"""The command line: flags in, dataclasses out. The only file that knows argparse."""

import argparse
import dataclasses
import os
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from beit3_vqa.config import GROUPS, RunConfig, option_fields, read_config_values
from beit3_vqa.errors import InputError, nearest

# Flags of upstream that no longer do anything: how many values they take, and what there is instead.
REPLACED_FLAGS: dict[str, tuple[str, str]] = {
    "momentum": ("1", "AdamW has none"),
    "warmup_lr": ("1", "the warm-up starts at 0, as it always did upstream"),
    "start_epoch": ("1", "the checkpoint of --resume says it"),
    "task_cache_path": ("1", "results go to --output_dir"),
    "dist_eval": ("0", "validation is never truncated or doubled"),
    "world_size": ("1", "this version trains in one process"),
    "local_rank": ("1", "this version trains in one process"),
    "dist_on_itp": ("0", "this version trains in one process"),
    "dist_url": ("1", "this version trains in one process"),
    "enable_deepspeed": ("0", "this version trains in one process; --precision and --update_freq save memory"),
    "initial_scale_power": ("1", "gradient scaling finds its own scale"),
    "zero_stage": ("1", "this version trains in one process"),
}
# Options of upstream's other tasks: accepted, so that its command lines run, without effect on this task.
OTHER_TASKS_FLAGS = {
    **dict.fromkeys(("resplit",), "0"),
    **dict.fromkeys(("cutmix_minmax",), "+"),
    **dict.fromkeys(("mixup", "cutmix", "mixup_prob", "mixup_switch_prob", "mixup_mode", "color_jitter", "aa"), "1"),
    **dict.fromkeys(("smoothing", "crop_pct", "reprob", "remode", "recount"), "1"),
    **dict.fromkeys(("captioning_mask_prob", "drop_worst_ratio", "drop_worst_after"), "1"),
    **dict.fromkeys(("num_beams", "length_penalty"), "1"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code: 0, 2 (your input), 3 (training diverged), 130 (interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `... | head`: whoever read has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("interrupted; training goes on from its last checkpoint with the same command", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    parser = _Parser(prog="beit3-vqa", description="Fine-tune BEiT-3 on visual question answering data.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    adders = {
        "finetune": _add_finetune,
        "prepare": _add_prepare,
        "predict": _add_predict,
        "models": _add_models,
        "download": _add_download,
        "demo": _add_demo,
    }
    # Building only the parser that is called keeps `--help` quick.
    called = arguments[0] if arguments and arguments[0] in adders else None
    for name, add in adders.items():
        add(commands, build=called == name)
    parsed = parser.parse_args(arguments)
    return parsed.function(parsed)


class _Parser(argparse.ArgumentParser):
    """Raises InputError, and knows what a misspelt flag may have meant."""

    def __init__(self, **options: Any):
        options |= {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. `{self.prog} --help` lists everything.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = super().parse_known_args(args, namespace)
        flags = [flag for action in self._actions for flag in action.option_strings]
        wrong = [word for word in unknown if word.startswith("--")]
        if wrong and flags:
            raise InputError(f"unknown option {wrong[0]}.{nearest(wrong[0].split('=')[0], flags)}")
        return parsed, unknown


# ---------------------------------------------------------------- finetune


def _add_finetune(commands: Any, build: bool) -> None:
    parser = commands.add_parser("finetune", help="train, resume and evaluate; the same as run_beit3_finetuning.py")
    if not build:
        return
    parser.set_defaults(function=_finetune)
    parser.add_argument("--config", metavar="FILE", help="a saved config.json; flags go on top of it")
    groups = {group: parser.add_argument_group(group, cls.__doc__) for group, cls in GROUPS.items()}
    for group, field, kind in option_fields():
        _add_option(groups[group], field, kind)
    for name, (values, _) in REPLACED_FLAGS.items():
        _add_ignored(parser, name, values)
    for name, values in OTHER_TASKS_FLAGS.items():
        _add_ignored(parser, name, values)


def _add_option(group: Any, field: dataclasses.Field, kind: Any) -> None:
    names = [f"--{name}" for name in (field.name, *field.metadata["aliases"])]
    text = field.metadata["help"] + _default_and_unit(field)
    if kind is bool:
        group.add_argument(*names, dest=field.name, action="store_true", default=argparse.SUPPRESS, help=text)
        off: dict[str, Any] = {"action": "store_false", "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        group.add_argument(*(f"--no_{name[2:]}" for name in names), dest=field.name, **off)
        return
    options: dict[str, Any] = {"type": _scalar_type(kind), "metavar": _scalar_type(kind).__name__.upper()}
    options["required"] = field.default is dataclasses.MISSING
    if typing.get_origin(kind) is tuple:
        options["nargs"] = "+"
    group.add_argument(*names, dest=field.name, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **options)


def _default_and_unit(field: dataclasses.Field) -> str:
    shown = []
    if field.metadata["choices"]:
        shown.append("one of " + ", ".join(field.metadata["choices"]))
    if field.metadata["unit"]:
        shown.append(f"unit: {field.metadata['unit']}")
    if isinstance(field.default, bool):
        shown.append(f"default: on; --no_{field.name}" if field.default else "default: off")
    elif field.default not in (None, dataclasses.MISSING) and "default:" not in field.metadata["help"]:
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        shown.append(f"default: {default if default != '' else 'none'}")
    return f" ({'; '.join(shown)})" if shown else ""


def _scalar_type(kind: Any) -> type:
    """int of `int | None`, float of `tuple[float, ...]`."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is tuple:
        return next(k for k in typing.get_args(kind) if k is not type(None))
    return kind


def _add_ignored(parser: Any, name: str, values: str) -> None:
    action: dict[str, Any] = {"action": "store_true"} if values == "0" else {"nargs": "+" if values == "+" else None}
    parser.add_argument(f"--{name}", help=argparse.SUPPRESS, default=argparse.SUPPRESS, **action)


def _finetune(parsed: argparse.Namespace) -> int:
    values = {name: value for name, value in vars(parsed).items() if name not in ("command", "function", "config")}
    for name in [name for name in values if name in REPLACED_FLAGS]:
        print(f"--{name} has no effect: {REPLACED_FLAGS[name][1]}")
        del values[name]
    for name in [name for name in values if name in OTHER_TASKS_FLAGS]:
        print(f"--{name} has no effect on this task")
        del values[name]
    if "opt_betas" in values:
        values["opt_betas"] = tuple(values["opt_betas"])
    from_file = read_config_values(parsed.config) if parsed.config else {}
    if "eval" in values:
        from_file.pop("finetune", None)  # what that run started from, not what it became
    both = from_file | values
    config = RunConfig().updated(both, given=frozenset(both))
    from beit3_vqa.engine.train import TrainingDiverged
    from beit3_vqa.run import evaluate, train

    try:
        if config.run.eval:
            evaluate(config)
        else:
            train(config)
    except TrainingDiverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


# ---------------------------------------------------------------- the other commands


def _add_prepare(commands: Any, build: bool) -> None:
    parser = commands.add_parser("prepare", help="make the index of a data set")
    if not build:
        return
    from beit3_vqa.prepare import FORMATS, find_format
    from beit3_vqa.prepare.writer import PrepareOptions

    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    for name in sorted(FORMATS):
        one = formats.add_parser(name, help=_first_line(find_format(name)), description=find_format(name).__doc__)
        one.set_defaults(function=_prepare)
        own = one.add_argument_group(f"{name} options")
        for argument in find_format(name).ARGUMENTS:
            own.add_argument(
                f"--{argument.name}",
                type=argument.type,
                choices=argument.choices or None,
                required=argument.required,
                default=argument.default,
                help=argument.help + (f" (default: {argument.default})" if argument.default != "" else ""),
            )
        for field in dataclasses.fields(PrepareOptions):
            _add_option(one, field, typing.get_type_hints(PrepareOptions)[field.name])


def _first_line(module: Any) -> str:
    return (module.__doc__ or "").strip().splitlines()[0]


def _prepare(parsed: argparse.Namespace) -> int:
    from beit3_vqa.prepare import find_format, prepare
    from beit3_vqa.prepare.writer import PrepareOptions

    given = vars(parsed)
    names = [field.name for field in dataclasses.fields(PrepareOptions)]
    options = PrepareOptions(**{name: given[name] for name in names if name in given})
    values = {argument.name: given[argument.name] for argument in find_format(parsed.format).ARGUMENTS}
    print(prepare(parsed.format, values, options).text())
    return 0


def _add_predict(commands: Any, build: bool) -> None:
    parser = commands.add_parser("predict", help="answer one question about one image")
    if not build:
        return
    parser.set_defaults(function=_predict)
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="one of your checkpoints")
    parser.add_argument("--image", required=True, metavar="FILE", help="the image")
    parser.add_argument("--question", required=True, metavar="TEXT", help="the question")
    parser.add_argument("--choices", nargs="+", default=[], metavar="TEXT", help="the options, in order")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--sentencepiece_model", default="", metavar="FILE", help="default: beside the checkpoint")


def _predict(parsed: argparse.Namespace) -> int:
    from beit3_vqa.run import load

    model = load(parsed.checkpoint, parsed.device, parsed.sentencepiece_model)
    prediction = model.predict(parsed.image, parsed.question, parsed.choices)
    texts = dict(zip(prediction.probabilities, parsed.choices, strict=False))
    for answer, probability in prediction.probabilities.items():
        chosen = "<- " if answer == prediction.answer else ""
        print(f"{answer}  {probability:6.1%}  {chosen}{texts.get(answer, '')}".rstrip())
    return 0


def _add_models(commands: Any, build: bool) -> None:
    commands.add_parser("models", help="names, resolutions and parameters").set_defaults(function=_models)


def _models(parsed: argparse.Namespace) -> int:
    from beit3_vqa.models.registry import count_parameters, listed_names, parse_name

    print(f"{'model':<28} {'resolution':>10} {'parameters':>13}   (4 classes; any resolution the patch divides works)")
    for name in listed_names():
        parsed_name = parse_name(name, head="vqacustom")
        print(f"{name:<28} {parsed_name.img_size:>10} {count_parameters(parsed_name, num_classes=4):>13,}")
    return 0


def _add_download(commands: Any, build: bool) -> None:
    parser = commands.add_parser("download", help="fetch official weights into checkpoints/")
    if not build:
        return
    parser.set_defaults(function=_download)
    parser.add_argument("name", help="a file name of checkpoints/README.md, such as beit3.spm")
    parser.add_argument("--folder", type=Path, default=Path("checkpoints"), help="default: checkpoints")
    parser.add_argument("--url", help="another address to fetch it from")


def _download(parsed: argparse.Namespace) -> int:
    from beit3_vqa.models.weights import download

    print(download(parsed.name, parsed.folder, url=parsed.url))
    return 0


def _add_demo(commands: Any, build: bool) -> None:
    parser = commands.add_parser("demo", help="the whole road on easy-VQA, on a CPU")
    if not build:
        return
    parser.set_defaults(function=_demo)
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"), help="default: demo_output")
    parser.add_argument("--quick", action="store_true", help="fewer images and epochs, and a weaker model")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")


def _demo(parsed: argparse.Namespace) -> int:
    from beit3_vqa.demo import demo

    return demo(main, parsed.output_dir, quick=parsed.quick, seed=parsed.seed)
