"""`beit3-vqa completion SHELL`: the script with which the Tab key completes commands, flags and values."""

import argparse
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass
from importlib import import_module

from beit3_vqa.cli.flags import Commands, add_options, command, given
from beit3_vqa.runtime.fields import Options, option

_DESCRIPTION = """\
Print a script for your shell. It knows every command and flag, so that the Tab key starts no Python.

bash, with the package bash-completion: beit3-vqa completion bash > ~/.local/share/bash-completion/completions/beit3-vqa
bash, without it: beit3-vqa completion bash > ~/.beit3-vqa.bash, and `source ~/.beit3-vqa.bash` in ~/.bashrc
zsh: beit3-vqa completion zsh > ~/.beit3-vqa.zsh, and `source ~/.beit3-vqa.zsh` in ~/.zshrc
Write it anew after an upgrade."""
# zsh runs bash's functions once these two are loaded.
_FOR_ZSH = """\
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
autoload -Uz bashcompinit && bashcompinit
"""
# COMP_WORDBREAKS makes `--flag=value` three words. Where nothing is offered, `-o default` offers files.
_SCRIPT = """\
_beit3_vqa() {
  local typed="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" called="${COMP_WORDS[1]}" offered=
  if [ "$before" = = ]; then before="${COMP_WORDS[COMP_CWORD-2]}"; fi
  if [ "$typed" = = ]; then typed= before=; fi
  if [ "$COMP_CWORD" -eq 1 ]; then called=; fi
  if [ "$called" = prepare ] && [ "$COMP_CWORD" -gt 2 ]; then called="prepare ${COMP_WORDS[2]}"; fi
  case "$typed" in
    -*) case "$called" in
%(flags)s
    esac ;;
    *) case "$called $before" in
%(values)s
      *" --"*) ;;
%(positionals)s
    esac ;;
  esac
  COMPREPLY=($(compgen -W "$offered" -- "$typed"))
}
complete -o default -F _beit3_vqa beit3-vqa
"""


@dataclass(frozen=True)
class CompletionOptions(Options):
    """The shell that is to complete."""

    shell: str = option(MISSING, "the shell", positional=True, metavar="SHELL", choices=("bash", "zsh"))


def run(parsed: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from beit3_vqa.cli.main import COMMANDS

    options = CompletionOptions(**given(CompletionOptions, parsed))
    commands = argparse.ArgumentParser(prog="").add_subparsers()
    for file in COMMANDS:
        import_module(f"beit3_vqa.cli.{file}").add(commands, build=True)
    parsers = dict(_all_parsers(commands))
    flags = [_case(f'"{name}"', _flags(parser)) for name, parser in parsers.items()]
    flags.append(_case('""', ["--help", "--version"]))
    values, positionals = [], [_case('" "*', COMMANDS)]
    for name, parser in parsers.items():
        for action in parser._actions:
            names = [f'"{name} {flag}"' for flag in action.option_strings]
            if names:
                values.append(_case("|".join(names), _values(action)))
            else:
                positionals.append(_case(f'"{name} "*', _values(action)))
    lines = {"flags": flags, "values": values, "positionals": positionals}
    print(_FOR_ZSH if options.shell == "zsh" else "", end="")
    print(_SCRIPT % {part: "\n".join(filter(None, cases)) for part, cases in lines.items()}, end="")
    return 0


def _all_parsers(commands: Commands, before: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command and format, as it is typed, with its parser."""
    for name, parser in commands.choices.items():
        yield before + name, parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from _all_parsers(action, f"{before}{name} ")


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    """Return the flags that `--help` lists, and the `--no_` that its texts name."""
    listed = [action for action in parser._actions if action.help is not argparse.SUPPRESS]
    flags = [flag for action in listed for flag in action.option_strings if flag.startswith("--")]
    return flags + [flag for action in listed for flag in re.findall(r"default: on; (--\w+)", action.help or "")]


def _values(action: argparse.Action) -> Iterable[str]:
    """Return the words that an argument may be; none if it is a number, a file or a text."""
    from beit3_vqa.models.beit3.download import OFFICIAL_WEIGHTS
    from beit3_vqa.models.names import LISTED_CLIP, listed_names
    from beit3_vqa.tasks import TASKS

    names: dict[str, Iterable[str]] = {
        "model": [*listed_names(), *(f"{name}_lora" for name in LISTED_CLIP)],
        "name": OFFICIAL_WEIGHTS,
        "task": TASKS,
    }
    return action.choices or getattr(action, "words", ()) or names.get(action.dest, ())


def _case(pattern: str, words: Iterable[str]) -> str:
    """Return a line of the script's `case`; empty if no words are offered."""
    joined = " ".join(words)
    return f"      {pattern}) offered={joined!r} ;;" if joined else ""


add = command(
    "completion",
    "print a script that completes commands and flags in bash or zsh",
    lambda parser: add_options(parser, CompletionOptions),
    run,
    description=_DESCRIPTION,
)
