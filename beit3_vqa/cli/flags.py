"""Options as flags: a command is a dataclass of options, and a function that takes it and returns the exit code."""

import argparse
import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from beit3_vqa.config.config import option_fields
from beit3_vqa.runtime.fields import Options, get_scalar, get_words, one_or_several, option, takes_several

Given = TypeVar("Given", bound=Options)
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Adder = Callable[[Commands, bool], None]


@dataclass(frozen=True, kw_only=True)
class LoadOptions(Options):
    """How a trained model is loaded that answers questions: options of several commands."""

    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = option("auto", "auto, fp32, bf16, fp16 or int8")
    sentencepiece_model: str = option("", "tokenizer; default: the one beside the checkpoint", metavar="FILE")
    pretrained: str = option("", "folder of the pretrained CLIP; default: the one it was trained on", metavar="FOLDER")


def command(
    name: str,
    help: str,
    add_flags: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
    description: str | None = None,
) -> Adder:
    """Return the function that adds a command to the parser; it adds the flags only if they are to be built.

    Args:
        name: name of the command.
        help: a line about it.
        add_flags: adds the flags to the command's own parser.
        run: takes the parsed flags and returns the exit code.
        description: text that `--help` of the command shows before the flags.
    """

    def add(commands: Commands, build: bool) -> None:
        parser = commands.add_parser(name, help=help, description=description)
        if build:
            add_flags(parser)
            parser.set_defaults(function=run)

    return add


def command_with(options: type[Given], name: str, help: str, run: Callable[[Given], int]) -> Adder:
    """Return what `command` does, for a command whose flags are the fields of a dataclass, which `run` takes."""
    return command(
        name, help, lambda parser: add_options(parser, options), lambda parsed: run(options(**given(options, parsed)))
    )


def command_with_evaluation(
    options: type[Given],
    evaluation: Collection[str],
    name: str,
    help: str,
    run: Callable[[Given, dict[str, Any]], int],
    description: str,
    about: str = "as in `finetune --eval`",
) -> Adder:
    """Return what `command_with` does, for a command that evaluates checkpoints too.

    Args:
        options: the command's own.
        evaluation: names of the options of `finetune --eval` that it evaluates with.
        name: name of the command.
        help: a line about it.
        run: takes the options, and those of the evaluation that were typed, by name.
        description: as in `command`.
        about: a line about the options of the evaluation.
    """

    def add_flags(parser: argparse.ArgumentParser) -> None:
        add_options(parser, options)
        add_evaluation(parser, evaluation, about)

    def run_parsed(parsed: argparse.Namespace) -> int:
        typed = {name: value for name, value in vars(parsed).items() if name in evaluation}
        return run(options(**given(options, parsed)), typed)

    return command(name, help, add_flags, run_parsed, description)


def given(options: type[Options], parsed: argparse.Namespace) -> dict[str, Any]:
    """Return those options of a dataclass that were typed, by name; several values as a tuple."""
    fields = [(field, getattr(parsed, field.name)) for field in dataclasses.fields(options) if field.name in parsed]
    return {f.name: one_or_several(value, f.type) if isinstance(value, list) else value for f, value in fields}


def add_options(group: argparse._ActionsContainer, options: type[Options]) -> None:
    """Add the flags of a dataclass to a parser or a group of it: its own, then those that commands share."""
    for field in sorted(dataclasses.fields(options), key=lambda field: field.kw_only is True):
        add_option(group, field)


def add_evaluation(parser: argparse.ArgumentParser, names: Collection[str], help: str) -> None:
    """Add those options of `finetune --eval` that a command evaluates checkpoints with, on one prepared folder."""
    group = parser.add_argument_group("evaluation", help)
    for _, field, _ in option_fields():
        if field.name in names:
            add_option(group, field, only_one=True)


def add_option(
    group: argparse._ActionsContainer,
    field: "dataclasses.Field[Any]",
    elsewhere: Mapping[str, object] | None = None,
    *,
    only_one: bool = False,
) -> None:
    """Add the flag of one field.

    Args:
        group: a parser or a group of it.
        field: the option.
        elsewhere: family of models -> its default, if it isn't the field's.
        only_one: True if the command takes one value of an option that may have several.
    """
    names = [f"--{name}" for name in (field.name, *field.metadata["aliases"])]
    text = (field.metadata["help"] + _default_and_unit(field, elsewhere or {})).replace("%", "%%")
    more: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
    if field.type is bool:
        group.add_argument(*names, dest=field.name, action="store_true", **more)
        more["help"] = argparse.SUPPRESS
        group.add_argument(*(f"--no_{name[2:]}" for name in names), dest=field.name, action="store_false", **more)
        return
    scalar, words = get_scalar(field.type), get_words(field.type)
    more["type"] = _or_word(scalar, words)
    more["metavar"] = field.metadata["metavar"] or "|".join((scalar.__name__.upper(), *words))
    if takes_several(field.type) and not only_one:
        more |= {"action": "append"} if field.metadata["repeated"] else {"nargs": "+"}
    if field.metadata["positional"]:
        action = group.add_argument(field.name, **more)
    else:
        action = group.add_argument(*names, dest=field.name, required=field.default is dataclasses.MISSING, **more)
    # For completion. As argparse's own `choices` they would be refused with its message, which names no neighbour.
    action.words = (*field.metadata["choices"], *words)  # type: ignore[attr-defined]


def _default_and_unit(field: "dataclasses.Field[Any]", elsewhere: Mapping[str, object]) -> str:
    """Return what follows a help text in brackets: choices, unit and defaults."""
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
    shown += [f"with {family}: {default}" for family, default in elsewhere.items()]
    return f" ({'; '.join(shown)})" if shown else ""


def _or_word(scalar: type, words: tuple[str, ...]) -> Callable[[str], object]:
    """Return a parser of values for argparse: `scalar`, but each of the words stands for itself."""

    def parse(text: str) -> object:
        return text if text in words else scalar(text)

    parse.__name__ = " or ".join((scalar.__name__, *words))  # argparse names it if a value doesn't fit
    return parse
