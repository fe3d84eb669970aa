"""torchrun: killed ranks, cut links, checkpoints from one number of processes to another."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from beit3_vqa.cli.main import main
from tests.faults.kills import differences
from tests.helpers.commands import CLIP, finetune, finetune_clip
from tests.helpers.processes import ended, long_run, start, torchrun, wait_until


def launcher(arguments: list[str]) -> list[str]:
    """The same command line for run_beit3_finetuning.py."""
    return ["run_beit3_finetuning.py", *arguments[1:]]


def ranks(process: subprocess.Popen) -> list[int]:
    """The processes that torchrun started."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split()]


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(scpc, tmp_path, capsys):
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(launcher(long_run(scpc, out, "--save_steps", "3")), log, *torchrun(2))
    wait_until(lambda: "epoch 1/4" in log.read_text(), process)
    process.terminate()  # as a job's manager does; torchrun hands it on
    said = ended(process, log)[1]
    assert said.count("stopped by SIGTERM: saved") == 2
    (stopped, *_) = sorted(out.glob("checkpoint-1-step*.pth"))
    content = torch.load(stopped)
    assert content["processes"] == 2
    assert len(content["random_states"]) == 2
    assert main(long_run(scpc, out, "--batch_size", "4", "--epochs", "2")) == 0
    said = capsys.readouterr().out
    assert "processes 2 -> 1" in said
    evaluate = finetune(scpc, out, "--eval", "--resume", str(out / "checkpoint-best.pth"))
    assert main(evaluate) == 0


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_upstreams_launcher_with_its_local_rank_flag_works(scpc, tmp_path, processes):
    out, log = tmp_path / "out", tmp_path / "log"
    command = finetune(scpc, out, "--epochs", "1", "--batch_size", str(8 // processes), "--dist_eval")
    with socket.create_server(("127.0.0.1", 0)) as free:  # its own default, 29500, may be another test's
        port = free.getsockname()[1]
    before = (sys.executable, "-m", "torch.distributed.launch", f"--nproc_per_node={processes}")
    code, said = ended(start(launcher(command), log, *before, f"--master_port={port}"), log)
    assert code == 0, said
    assert "--local_rank has no effect" in said
    assert torch.load(out / "checkpoint-0.pth")["processes"] == processes


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [[], ["--tta", "cyclic", "--blind"], ["--split", "val", "--temperature", "fit", "--tta", "all"]]
)
def test_evaluation_is_the_same_in_any_number_of_processes(scpc, trained, tmp_path, more):
    shutil.copytree(trained, tmp_path / "run")
    split = "val" if "val" in more else "train"
    results = []
    for count in (1, 2, 3):
        out, log = tmp_path / str(count), tmp_path / f"log{count}"
        best = ["--resume", str(tmp_path / "run" / "checkpoint-best.pth")]
        evaluate = finetune(scpc, out, "--eval", *best, "--split", "train", *more)
        assert ended(start(launcher([*evaluate, "--eval_batch_size", "4"]), log, *torchrun(count)), log)[0] == 0
        predictions = json.loads((out / f"predictions_{split}.json").read_text())
        with (out / f"submission_{split}.csv").open() as file:
            assert [row["ID"] for row in csv.DictReader(file)] == [p["id"] for p in predictions]
        results.append(((out / f"metrics_{split}.json").read_text(), [(p["id"], p["answer"]) for p in predictions]))
    assert len(results[0][1]) == {"train": 30, "val": 6}[split]
    assert results[0] == results[1] == results[2]


@pytest.mark.slow
def test_a_checkpoint_goes_from_any_strategy_to_any_other(scpc, tmp_path):
    out = tmp_path / "out"
    plan = [("ddp", 2), ("fsdp", 3), ("zero1", 2), ("fsdp", 2), ("zero1", 3), ("ddp", 1)]
    for epoch, (strategy, count) in enumerate(plan, start=1):
        log = tmp_path / f"log{epoch}"
        flags = ["--epochs", "6", "--stop_after_epochs", "1", "--batch_size", str(6 // count), "--model_ema"]
        command = launcher(finetune(scpc, out, *flags, "--drop_path", "0", "--strategy", strategy, "--opt_eps", "1e-3"))
        code, said = ended(start(command, log, *torchrun(count)), log)
        assert code == 0, said
        assert (out / f"checkpoint-{epoch - 1}.pth").exists(), said
    alone = tmp_path / "alone"
    flags = ["--epochs", "6", "--batch_size", "6", "--model_ema", "--drop_path", "0", "--opt_eps", "1e-3"]
    assert main(finetune(scpc, alone, *flags)) == 0
    ours, theirs = (torch.load(folder / "checkpoint-5.pth") for folder in (out, alone))
    for key in ("model", "model_ema"):
        for name, value in theirs[key].items():
            # 30 steps, each of which moves a weight by 5e-4 at most; see tests/helpers/strategies.py for --opt_eps.
            assert (ours[key][name] - value).abs().max() <= 1e-5, name
    assert main(finetune(scpc, out, "--eval", "--split", "val", "--resume", str(out / "checkpoint-5.pth"))) == 0
    assert main(finetune(scpc, tmp_path / "tuned", "--finetune", str(out / "checkpoint-5.pth"), "--epochs", "1")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [True, False])
@pytest.mark.parametrize("strategy", ["ddp", "zero1", "fsdp"])
def test_clip_in_two_processes_trains_as_in_one(scpc, clip_folder, tmp_path, strategy, adapters):
    """Trained as in one process; stopped after two epochs, and gone on with in one."""
    flags = ["--epochs", "3", "--model_ema", "--lora_dropout", "0", "--opt_eps", "1e-3", "--clip_grad", "1"]
    flags += [] if adapters else ["--model", CLIP.name, "--lora_rank", "0"]
    alone, out, log = tmp_path / "alone", tmp_path / "out", tmp_path / "log"
    assert main(finetune_clip(scpc, clip_folder, alone, *flags, "--batch_size", "6")) == 0
    two = finetune_clip(scpc, clip_folder, out, *flags, "--batch_size", "3", "--strategy", strategy)
    code, said = ended(start(launcher([*two, "--stop_after_epochs", "2"]), log, *torchrun(2)), log)
    assert code == 0, said
    assert main(finetune_clip(scpc, clip_folder, out, *flags, "--batch_size", "6")) == 0
    ours, theirs = (torch.load(folder / "checkpoint-2.pth") for folder in (out, alone))
    for key in ("model", "model_ema"):
        assert ours[key].keys() == theirs[key].keys()
        for name, value in theirs[key].items():
            assert (ours[key][name] - value).abs().max() <= 1e-5, name


@pytest.mark.slow
def test_the_other_processes_end_with_a_message_if_one_is_killed_and_torchrun_restarts_them(scpc, tmp_path):
    """The others end at once with a message; with --max-restarts torchrun goes on from the last checkpoint."""
    flags = ["--save_steps", "2", "--drop_path", "0.2"]
    undisturbed = tmp_path / "undisturbed"
    first = start(launcher(long_run(scpc, undisturbed, *flags)), tmp_path / "log0", *torchrun(2))
    assert ended(first, tmp_path / "log0")[0] == 0

    out, log = tmp_path / "out", tmp_path / "log"
    process = start(launcher(long_run(scpc, out, *flags)), log, *torchrun(2))
    wait_until(lambda: "epoch 1/4" in log.read_text(), process)
    killed_at = time.monotonic()
    os.kill(ranks(process)[1], signal.SIGKILL)
    code, said = ended(process, log, 60)
    assert code != 0
    assert time.monotonic() - killed_at < 60
    assert "process 0 of 2 lost contact with another process" in said
    assert "the same command goes on" in said

    process = start(launcher(long_run(scpc, out, *flags)), log, *torchrun(2, "--max-restarts", "2"))
    wait_until(lambda: "epoch 2/4" in log.read_text(), process)
    os.kill(ranks(process)[0], signal.SIGKILL)
    code, said = ended(process, log)
    assert code == 0, said
    ours, theirs = (torch.load(folder / "checkpoint-3.pth") for folder in (out, undisturbed))
    for content in (ours, theirs):
        content["args"] = None
    assert differences(theirs, ours) == []


RESTARTED = """
import os, signal, time, torch
import torch.distributed as dist
from beit3_vqa.runtime.distributed import processes

first, rank = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0", int(os.environ["RANK"])
if not first and rank == 1:
    time.sleep(15)  # until it comes, torchrun's store has only the address of the process that ended
with processes(torch.device("cpu"), 60):
    dist.barrier()
    if first:
        os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(30)
    print("together again", flush=True)
"""


@pytest.mark.slow
def test_processes_that_torchrun_starts_again_do_not_look_for_those_that_ended(tmp_path):
    script = tmp_path / "restarted.py"
    script.write_text(RESTARTED)
    process = start([str(script)], tmp_path / "log", *torchrun(2, "--max-restarts", "1"))
    code, said = ended(process, tmp_path / "log", 120)
    assert code == 0, said
    assert "together again" in said


@pytest.mark.slow
def test_processes_whose_network_is_cut_end_with_a_message(scpc, tmp_path):
    """Two hosts, as network namespaces; the cable between them is pulled in the middle of training."""
    if os.geteuid() != 0 or subprocess.run(["ip", "netns", "list"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespaces can be made here")
    names = [f"host{number}-{os.getpid()}" for number in (0, 1)]
    ends = [f"v{number}{os.getpid() % 10**6}" for number in (0, 1)]
    try:
        subprocess.run(["ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1]], check=True)
        for number, (name, end) in enumerate(zip(names, ends, strict=True)):
            for words in (
                ["netns", "add", name],
                ["link", "set", end, "netns", name],
                ["-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", end],
                ["-n", name, "link", "set", end, "up"],
                ["-n", name, "link", "set", "lo", "up"],
            ):
                subprocess.run(["ip", *words], check=True)
        out = tmp_path / "out"
        flags = ["--epochs", "200", "--dist_timeout", "20"]
        hosts, logs = [], [tmp_path / f"log{number}" for number in (0, 1)]
        for number, (name, log) in enumerate(zip(names, logs, strict=True)):
            meeting = [
                "--nnodes",
                "2",
                "--node_rank",
                str(number),
                "--master_addr",
                "10.77.0.1",
                "--master_port",
                "29511",
            ]
            before = ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={ends[number]}", sys.executable]
            before += ["-m", "torch.distributed.run", "--nproc_per_node", "1", *meeting]
            hosts.append(start(launcher(long_run(scpc, out, *flags)), log, *before))
        wait_until(lambda: (out / "checkpoint-1.json").exists(), hosts[0])
        subprocess.run(["ip", "-n", names[0], "link", "set", ends[0], "down"], check=True)
        cut_at = time.monotonic()
        for host, log in zip(hosts, logs, strict=True):
            code, said = ended(host, log, 90)
            assert code != 0
            assert "lost contact with another process" in said
        assert time.monotonic() - cut_at < 60
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)
    assert main(long_run(scpc, out, "--stop_after_epochs", "1", "--epochs", "200")) == 0
