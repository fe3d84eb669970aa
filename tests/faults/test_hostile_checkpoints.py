"""Checkpoints that are damaged, from elsewhere or malicious: one line that says what is wrong, and nothing written."""

import json
import os
import re
import resource
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import beit3_vqa
from beit3_vqa.apps.serve.ensemble import Ensemble
from beit3_vqa.cli.main import _Parser, main
from beit3_vqa.config.options import OPTION_PROMPT_TEMPLATE
from beit3_vqa.engine.time_budget import TimeBudget
from beit3_vqa.errors import NotFiniteError
from beit3_vqa.models.weights import mismatches
from tests.helpers.commands import TINY, finetune
from tests.helpers.serve_client import CHOICES, ask, running

GONE = object()


@pytest.fixture(scope="module")
def good(trained):
    return torch.load(trained / "checkpoint-0.pth")


def altered(good, path, **entries):
    """A checkpoint like `good` with some entries changed, or taken out."""
    content = {**good, **entries}
    torch.save({name: value for name, value in content.items() if value is not GONE}, path)
    return path


def failing(capsys, arguments):
    """The one error of a command line that must fail."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert not unknown_options(str(arguments[0]), said), said
    return said


def unknown_options(command, said):
    """Options that a message names but its command doesn't have; those in `another command` in backticks are that's."""
    commands = _Parser().add_subparsers()
    import_module(f"beit3_vqa.cli.{command}").add(commands, build=True)
    own = {flag for action in commands.choices[command]._actions for flag in action.option_strings}
    return set(re.findall(r"--\w+", re.sub(r"`beit3-vqa [^`]*`", "", said))) - own


TIME = {**TimeBudget(1.0).state(), "seconds": 1.0}  # the clock would be in the names of the tests


@pytest.mark.parametrize(
    "entries",
    [
        {"epoch": "one"}, {"epoch": None}, {"epoch": -5}, {"epoch": True}, {"epoch": 2**70},
        {"optimizer": None}, {"optimizer": "x"}, {"optimizer": {"state": None, "param_groups": []}},
        {"optimizer": {"state": {0: {}}, "param_groups": []}}, {"optimizer": {"state": {}, "param_groups": [3]}},
        {"random_state": {}}, {"random_state": {"cpu": torch.zeros(5, dtype=torch.uint8)}},
        {"random_state": {"cpu": torch.zeros(5)}}, {"scaler": "x"}, {"best_score": "x"}, {"best_score": float("nan")},
        {"best_epoch": "x"}, {"waited": -1}, {"time": {}}, {"time": {**TIME, "seconds": float("nan")}},
        {"time": {**TIME, "last_step": 1.5}}, {"time": {**TIME, "hours": -1.0}},
        {"model_ema": "x"}, {"model_ema": {3: torch.zeros(1)}}, {"task_state": None},
        {"task_state": [1]}, {"tokenizer_sha256": 5}, {"base_sha256": 5}, {"resumed_from": 5},
        {"val_losses": 1.0}, {"val_losses": ["x"]},
    ],
    ids=str,
)  # fmt: skip
def test_entries_of_another_kind_are_named(scpc, good, tmp_path, capsys, entries):
    path = altered(good, tmp_path / "x.pth", **entries)
    said = failing(capsys, finetune(scpc, tmp_path / "out", "--resume", str(path), "--epochs", "3"))
    assert f"--resume {path}: its {next(iter(entries))!r} is" in said
    assert not (tmp_path / "out").exists()


def test_sparse_and_mkldnn_weights_are_refused():
    own = {"w": torch.zeros(2, 2)}
    for weights in (torch.eye(2).to_sparse(), torch.eye(2).to_mkldnn()):
        assert "not a plain tensor" in mismatches(own, {"w": weights})[0]


@pytest.fixture(scope="module")
def huge(trained, good, tmp_path_factory):
    """A checkpoint whose weights are finite and whose outputs are not."""
    folder = tmp_path_factory.mktemp("huge")
    shutil.copy(trained / "tokenizer.spm", folder)
    model = {**good["model"], "head.0.weight": good["model"]["head.0.weight"] * 1e38}
    return altered(good, folder / "huge.pth", model=model)


@pytest.mark.parametrize("way", ["eval", "predict", "ensemble"])
def test_outputs_that_are_not_finite_are_no_answer_on_the_command_line(scpc, huge, tmp_path, capsys, way):
    image = str(next((scpc / "images").iterdir()))
    data = ["--data_path", str(scpc / "data"), "--device", "cpu", "--precision", "fp32", "--num_workers", "0"]
    commands = {
        "eval": finetune(scpc, tmp_path / "out", "--eval", "--resume", str(huge), "--split", "val"),
        "predict": ["predict", "--checkpoint", str(huge), "--image", image, "--question", "?", "--choices", *CHOICES],
        "ensemble": ["ensemble", str(huge), *data, "--output", str(tmp_path / "out" / "submission.csv")],
    }
    said = failing(capsys, commands[way])
    assert str(huge) in said
    assert "aren't finite numbers" in said
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    if way == "predict":
        assert "--precision" not in said  # an option that it doesn't have


def test_outputs_that_are_not_finite_are_no_answer_from_python_and_over_http(scpc, huge, capfd):
    image = next((scpc / "images").iterdir())
    model = beit3_vqa.load(huge, device="cpu")
    asked = [model.prepare(image, "What is it?", CHOICES)]
    for ask_it in (model.predict_many, model.predict_with_attention):
        with pytest.raises(NotFiniteError, match=r"huge\.pth: the model's outputs aren't finite"):
            ask_it(asked)
    with running(Ensemble([model])) as url:
        for attention in ("false", "true"):
            status, said = ask(url, image, attention=attention)
            assert status == 500
            assert "aren't finite numbers: no answer" in said["error"]
            assert str(huge) not in said["error"]
            assert str(huge) in capfd.readouterr().err


@pytest.mark.slow
def test_moments_that_are_not_finite_or_missing_are_refused(scpc, good, tmp_path, capsys):
    optimizer = good["optimizer"]
    for moment in (torch.tensor([float("nan")]), torch.zeros(2, dtype=torch.int8), None):
        state = {**optimizer["state"], 0: {**optimizer["state"][0], "exp_avg": moment}}
        path = altered(good, tmp_path / "x.pth", optimizer={**optimizer, "state": state})
        assert "its 'optimizer'" in failing(capsys, finetune(scpc, tmp_path / "out", "--resume", str(path)))


def test_a_moving_average_that_does_not_fit_is_refused(scpc, good, tmp_path, capsys):
    for average in ({"w": torch.zeros(1)}, {**good["model"], "head.3.bias": torch.zeros(7)}):
        path = altered(good, tmp_path / "x.pth", model_ema=average)
        said = failing(capsys, finetune(scpc, tmp_path / "out", "--resume", str(path), "--model_ema"))
        assert "moving average" in said
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"vocab_size": "x"}, {"vocab_size": None}, {"vocab_size": 10**12}, {"model": 3}, {"model": "beit4"},
        {"num_max_bpe_tokens": "x"}, {"prompt_template": 3}, {"sentencepiece_model": 3}, {"vqa_loss": "l2"},
    ],
    ids=str,
)  # fmt: skip
def test_saved_options_that_no_model_can_have_are_refused(scpc, good, tmp_path, capsys, options):
    path = altered(good, tmp_path / "x.pth", args={**good["args"], **options})
    evaluate = ["finetune", "--eval", "--resume", path, "--data_path", scpc / "data", "--device", "cpu"]
    ask = ["predict", "--checkpoint", path, "--device", "cpu", "--question", "?", "--choices", *"abcd"]
    ask += ["--image", next((scpc / "images").iterdir())]
    for command in (evaluate, ask):
        said = failing(capsys, command)
        assert str(path) in said or "beit4" in said
    assert {entry.name for entry in tmp_path.iterdir()} == {"x.pth"}


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the process's size, and bounds it")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"model": "beit3_tiny_patch8_16000"}, marks=pytest.mark.slow),
        {"model": "beit3_large_patch1_30000"},
        {"vocab_size": 10**8},
    ],
    ids=str,
)
def test_a_checkpoint_too_small_for_its_options_is_refused_without_allocating(scpc, good, tmp_path, capsys, options):
    """Its weights are small; a model of that name would take 2 GB, 3.7 TB, 50 GB."""
    path = altered(good, tmp_path / "x.pth", args={**good["args"], **options})
    data = ["--data_path", scpc / "data", "--device", "cpu"]
    commands = [
        ["finetune", "--eval", "--resume", path, *data],
        ["finetune", "--eval", "--finetune", path, *data],
        ["finetune", "--resume", path, *data, "--output_dir", tmp_path / "out"],
        ["ensemble", path, *data, "--output", tmp_path / "e.csv"],
        ["serve", "--checkpoint", path, "--device", "cpu", "--port", "0"],
        ["predict", "--checkpoint", path, "--device", "cpu", "--question", "?", "--choices", *"abcd"]
        + ["--image", next((scpc / "images").iterdir())],
    ]
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**30, resource.RLIM_INFINITY))
    try:
        for command in commands:
            said = failing(capsys, command)
            assert f"{path}: has {path.stat().st_size:,} bytes, too few for the " in said
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert {entry.name for entry in tmp_path.iterdir()} == {"x.pth"}


def test_a_model_larger_than_memory_is_refused(scpc, tmp_path, capsys):
    for name in ("beit3_base_patch1_30000", "beit3_base_patch1_99999"):
        said = failing(capsys, finetune(scpc, tmp_path / "out", "--model", name))
        assert f"--model {name}: its weights alone take " in said
    for name in (f"beit3_base_patch1_1{'0' * 5000}", f"clip_vit_base_patch1_1{'0' * 5000}"):
        assert "isn't of the form" in failing(capsys, finetune(scpc, tmp_path / "out", "--model", name))
    assert not (tmp_path / "out").exists()


def test_a_saved_model_of_no_family_never_ends_in_a_traceback(scpc, good, tmp_path, capsys):
    for model in (3, "beit4", ""):
        path = altered(good, tmp_path / "x.pth", args={**good["args"], "model": model})
        resume = finetune(scpc, tmp_path / f"out {model}", "--resume", str(path), "--epochs", "2")
        assert main(resume) == (0 if model == 3 else 2)
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("state", [{}, {"answers": 3}, {"answers": [1, 2]}, {"answers": ["a", "a"]}], ids=str)
def test_a_saved_answer_table_of_another_kind_is_refused(scpc, trained, good, tmp_path, capsys, state):
    path = altered(good, tmp_path / "x.pth", task_state=state)
    (tmp_path / "tokenizer.spm").write_bytes((trained / "tokenizer.spm").read_bytes())
    ask = ["predict", "--checkpoint", path, "--device", "cpu", "--question", "?", "--choices", *"abcd"]
    assert "answer" in failing(capsys, [*ask, "--image", next((scpc / "images").iterdir())])


def four_bits():
    """A type that this torch may not have: then another that is refused."""
    return getattr(torch, "float4_e2m1fn_x2", torch.int8)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.slow
def test_weights_of_eight_bits_are_read(scpc, trained, good, tmp_path, capsys, kind):
    """As what they stand for: the same answers as of a checkpoint that holds these numbers in 32 bits."""
    small = {name: value.to(kind) for name, value in good["model"].items()}
    wide = {name: value.float() for name, value in small.items()}
    answers = []
    for name, weights in (("small", small), ("wide", wide)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tokenizer.spm").write_bytes((trained / "tokenizer.spm").read_bytes())
        path = altered(good, folder / "x.pth", model=weights, model_ema=GONE)
        for flag in ("--resume", "--finetune"):
            evaluate = ["finetune", "--eval", *TINY, flag, path, "--data_path", scpc / "data", "--output_dir", folder]
            assert main([str(word) for word in evaluate]) == 0
            answers.append(json.loads((folder / "predictions.json").read_text()))
        assert main(finetune(scpc, folder / "out", "--finetune", str(path), "--epochs", "1")) == 0
        capsys.readouterr()
    assert answers[0] == answers[1] == answers[2] == answers[3]


POSITIONS = "beit3.encoder.embed_positions.A.weight"


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (3, lambda value: value, "missing: "),
        (POSITIONS, lambda value: torch.zeros(3, 128), "shape of"),
        (POSITIONS, lambda value: torch.zeros(2, 128), "shape of"),
        (POSITIONS, lambda value: torch.zeros(0, 128), "shape of"),
        ("head.0.weight", lambda value: value.to("meta"), "not a plain tensor"),
        ("head.0.weight", lambda value: value.to(torch.int8), "not a plain tensor"),
        ("head.0.weight", lambda value: value.to(torch.complex64), "not a plain tensor"),
        ("head.0.weight", lambda value: value * float("inf"), "not finite"),
        ("head.0.weight", lambda value: (value * float("nan")).to(torch.float8_e4m3fn), "not finite"),
        ("head.0.weight", lambda value: value.to(torch.uint8).view(four_bits()), "not a plain tensor"),
    ],
)
def test_tensors_that_are_no_weights_are_refused(scpc, good, tmp_path, capsys, name, change, says):
    weights = dict(good["model"])
    old = weights.pop(name if isinstance(name, str) else "head.0.weight")
    torch.save({"model": {**weights, name: change(old)}}, tmp_path / "x.pth")
    flags = ["--finetune", str(tmp_path / "x.pth"), "--trust_checkpoint"]
    said = failing(capsys, finetune(scpc, tmp_path / "out", *flags))
    if name == 3:  # a head that isn't there is new; half of one isn't
        assert "head.0.weight" in said
    assert says in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"junk", "isn't a PyTorch file"),
    ],
)
def test_files_that_are_no_checkpoint_say_what_they_are(scpc, tmp_path, capsys, content, says):
    (tmp_path / "x.pth").write_bytes(content)
    for flag in ("--finetune", "--resume"):
        assert says in failing(capsys, finetune(scpc, tmp_path / "out", flag, str(tmp_path / "x.pth")))


def test_a_folder_given_as_a_checkpoint_lists_those_in_it(scpc, trained, tmp_path, capsys):
    said = failing(capsys, finetune(scpc, tmp_path / "out", "--resume", str(trained)))
    assert "is a folder" in said
    assert "checkpoint-1.pth" in said


def test_another_tokenizer_is_refused(scpc, trained, tmp_path, capsys):
    """Its ids would fit, and mean other words."""
    from beit3_vqa.data.tokenizer import train_tokenizer

    other = tmp_path / "other.spm"
    train_tokenizer(["another set of words altogether", "with which nothing was trained"], 60, other)
    evaluate = ["finetune", "--eval", "--data_path", str(scpc / "data"), *TINY, "--sentencepiece_model", str(other)]
    resume = finetune(scpc, tmp_path / "out", "--epochs", "3", "--sentencepiece_model", str(other))
    for command in ([*evaluate, "--resume"], [*resume, "--resume"]):
        assert "isn't the tokenizer" in failing(capsys, [*command, trained / "checkpoint-1.pth"])
    start = finetune(scpc, tmp_path / "out", "--epochs", "1", "--sentencepiece_model", str(other))
    assert main([*start, "--finetune", str(trained / "checkpoint-best.pth")]) == 0  # it may learn the new words
    assert "another tokenizer" in capsys.readouterr().out


def test_folds_that_a_checkpoint_has_seen_are_not_evaluated(scpc, tmp_path, capsys):
    data = ["--data_path", str(tmp_path / "data")]
    prepare = ["prepare", "choices", "--train", str(scpc / "train.csv"), "--image_root", str(scpc / "images")]
    assert main([*prepare, *data, "--folds", "3", "--train_tokenizer", "300"]) == 0
    train = finetune(scpc, tmp_path / "out", "--epochs", "1")
    assert main([*train, *data, "--fold", "1"]) == 0
    evaluate = ["finetune", "--eval", "--split", "val", *TINY, *data, "--output_dir", str(tmp_path / "out")]
    assert "trained with fold 1" in failing(capsys, [*evaluate, "--fold", "2"])
    assert main(evaluate) == 0  # the checkpoint knows its fold
    elsewhere = [*evaluate, "--data_path", str(scpc / "data"), "--output_dir", str(tmp_path / "elsewhere")]
    elsewhere += ["--resume", str(tmp_path / "out" / "checkpoint-best.pth")]
    assert main(elsewhere) == 0  # data with a validation split of their own
    rows = [json.loads(line) for line in (tmp_path / "data" / "vqacustom.train.jsonl").read_text().splitlines()]
    held_out = {row["id"] for row in rows if row["fold"] == 1}
    assert {row["id"] for row in json.loads((tmp_path / "out" / "predictions_val.json").read_text())} == held_out


def test_the_same_resume_command_again_goes_on_in_its_own_folder(scpc, trained, tmp_path, capsys):
    resume = ["--resume", str(trained / "checkpoint-0.pth"), "--epochs", "4", "--stop_after_epochs", "1"]
    command = finetune(scpc, tmp_path / "out", *resume)
    for epoch in (1, 2, 3):
        assert main(command) == 0
        assert (tmp_path / "out" / f"checkpoint-{epoch}.pth").exists()
    assert not (tmp_path / "out" / "previous-1").exists()
    assert "goes on from it" in capsys.readouterr().out
    assert main([*command, "--no_auto_resume"]) == 0
    assert (tmp_path / "out" / "previous-1" / "checkpoint-3.pth").exists()


BEFORE_A_QUESTION = {
    "predict": ["--device", "cpu", "--question", "?", "--choices", *"abcd", "--image"],
    "serve": ["--device", "cpu", "--port", "0"],
    "export": ["--output_dir"],
}


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=[pytest.mark.slow] * (name != "predict")) for name in BEFORE_A_QUESTION]
)
def test_errors_of_predict_name_no_option_that_only_training_has(
    scpc, trained, good, clip_folder, tmp_path, capsys, command
):
    """Whatever is wrong with it; `failing` looks at every message. What could be given here is still called so."""
    end = {"predict": [next((scpc / "images").iterdir())], "export": [tmp_path / "out"]}.get(command, [])
    shutil.copy(trained / "tokenizer.spm", tmp_path)

    def told(path, *more):
        return failing(capsys, [command, "--checkpoint", path, *BEFORE_A_QUESTION[command], *end, *more])

    clip = {"model": "clip_vit_tiny_patch8_32_lora", "pretrained": str(clip_folder)}
    clip["prompt_template"] = OPTION_PROMPT_TEMPLATE
    of_clip = [
        {"lora_rank": 0},
        {"lora_rank": 4, "lora_targets": "nope"},
        {"lora_rank": 4, "num_max_bpe_tokens": 49},
        {"lora_rank": 4, "prompt_template": "{x}"},
        {"lora_rank": 4},  # the weights aren't a CLIP's
        {"lora_rank": 4, "pretrained": ""},
        {"lora_rank": 4, "pretrained": str(tmp_path / "gone")},
        {"lora_rank": 4, "model": "clip_vit_large_patch14_lora"},
    ]
    of_beit3 = [
        {"task": "nosuchtask"},
        {"task": "captioning"},
        {"model": "beit3_tiny_patch8_32_nlvr2"},
        {"model": "beit3_tiny_patch8_64"},
        {"vocab_size": 10},
        {"vocab_size": 0},
        {"num_max_bpe_tokens": 5000},
        {"num_max_bpe_tokens": 2},
        {"prompt_template": "{x}"},
        {"prompt_template": "{"},
        {"lora_rank": 4, "lora_targets": "nope"},
        {"vqa_loss": "l2"},
    ]
    every = [{**clip, **options} for options in of_clip] + of_beit3
    for changed in every if command == "predict" else every[::6]:  # the three load in the same way
        told(altered(good, tmp_path / "x.pth", args={**good["args"], **changed}))
    assert "`beit3-vqa finetune --eval --resume FILE`" in told(altered(good, tmp_path / "x.pth", task_state=GONE))
    told(altered(good, tmp_path / "x.pth", model={**good["model"], "head.0.weight": torch.zeros(3)}))
    assert "Checkpoints of this package hold plain data only" in told(
        altered(good, tmp_path / "x.pth", scaler=Path("/"))
    )

    path = altered(good, tmp_path / "x.pth")
    path.with_suffix(".json").write_text('{"temperature": "hot"}')
    told(path)
    path.with_suffix(".json").unlink()
    (tmp_path / "tokenizer.spm").unlink()
    assert command == "export" or "Give --sentencepiece_model the tokenizer.spm" in told(path)
    if command != "export":
        told(path, "--sentencepiece_model", tmp_path / "gone.spm")
        assert "--device tpu" in told(path, "--device", "tpu")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (os.mkfifo, "is a pipe or a device"),
        (lambda path: path.symlink_to(path), "is a link that points to itself"),
        (lambda path: path.symlink_to(path.with_name("gone.pth")), "is a link that points to nothing"),
        (Path.mkdir, "is a folder"),
        (lambda path: None, "no such file"),
    ],
)
def test_what_is_there_but_no_checkpoint_is_not_called_missing(scpc, tmp_path, capsys, make, says):
    path = tmp_path / "x.pth"
    make(path)
    (tmp_path / "y.pth").touch()
    image = next((scpc / "images").iterdir())
    for said in (
        failing(capsys, ["predict", "--checkpoint", path, "--question", "?", "--choices", *"abcd", "--image", image]),
        failing(capsys, ["serve", "--port", "0", "--checkpoint", path]),
        failing(capsys, ["export", "--output_dir", tmp_path / "out", "--checkpoint", path]),
        failing(capsys, ["finetune", "--eval", "--resume", path, "--data_path", scpc / "data"]),
    ):
        assert says in said
        assert f"Did you mean '{path}'" not in said
