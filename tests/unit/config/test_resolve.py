"""Who decides an option: options.py, the task, the model's family, the checkpoint, the user, the run that goes on."""

import dataclasses
import json
import re

import pytest

from beit3_vqa.config.config import DEFAULT_OF, GROUP_OF, RunConfig, option_fields, write_config
from beit3_vqa.config.options import DEFAULT_PROMPT_TEMPLATE, OPTION_PROMPT_TEMPLATE
from beit3_vqa.config.resolve import DEFAULTS, GivenOptions, SavedOptions, resolve
from beit3_vqa.errors import InputError
from beit3_vqa.runtime.fields import typed

BEIT3, CLIP, LORA = "beit3_large_patch16_480", "clip_vit_large_patch14", "clip_vit_large_patch14_lora"
TASK, BCE = {"crop_scale": 0.08}, {"vqa_loss": "bce"}


def settled(given, task=None, saved=None, kept=()):
    found = None if saved is None else SavedOptions(saved, "--resume x.pth", tuple(kept))
    return resolve(GivenOptions(given), task or {}, found)


@pytest.mark.parametrize(
    ("option", "given", "task", "saved", "kept", "expected"),
    [
        # Nobody says anything, then each of those who may, alone.
        ("crop_scale", {}, {}, None, (), 0.5),
        ("crop_scale", {}, TASK, None, (), 0.08),
        ("crop_scale", {"model": CLIP}, {}, None, (), 1.0),
        ("crop_scale", {"crop_scale": 0.3}, {}, None, (), 0.3),
        ("vqa_loss", {}, {}, {"vqa_loss": "bce"}, (), "bce"),
        ("fold", {}, {}, {"fold": 2}, ("fold",), 2),
        # Two of them: the family before the task, the checkpoint's model before both, what is given before all.
        ("crop_scale", {"model": CLIP}, TASK, None, (), 1.0),
        ("crop_scale", {"model": CLIP, "crop_scale": 0.3}, TASK, None, (), 0.3),
        ("vqa_loss", {}, BCE, {"vqa_loss": "ce"}, (), "ce"),
        ("vqa_loss", {"vqa_loss": "bce"}, {}, {"vqa_loss": "ce"}, (), "bce"),
        ("prompt_template", {"model": CLIP}, {}, {"prompt_template": "{question}"}, (), "{question}"),
        ("lora_rank", {"model": LORA}, {}, {"lora_rank": 16}, (), 16),
        ("lora_rank", {"model": LORA, "lora_rank": 8}, {}, {"lora_rank": 16}, (), 8),
        # The same value as the default, but given.
        ("epochs", {"model": CLIP, "epochs": DEFAULT_OF["epochs"]}, {}, None, (), 20),
        ("vqa_loss", {"vqa_loss": "ce"}, {}, {"vqa_loss": "bce"}, (), "ce"),
        # The family that only the checkpoint knows brings its defaults, except where the checkpoint says otherwise.
        ("epochs", {}, {}, {"model": CLIP}, (), 6),
        ("prompt_template", {}, {}, {"model": CLIP}, (), OPTION_PROMPT_TEMPLATE),
        ("prompt_template", {}, {}, {"model": CLIP, "prompt_template": "{choice}"}, (), "{choice}"),
        ("prompt_template", {"model": BEIT3}, {}, {"model": CLIP}, (), DEFAULT_PROMPT_TEMPLATE),
        ("model", {}, {}, {"model": LORA}, (), LORA),
        ("model", {"model": CLIP}, {}, {"model": LORA}, (), CLIP),
        ("lora_rank", {"model": CLIP}, {}, None, (), 0),
        ("lora_rank", {"model": LORA}, {}, None, (), 32),
        # A checkpoint that was trained without smoothing can be loaded whatever its family does by default.
        ("label_smoothing", {}, {}, {"model": CLIP, "vqa_loss": "bce"}, (), 0.0),
        ("label_smoothing", {"model": CLIP}, {}, {"vqa_loss": "bce"}, (), 0.0),
        ("label_smoothing", {}, {}, {"model": CLIP}, (), 0.1),
        # Of the other groups a checkpoint decides nothing, unless the run keeps it; then whatever is given.
        ("lr", {}, {}, {"lr": 0.7}, (), 5e-4),
        ("fold", {}, {}, {"fold": 2}, (), None),
        ("finetune", {"finetune": "b.pth"}, {}, {"finetune": "a.pth"}, ("finetune", "init"), "a.pth"),
        ("finetune", {"finetune": "b.pth"}, {}, {}, ("finetune", "init"), "b.pth"),
        ("finetune", {"finetune": "b.pth"}, {}, {"finetune": "a.pth"}, (), "b.pth"),
    ],
)
def test_an_option_comes_from_its_strongest_source(option, given, task, saved, kept, expected):
    config = settled(given, task, saved, kept)
    assert config.flat()[option] == expected
    assert config.given == set(given)


def another_value(field, kind):
    """Return a value that the option may have and by default doesn't."""
    special = {
        "opt_betas": (0.5, 0.6),
        "log_with": "wandb",
        "cutmix_minmax": (0.2, 0.4),
        "temperature": "2",
        "min_lr": 1e-7,
    }
    candidates = [*field.metadata["choices"], True, False, 5, 0.25, 0.5, "x"]
    for value in [special[field.name]] if field.name in special else candidates:
        if value != field.default:
            try:
                typed(value, kind, "")
                GivenOptions({"eval": True, field.name: value})
            except InputError:
                continue
            return value
    raise AssertionError(field.name)


@pytest.mark.parametrize(
    ("field", "kind"),
    # --opt has but one value
    [pytest.param(f, kind, id=f.name) for _, f, kind in option_fields() if len(f.metadata["choices"]) != 1],
)
@pytest.mark.parametrize("model", [BEIT3, CLIP])
def test_what_the_user_gave_wins_over_every_default(field, kind, model):
    """Task, family and checkpoint all say the default; the option is another, and no other option changes."""
    value = another_value(field, kind)
    given = {"eval": True, "model": model, "label_smoothing": 0.0}
    others = {name: default for name, default in DEFAULT_OF.items() if GROUP_OF[name] == "model" and name != "model"}
    task = {field.name: field.default}
    before = settled(given, task, others | {"model": model}).flat()
    config = settled(given | {field.name: value}, task, others | {"model": model}).flat()
    assert config[field.name] == value
    if field.name != "model":
        assert {name for name in config if config[name] != before[name]} <= {field.name}


def test_a_family_changes_its_own_defaults_and_nothing_else():
    ours, theirs = settled({}).flat(), settled({"model": LORA}).flat()
    changed = {name: value for name, value in theirs.items() if value != ours[name] and name != "model"}
    assert changed == {name: value for name, value in DEFAULTS["clip"].items() if value != ours[name]}
    assert settled({}) == RunConfig()


@pytest.mark.parametrize(
    ("given", "saved", "kept", "says"),
    [
        ({"epochs": 0}, None, (), r"--epochs 0: must be at least 1"),
        ({"model": CLIP, "min_lr": 1.0}, None, (), r"lower it\. \(CLIP has defaults of its own"),
        ({}, {"vocab_size": "many"}, (), r"x\.pth contains options that are not valid for a model: its vocab_size"),
        ({}, {"vocab_size": 1}, (), r"x\.pth contains options that are not valid for a model: --vocab_size 1"),
        ({"label_smoothing": 0.1}, {"vqa_loss": "bce"}, (), r"not valid for a model: --label_smoothing works with"),
        ({}, {"init": "loud"}, ("init",), r"x\.pth contains options that are not valid for a run: --init loud"),
        ({}, {"fold": "first"}, ("fold",), r"x\.pth contains options that are not valid for a run: its fold"),
        # A default of the family that the user contradicts is nobody's fault in the checkpoint.
        ({"vqa_loss": "bce"}, {"model": CLIP}, (), r"^--label_smoothing works with .* \(CLIP has defaults"),
    ],
)
def test_an_error_says_whose_option_it_is(given, saved, kept, says):
    with pytest.raises(InputError, match=says) as error:
        settled(given, saved=saved, kept=kept)
    assert ("contains options" in str(error.value)) == ("not valid for a" in says)


@pytest.mark.parametrize(
    ("given", "saved", "smoothing"),
    [
        ({}, {"vqa_loss": "bce", "label_smoothing": 0.1, "crop_pct": None}, 0.0),  # as upstream's scripts save them
        ({"vqa_loss": "bce"}, {"label_smoothing": 0.1}, 0.0),
        ({}, {"label_smoothing": 0.2}, 0.2),
        ({"label_smoothing": 0.3}, {"label_smoothing": 0.2}, 0.3),
    ],
)
def test_an_evaluation_takes_what_it_needs_from_a_checkpoint_unless_it_is_given(given, saved, smoothing):
    taken = SavedOptions(saved, "x.pth", unless_given=("label_smoothing", "crop_pct"))
    config = resolve(GivenOptions({"eval": True, **given}), {}, taken)
    assert config.optim.label_smoothing == smoothing
    assert config.of_task.crop_pct == DEFAULT_OF["crop_pct"]


@pytest.mark.parametrize("task", [{"vqa_loss": "bce"}, {}])
def test_a_tasks_default_that_contradicts_the_user_is_an_error(task):
    given = {"label_smoothing": 0.1}
    if not task:
        assert settled(given, task).optim.label_smoothing == 0.1
        return
    with pytest.raises(InputError, match=re.escape("--label_smoothing works with --vqa_loss ce, not with bce.")):
        settled(given, task)


def test_saved_options_that_are_not_used_are_not_validated():
    """A checkpoint's other groups may hold anything, and its own value of an option that is given."""
    config = settled({"vocab_size": 300}, saved={"lr": "fast", "epochs": -1, "vocab_size": "many", "unknown": 1})
    assert config.flat() == settled({"vocab_size": 300}).flat()


def test_given_options_are_read_by_name_and_only_grow():
    given = GivenOptions({"epochs": 3, "model": CLIP}, typed_flags=frozenset({"epochs"}))
    assert (given["epochs"], given["lr"], "lr" in given, "epochs" in given) == (3, 5e-4, False, True)
    more = given.also(fold=1)
    assert more.values == {"epochs": 3, "model": CLIP, "fold": 1}
    assert more.typed_flags == given.typed_flags  # nobody typed the fold
    assert "fold" not in given
    with pytest.raises(InputError, match="--epochs 0"):
        given.also(epochs=0)
    with pytest.raises(KeyError):
        given["epoch"]


def test_a_settled_config_cannot_be_changed():
    config = settled({})
    for change in (lambda: setattr(config, "optim", None), lambda: setattr(config.optim, "batch_size", 4)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            change()


def test_found_values_replace_options_in_config_json(tmp_path):
    config = settled({"batch_size": 8, "epochs": 2})
    found = {"batch_size": 4, "update_freq": 2}
    write_config(config, tmp_path / "config.json", found)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["optim"]["batch_size"], written["optim"]["update_freq"]) == (4, 2)
    assert written["given"] == ["batch_size", "epochs"]
    assert list(written["optim"]) == list(config.to_dict()["optim"])
    assert {n: v for n, v in config.flat(found).items() if config.flat()[n] != v} == found
    assert config.optim.batch_size == 8
