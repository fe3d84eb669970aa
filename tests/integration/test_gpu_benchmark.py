"""`python -m benchmarks.gpu` at tiny sizes on a CPU: every section, and what becomes of one that fails."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu, network

CPU = torch.device("cpu")
COLUMNS = {
    "parity": {"head", "precision", "ours against torchscale on the CPU"},
    "attention": {"precision", "mask", "flash can", "kernels"},
    "training base": {"tokens a second", "matrix peak", "peak memory, GiB", "times as fast"},
    "evaluation large": {"tokens a second", "matrix peak", "peak memory, GiB", "times as fast"},
    "batch size auto": {"said"},
    "resume": {"bitwise equal", "largest difference of a weight", "accuracies"},
    "compile": {"seconds", "seconds compiled", "first step, seconds"},
    "clip": {"what", "times as fast", "error of a logit"},
}


def run(monkeypatch, tmp_path, *flags: str) -> tuple[int, dict]:
    """What the command returns, and its JSON."""
    output = tmp_path / "gpu.json"
    words = ["gpu", "--device", "cpu", "--small", "--output", str(output), *flags]
    monkeypatch.setattr(sys, "argv", words)
    return gpu.main(), json.loads(output.read_text())


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler looks at it
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n not in ("parity", "clip") else n for n in COLUMNS]
)
def test_a_section_finds_what_it_is_for(name, monkeypatch):
    monkeypatch.setattr(network, "PEAK_SECONDS", 0.1)
    rows: list[dict] = []
    gpu.SECTIONS[name].measure(CPU, gpu.SMALL, rows.append)
    assert rows
    assert all(COLUMNS[name] <= row.keys() for row in rows)
    assert json.loads(json.dumps(rows)) == rows
    if name == "resume":
        assert rows[0]["bitwise equal"]
    if name == "parity":
        assert {row["head"] for row in rows} == network.HEADS.keys() - {"vqav2"}


def test_parity_that_is_broken_fails_its_section(monkeypatch):
    monkeypatch.setattr(gpu, "LARGEST_ERROR", {"fp32": 1e-12})
    with pytest.raises(AssertionError, match="captioning in fp32"):
        gpu.parity(CPU, gpu.SMALL, [].append)


def test_a_variant_that_does_not_fit_into_memory_is_told_beside_the_others(monkeypatch):
    monkeypatch.setattr(network, "PEAK_SECONDS", 0.1)
    evaluate = gpu.evaluate

    def too_large(model, inputs, variant, precision):
        if variant.attention == "reference":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return evaluate(model, inputs, variant, precision)

    monkeypatch.setattr(gpu, "evaluate", too_large)
    rows: list[dict] = []
    gpu.SECTIONS["evaluation base"].measure(CPU, gpu.SMALL, rows.append)
    fits = {row["variant"]: "seconds" in row for row in rows}
    assert fits == {label: variant.attention != "reference" for label, variant in gpu.VARIANTS.items()}
    assert rows[0]["peak memory, GiB"] == "more than there is"


def test_failed_sections_are_told_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    """One fails since there is no such device, one has no time; one is measured."""

    def run_here(command, **_):
        name = command[command.index("--section") + 1]
        if name == "parity":
            raise gpu.subprocess.TimeoutExpired(command, 1)
        rows = gpu.Path(command[command.index("--rows") + 1])
        rows.write_text('{"seconds": 0.25}\n{"seco')  # the last line was being written when it ended
        failed = name == "resume"
        return SimpleNamespace(returncode=int(failed), stderr="Traceback\nRuntimeError: no such device\n" * failed)

    monkeypatch.setattr(gpu.subprocess, "run", run_here)
    code, found = run(monkeypatch, tmp_path, "--only", "parity", "resume", "clip")
    assert code == 1
    assert list(found["sections"]) == ["parity", "resume", "clip"]
    assert found["machine"]["device"] == "cpu"
    assert found["machine"]["small"] is True
    errors = [section["error"] for section in found["sections"].values()]
    assert errors == ["not done after 60 seconds", "RuntimeError: no such device", ""]
    assert found["sections"]["clip"]["rows"] == [{"seconds": 0.25}]
    said = capsys.readouterr().out
    assert "| resume | FAILED: RuntimeError: no such device |" in said
    assert "| clip | seconds 0.25 |" in said


def test_sections_share_less_than_eight_minutes(monkeypatch, tmp_path):
    given, nothing = [], {"rows": [], "error": ""}
    monkeypatch.setattr(gpu, "measure", lambda name, seconds, options: given.append(seconds) or nothing)
    assert run(monkeypatch, tmp_path)[0] == 0
    assert sum(section.seconds for section in gpu.SECTIONS.values()) <= 60 * gpu.MINUTES < 8 * 60
    given.clear()
    run(monkeypatch, tmp_path, "--minutes", "0.5")
    assert max(given) <= 30


def test_a_machine_without_a_gpu_is_told_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(tmp_path / "gpu.json")])
    assert gpu.main() == 2
    assert "--device cuda: not on this machine" in capsys.readouterr().err


@pytest.mark.slow
def test_a_section_of_its_own_process_is_measured(monkeypatch, tmp_path):
    monkeypatch.setitem(gpu.SECTIONS, "attention", gpu.Section(gpu.attention, 280))  # the machine may be busy
    code, found = run(monkeypatch, tmp_path, "--only", "attention")
    section = found["sections"]["attention"]
    assert code == 0, section
    assert len(section["rows"]) == 4
