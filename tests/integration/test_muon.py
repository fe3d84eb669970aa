"""--opt muon as a run: it resumes bit for bit, tells another optimizer's checkpoint, and works in several processes."""

import pytest
import torch

from beit3_vqa.cli.main import main
from tests.faults.kills import differences
from tests.helpers.commands import finetune
from tests.helpers.processes import ended, start, torchrun

MUON = ["--opt", "muon", "--drop_path", "0.1", "--epochs", "2", "--clip_grad", "1"]


def test_a_run_that_was_stopped_ends_with_the_same_weights_and_momenta(scpc, tmp_path, capsys):
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    assert main(finetune(scpc, straight, *MUON)) == 0
    assert main(finetune(scpc, parts, *MUON, "--stop_after_epochs", "1")) == 0
    assert main(finetune(scpc, parts, *MUON)) == 0
    one, two = (torch.load(folder / "checkpoint-1.pth") for folder in (straight, parts))
    assert not differences([one["model"], one["optimizer"]], [two["model"], two["optimizer"]])
    assert {frozenset(moments) for moments in one["optimizer"]["state"].values()} == {
        frozenset({"momentum_buffer"}),
        frozenset({"step", "exp_avg", "exp_avg_sq"}),
    }

    capsys.readouterr()
    other = [word if word != "muon" else "adamw" for word in MUON]
    assert main(finetune(scpc, parts, *other, "--epochs", "3")) == 2
    assert "--opt" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_as_one_does(scpc, tmp_path):
    alone, out, log = tmp_path / "alone", tmp_path / "out", tmp_path / "log"
    flags = [*MUON, "--drop_path", "0", "--opt_eps", "1e-3"]
    assert main(finetune(scpc, alone, *flags, "--batch_size", "6")) == 0
    code, said = ended(
        start(["run_beit3_finetuning.py", *finetune(scpc, out, *flags, "--batch_size", "3")[1:]], log, *torchrun(2)),
        log,
    )
    assert code == 0, said
    ours, theirs = (torch.load(folder / "checkpoint-1.pth")["model"] for folder in (out, alone))
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() <= 1e-5, name


@pytest.mark.slow
def test_strategies_that_split_matrices_say_so(scpc, tmp_path):
    log = tmp_path / "log"
    command = ["run_beit3_finetuning.py", *finetune(scpc, tmp_path / "out", *MUON, "--strategy", "zero1")[1:]]
    code, said = ended(start(command, log, *torchrun(2)), log)
    assert code != 0
    assert "--opt muon needs whole matrices in every process: take --strategy ddp" in said
