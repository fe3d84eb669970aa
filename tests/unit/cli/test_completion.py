"""What the Tab key offers: the script runs in real shells, with the words that they would hand it."""

import shutil
import subprocess
import sys

import pytest

from beit3_vqa.cli.main import COMMANDS, main
from beit3_vqa.config.config import option_fields
from beit3_vqa.models.beit3.download import OFFICIAL_WEIGHTS
from beit3_vqa.preparation import FORMATS
from beit3_vqa.tasks import TASKS

IN_BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_beit3_vqa
printf '%s\\n' "${COMPREPLY[@]}"
"""
# zsh's own completion, in a terminal that it makes itself: typing, and what the screen then says.
IN_ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
read_until() { local line text=; while zpty -r -t shell line || sleep 0.05; do text+=$line; [[ $text == *$1* ]] && break
  (( ++tries > 400 )) && break; done; print -r -- $text; }
zpty -w shell 'PS1=; source '$1'; echo rea''dy'
read_until ready >/dev/null
zpty -w -n shell "$2"$'\\t'
read_until "$3"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    def write(shell):
        path = tmp_path_factory.mktemp("completion") / f"beit3-vqa.{shell}"
        command = [sys.executable, "-m", "beit3_vqa", "completion", shell]
        path.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return path

    return write


@pytest.fixture(scope="module")
def offered(script):
    bash = script("bash")

    def offered(*typed):
        command = ["bash", "--norc", "-u", "-c", IN_BASH, "bash", bash, "beit3-vqa", *typed]
        said = subprocess.run(command, check=True, capture_output=True, text=True)
        assert not said.stderr
        return said.stdout.split()

    return offered


def test_commands_and_formats_are_offered(offered):
    assert offered("") == list(COMMANDS)
    assert offered("fin") == ["finetune"]
    assert sorted(offered("prepare", "")) == sorted(FORMATS)
    assert offered("prepare", "choices", "--sent") == ["--sentencepiece_model"]
    assert offered("--v") == ["--version"]


def test_every_listed_flag_is_offered(offered):
    flags = offered("finetune", "--eval", "--")
    assert {f"--{field.name}" for _, field, _ in option_fields()} <= set(flags)
    assert "--no_shuffle_choices" in flags
    assert "--no_eval" not in flags  # off unless it is typed
    assert "--momentum" not in flags  # no effect


def test_values_of_a_flag_are_offered(offered):
    assert offered("finetune", "--vqa_loss", "") == ["ce", "bce"]
    assert offered("finetune", "--vqa_loss", "=", "b") == ["bce"]
    assert offered("finetune", "--batch_size", "") == ["auto"]
    assert offered("finetune", "--task", "") == list(TASKS)
    assert "beit3_large_patch16_480" in offered("cross_validate", "--model", "beit3_l")
    assert offered("demo", "--model", "") == ["beit3", "clip"]
    assert offered("soup", "--method", "") == ["uniform", "greedy", "learned", "all"]
    assert offered("download", "") == list(OFFICIAL_WEIGHTS)


@pytest.mark.parametrize("typed", [("finetune", "--data_path", ""), ("score", ""), ("finetune", "--lr", "")])
def test_files_and_numbers_are_left_to_the_shell(offered, typed):
    assert offered(*typed) == []


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh isn't installed")
@pytest.mark.parametrize(
    ("typed", "says"), [("beit3-vqa finetune --sentence", "piece_model"), ("beit3-vqa cross", "_validate")]
)
def test_zsh_completes(script, typed, says):
    command = ["zsh", "-f", "-c", IN_ZSH, "zsh", script("zsh"), typed, says]
    assert says in subprocess.run(command, check=False, capture_output=True, text=True, timeout=60).stdout


def test_an_unknown_shell_is_refused(capsys):
    assert main(["completion", "fish"]) == 2
    assert "must be one of bash, zsh" in capsys.readouterr().err


def test_the_script_is_written_without_torch():
    code = (
        "import sys; from beit3_vqa.cli.main import main; main(['completion', 'bash'])\n"
        "assert not {'torch', 'timm', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
