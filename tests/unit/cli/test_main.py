"""Flags: frozen, forgiving of upstream's, and strict with what is wrong."""

import io
import json
import os
import re
import subprocess
import sys
import time
from importlib import metadata

import pytest

from beit3_vqa.cli import other_names
from beit3_vqa.cli.finetune import REPLACED_FLAGS
from beit3_vqa.cli.main import COMMANDS, _VisibleText, main
from beit3_vqa.config.config import option_fields, read_config_values, write_config
from beit3_vqa.errors import InputError
from tests.helpers.commands import finetune
from tests.helpers.options import build_config

# A flag that goes, or changes its default, changes what people's scripts do: change this list knowingly.
FLAGS = {
    "model": "beit3_base_patch16_480", "input_size": None, "sentencepiece_model": "", "vocab_size": 64010,
    "num_classes": None, "num_max_bpe_tokens": None,
    "prompt_template": "{question} Choices: A. {a} B. {b} C. {c} D. {d}", "vqa_loss": "ce",
    "pretrained": "", "lora_rank": 0, "lora_alpha": None, "lora_dropout": 0.0,
    "lora_targets": "q_proj,v_proj,out_proj",
    "finetune": "", "model_key": "model|module", "model_prefix": "", "allow_missing": "", "new_head": False,
    "trust_checkpoint": False, "init": "auto", "drop_path": 0.1,
    "data_path": "", "image_root": "", "mix": "", "val_from": "", "hard_examples": "", "hard_ratio": 1.0,
    "answer2label": "", "fold": None,
    "shuffle_choices": True, "balance_answers": 0.0, "balance_within": "all", "randaug": False,
    "train_interpolation": "bicubic", "crop_scale": 0.5, "flip": 0.5, "num_workers": None, "fast_decode": False,
    "skip_bad_images": 0,
    "pin_mem": True,
    "epochs": 20, "batch_size": 64, "effective_batch_size": None,
    "update_freq": 1, "eval_batch_size": None, "lr": 5e-4, "min_lr": 1e-6,
    "sched": "cosine", "plateau_factor": 0.5, "plateau_patience": 2,
    "warmup_epochs": None, "warmup_steps": -1, "layer_decay": 0.9, "task_head_lr_weight": 0.0, "weight_decay": 0.05,
    "max_hours": None, "eval_steps": 0, "patience": 0,
    "teacher": "", "teacher_weight": 0.5, "teacher_temperature": 2.0,
    "opt": "adamw", "opt_eps": 1e-8, "opt_betas": (0.9, 0.999), "clip_grad": None, "max_bad_steps": 10,
    "label_smoothing": 0.0,
    "model_ema": False, "model_ema_decay": 0.9999, "model_ema_force_cpu": False,
    "mixup": 0.0, "cutmix": 0.0, "cutmix_minmax": (), "mixup_prob": 1.0, "mixup_switch_prob": 0.5,
    "mixup_mode": "batch", "color_jitter": 0.4, "aa": "rand-m9-mstd0.5-inc1", "crop_pct": 1.0,
    "reprob": 0.25, "remode": "pixel", "recount": 1, "captioning_mask_prob": 0.6, "drop_worst_ratio": 0.2,
    "drop_worst_after": 12000, "num_beams": 3, "length_penalty": 0.6,
    "task": "vqacustom", "output_dir": "", "log_dir": "", "log_with": "tensorboard", "seed": 0,
    "eval": False, "split": "test", "tta": "none", "blind": False, "temperature": "",
    "submission_like": "",
    "resume": "", "auto_resume": True, "resume_weights_only": False,
    "data_changed": "refuse",
    "stop_after_epochs": 0, "save_ckpt": True, "save_ckpt_freq": 1, "save_steps": 0, "async_save": True,
    "keep_checkpoints": 0,
    "dry_run": False, "log_interval": 10.0,
    "device": "auto", "precision": "auto", "attention": "auto", "checkpoint_activations": False, "checkpoint_every": 1,
    "compile": False, "strategy": "ddp", "dist_timeout": 600.0, "tune_allocator": True,
}  # fmt: skip
# Every flag of upstream's script, commit 423006a of microsoft/unilm.
UPSTREAMS = """
    model task input_size drop_path checkpoint_activations sentencepiece_model vocab_size num_max_bpe_tokens
    model_ema model_ema_decay model_ema_force_cpu opt opt_eps opt_betas clip_grad momentum weight_decay lr
    layer_decay task_head_lr_weight warmup_lr min_lr warmup_epochs warmup_steps batch_size eval_batch_size
    epochs update_freq save_ckpt_freq randaug train_interpolation finetune model_key model_prefix data_path
    output_dir log_dir device seed resume auto_resume no_auto_resume save_ckpt no_save_ckpt start_epoch eval
    dist_eval num_workers pin_mem no_pin_mem world_size local_rank dist_on_itp dist_url task_cache_path
    nb_classes mixup cutmix cutmix_minmax mixup_prob mixup_switch_prob mixup_mode color_jitter aa smoothing
    crop_pct reprob remode recount resplit captioning_mask_prob drop_worst_ratio drop_worst_after num_beams
    length_penalty label_smoothing enable_deepspeed initial_scale_power zero_stage
"""


def test_installed_command_runs_main():
    (script,) = metadata.entry_points(group="console_scripts", name="beit3-vqa")
    assert script.load() is main


def test_names_and_defaults_of_flags_are_frozen():
    assert {field.name: field.default for _, field, _ in option_fields()} == FLAGS


@pytest.mark.parametrize("value", ["-0.1", "nan", "1000"])
def test_a_length_penalty_must_leave_scores_finite(value, capsys):
    assert main(["finetune", "--task", "nocaps", "--length_penalty", value]) == 2
    assert "--length_penalty" in capsys.readouterr().err


def test_every_upstream_flag_is_known():
    ours = set(FLAGS) | set(REPLACED_FLAGS) | {"zero_stage"}
    aliases = {alias for _, field, _ in option_fields() for alias in field.metadata["aliases"]}
    assert {name.removeprefix("no_") for name in UPSTREAMS.split()} <= ours | aliases


def test_help_names_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    said = capsys.readouterr().out
    for name in FLAGS:
        assert f"--{name}" in said
    assert said.count("default:") > 50
    for default in ("0.0001", "0.015", "plateau", "41"):  # a family's own, beside the others'
        assert f"with CLIP: {default}" in " ".join(said.split())


@pytest.mark.parametrize("command", [["run_beit3_finetuning.py"], ["-m", "beit3_vqa"]])
def test_help_is_quick(command, pytestconfig):
    """Without torch, timm or pandas, which take seconds to import."""

    def seconds(arguments):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=pytestconfig.rootpath)
        return time.perf_counter() - started

    assert min(seconds([*command, "--help"]) for _ in range(3)) < 3  # 0.2 on an idle machine; torch alone takes more
    code = (
        "import sys; sys.argv = ['x', '--help']; from beit3_vqa.cli.main import main\ntry: main()\n"
        "except SystemExit: pass\nassert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["finetune", "--ephocs", "3"], "--epochs"),
        (["finetune", "--epochs", "three"], "invalid int"),
        (["finetune", "--epochs", "0"], "at least 1"),
        (["finetune", "--drop_path", "2"], "at least 0 and less than 1"),
        (["finetune", "--vqa_loss", "bec"], "Did you mean 'bce'"),
        (["finetune", "--opt_betas", "0.9"], "two numbers"),
        (["finetune", "--log_with", "mlflow,wanbd"], "are tensorboard, wandb, mlflow. Did you mean 'wandb'?"),
        (["finetune", "--lr", "nan"], "at least 0"),
        (["finetune", "--max_hours", "nan"], "--max_hours nan: must be more than 0 and at most 100,000"),
        (["finetune", "--max_hours", "0"], "--max_hours 0.0: must be more than 0"),
        (["finetune", "--max_hours", "-2.5"], "--max_hours -2.5: must be more than 0"),
        (["finetune", "--max_hours", "inf"], "--max_hours inf: must be more than 0"),
        (["finetune", "--eval_steps", "-1"], "--eval_steps -1: must be at least 0"),
        (["finetune", "--lr", "inf"], "at most 1,000,000"),
        (["finetune", "--lr", "1e-7"], "--min_lr 1e-06 is above"),
        (["finetune", "--warmup_epochs", "inf"], "--warmup_epochs inf"),
        (["finetune", "--layer_decay", "0"], "more than 0 and at most 1"),
        (["finetune", "--opt_eps", "nan"], "--opt_eps nan"),
        (["finetune", "--seed", "9" * 40], "--seed with 133 bits"),
        (["finetune", "--vocab_size", "99999999999"], "--vocab_size 99999999999"),
        (["finetune", "--num_workers", "2000"], "--num_workers 2000"),
        (["finetune", "--task", "a\udcff"], "isn't text in UTF-8"),
        (["finetune", "--output_dir", "x", "--data_path", "d" * 300], "File name too long"),
        (["finetune", "--config", "c" * 300], "File name too long"),
        (["finetune", "--eval", "--resume", "r" * 300], "no such file"),
        (["finetune"], "--output_dir"),
        (["finetune", "--output_dir", "x"], "--data_path"),
        (["finetune", "--output_dir", "x", "--task", "vqacustum"], "Did you mean 'vqacustom'"),
        (["finetune", "--output_dir", "x", "--data_path", "/no/such/folder"], "there is no folder"),
        (["finetune", "--eval"], "--resume"),
        (["finetune", "--eval", "--resume", "/no/such.pth"], "no such file"),
        (["finetune", "--config", "/no/such.json"], "--config"),
        (["prepare", "choises", "--train", "x"], "Did you mean 'choices'?"),
        (["--hlep"], "unknown option --hlep. Did you mean '--help'?"),
        (["prepare", "--hlep"], "Did you mean '--help'?"),
        (["prepare", "table", "--trian", "x"], "unknown option --trian. Did you mean '--train'?"),
        (["predict", "--chekpoint=x", "--question", "-5"], "Did you mean '--checkpoint'?"),
        (["predict", "--questi", "x", "--image", "-5"], "arguments are required: --checkpoint."),
        (["prepare", "choices"], "--train"),
        (["predict", "--checkpoint", "/no/such.pth", "--image", "x", "--question", "q"], "no such file"),
        (["download", "beit3_large_indomain_patch16_244.pth"], "beit3_large_indomain_patch16_224.pth"),
        (["demos"], "demo"),
        (["trian"], "Did you mean `beit3-vqa finetune`?"),
        (["train"], "Did you mean `beit3-vqa finetune`?"),
        (["finetune", "--bs", "1"], "Did you mean '--batch_size'?"),
        (["finetune", "--task", "vqacustom", "--data_path", ".", "--output_dir", __file__], "is a file, not a folder"),
        (["report", __file__], "there is no run folder or predictions file"),
        (["evalute"], "Did you mean `beit3-vqa finetune --eval`?"),
        (["x" * 5000], "alone lists the commands"),
        (["finetune", "--learning_rate", "1"], "Did you mean '--lr'?"),
        (["finetune", "--learning-rate=1"], "Did you mean '--lr'?"),
        (["finetune", "-lr", "1"], "Did you mean '--lr'?"),
        (["finetune", "--num_train_epochs", "1"], "Did you mean '--epochs'?"),
        (["finetune", "--per_device_train_batch_size", "1"], "Did you mean '--batch_size'?"),
        (["finetune", "--gradient_accumulation_steps", "1"], "Did you mean '--update_freq'?"),
        (["finetune", "--output-dir", "x"], "Did you mean '--output_dir'?"),
        (["finetune", "--output_dir", "x", "--data_path", "/dev/null/a.zip"], "there is no folder"),
        ([], "COMMAND"),
    ],
)  # fmt: skip
def test_wrong_commands_end_with_one_clear_error(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert says in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_unambiguous_abbreviations_of_flags_are_taken(scpc, tmp_path, capsys):
    short = finetune(scpc, tmp_path / "out", "--dry", "--epo", "1", "--local-rank=0", "--no_shuf", "--ev", "3")
    assert main(short) == 2
    assert "--ev could match --eval_batch_size, --eval" in capsys.readouterr().err
    assert main([*short[:-2], "--eval_b", "3"]) == 0
    assert "--local_rank has no effect" in capsys.readouterr().out


@pytest.mark.slow
def test_replaced_flags_are_accepted_with_a_notice(scpc, tmp_path, capsys):
    old = ["--enable_deepspeed", "--zero_stage", "1", "--dist_eval", "--momentum", "0.9", "--nb_classes", "4"]
    assert main(finetune(scpc, tmp_path / "out", "--dry_run", *old, "--mixup", "0.8", "--num_beams", "5")) == 0
    said = capsys.readouterr().out
    assert "--zero_stage 1 is --strategy zero1" in said
    for name in ("enable_deepspeed", "dist_eval", "momentum", "mixup", "num_beams"):
        assert f"--{name} has no effect" in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--num_classes", "5"], "the answer table has 4 answers"),
        (["--input_size", "64"], "contradicts --model"),
        (["--vocab_size", "20"], "more ids|has \\d+ ids"),
        (["--num_max_bpe_tokens", "8"], "options alone take"),
        (["--num_max_bpe_tokens", "2000"], "must lie between"),
        (["--num_max_bpe_tokens", "1022", "--compile"], "between 3 and 1008"),
        (["--prompt_template", "{question}"], "missing: {a}"),
        (["--sentencepiece_model", "/no/beit3.spm"], "beit3.spm"),
        (["--finetune", "/no/beit3.pth"], "no such file"),
        (["--fold", "1"], "no folds"),
        (["--image_root", "/no/images"], "--image_root"),
        (["--device", "tpu9"], "--device"),
        (["--model", "beit3_tiny_patch8_33"], "multiple of the patch"),
    ],
)  # fmt: skip
def test_contradictions_are_found_before_anything_is_written(scpc, tmp_path, capsys, flags, says):
    assert main(finetune(scpc, tmp_path / "out", *flags)) == 2
    said = capsys.readouterr().err
    assert re.search(says, said), said
    assert not (tmp_path / "out").exists()


def test_missing_images_are_all_named_before_anything_is_written(scpc, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    command = finetune(scpc, tmp_path / "out", "--image_root", str(tmp_path / "images"), "--epochs", "1")
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.count("row train_") >= 10
    assert "--image_root" in said
    assert not (tmp_path / "out").exists()


def test_missing_and_broken_images_end_training_with_their_name(scpc, tmp_path, capsys):
    import shutil

    shutil.copytree(scpc / "images", tmp_path / "images")
    broken = sorted((tmp_path / "images").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:600])
    command = finetune(scpc, tmp_path / "out", "--image_root", str(tmp_path / "images"), "--epochs", "1")
    for workers in ("0", "1"):
        assert main([*command, "--num_workers", workers]) == 2
        said = capsys.readouterr().err
        assert broken.name in said
        assert "Traceback" not in said


def test_a_config_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"epochs": 3}')
    assert read_config_values(tmp_path / "config.json") == {"epochs": 3}


def test_a_missing_config_names_its_neighbour(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert main(["finetune", "--config", str(tmp_path / "confg.json")]) == 2
    assert "Did you mean 'config.json'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["log.txt", "tokenizer.spm", "config.json", "checkpoint-best.pth", "tensorboard"])
def test_files_in_the_way_are_found_before_anything_is_written(scpc, tmp_path, capsys, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine") if name == "tensorboard" else (out / name).mkdir()
    assert main(finetune(scpc, out, "--epochs", "1")) == 2
    assert str(out / name) in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [name]


def test_demo_refuses_a_file_as_its_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["demo", "--output_dir", str(tmp_path / "file")]) == 2
    assert "isn't an empty folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_output_that_python_frees_after_the_stream_below_was_closed_is_silent():
    below = io.StringIO()
    output = _VisibleText(below)
    below.close()
    output.close()  # as Python does, and Python 3.13 tells of an error there


def test_a_terminal_that_is_not_utf8_gets_escapes(scpc, tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "beit3_vqa", "finetune", "--config", str(tmp_path / "설정.json")]
    result = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert result.returncode == 2
    assert b"\\uc124" in result.stderr
    assert b"Traceback" not in result.stderr


def test_empty_questions_and_options_are_refused_and_options_may_repeat(scpc, trained, capsys):
    image = next((scpc / "images").iterdir())
    command = [
        "predict",
        "--checkpoint",
        str(trained / "checkpoint-best.pth"),
        "--device",
        "cpu",
        "--image",
        str(image),
    ]
    for question, choices in ((" ", "abcd"), ("?", ("a", "", "c", "d"))):
        assert main([*command, "--question", question, "--choices", *choices]) == 2
        assert "empty" in capsys.readouterr().err
    assert main([*command, "--question", "?", "--choices", *"aabc"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-4:]] == list("ABCD")


def test_configs_survive_writing_and_reading(tmp_path):
    config = build_config({"epochs": 3, "opt_betas": (0.9, 0.98), "clip_grad": 1.0, "warmup_epochs": 1.0})
    write_config(config, tmp_path / "config.json")
    assert build_config(read_config_values(tmp_path / "config.json")).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "isn't JSON"),
        ("[]", "object"),
        ('{"optim": {"epoch": 3}}', "Did you mean 'epochs'"),
        ('{"epochs": "3"}', "epochs can't be '3'"),
        ('{"epochs": true}', "epochs can't be True"),
        ('{"opt_betas": "0.9"}', "opt_betas"),
        ('{"lr": null}', "lr can't be None"),
        ('{"epochs": -1}', "at least 1"),
        ('{"lr": 1%s}' % ("0" * 400), "lr can't be"),
        ("[" * 100_000, "isn't JSON"),
    ],
)
def test_broken_configs_say_what_is_wrong(tmp_path, content, says):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=says):
        build_config(read_config_values(tmp_path / "config.json"))


def test_flags_may_stand_in_a_flat_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"epochs": 7, "optim": {"lr": 1}}))
    assert read_config_values(tmp_path / "config.json") == {"epochs": 7, "lr": 1.0}


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("beit3_vqa.models.names.listed_names", interrupted)
    assert main(["models"]) == 130
    assert "Type the same command again" in capsys.readouterr().err


def test_the_command_alone_lists_all_commands_with_a_line_each(capsys):
    assert main([]) == 2
    said = capsys.readouterr().err
    for name in set(COMMANDS) - {"evaluate"}:  # a former name, which nobody new should learn
        assert re.search(rf"^  {name} +\w.{{10}}", said, re.M), name
    assert "evaluate  " not in said.replace("resume and evaluate", "")


def test_other_tools_names_lead_to_flags_and_commands_of_ours():
    known = {f"--{name}" for name in FLAGS}
    for other, ours in other_names.FLAGS.items():
        assert ours in known, ours
        assert other not in known, other
    for other, ours in other_names.COMMANDS.items():
        assert ours.split()[0] in COMMANDS, ours
        assert other not in set(COMMANDS) - {"evaluate"}


@pytest.mark.parametrize(
    ("name", "says", "of_images"),
    [
        ("data.zip", "an archive; unpack it", "damaged, or no zip archive; the folder of the images is needed"),
        ("train.csv", "a table, not a folder", "a table, not a folder"),
    ],
)
def test_a_file_where_a_folder_belongs_is_called_what_it_is(tmp_path, capsys, name, says, of_images):
    (tmp_path / name).write_text("x")
    assert main(["finetune", "--output_dir", str(tmp_path / "out"), "--data_path", str(tmp_path / name)]) == 2
    assert says in capsys.readouterr().err
    prepare = ["prepare", "choices", "--train", str(tmp_path / "train.csv"), "--data_path", str(tmp_path / "data")]
    (tmp_path / "train.csv").write_text("ID,img_path,Question,A,B,C,D,answer\n1,a.jpg,What?,a,b,c,d,A\n")
    assert main([*prepare, "--image_root", str(tmp_path / name)]) == 2
    assert of_images in capsys.readouterr().err
