"""CLIP's folders by somebody who means harm, or damaged: no code, no other file, no download, no bomb."""

import importlib
import json
import os
import random
import shutil
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers
from packaging.version import parse as parse_version
from safetensors.torch import load_file, save_file

from beit3_vqa.cli.main import main
from beit3_vqa.config.resolve import GivenOptions
from beit3_vqa.engine.build import plan_evaluation
from beit3_vqa.engine.checkpoint.folder import BEST
from beit3_vqa.errors import InputError
from beit3_vqa.models.base import TaskShape
from beit3_vqa.models.clip.family import CLIPFamily
from beit3_vqa.models.clip.folder import find_clip_folder
from beit3_vqa.models.clip.hub import CLIPTexts, read_image_settings
from beit3_vqa.runtime.precision import Precision
from tests.helpers.commands import CLIP, finetune_clip
from tests.helpers.options import build_config
from tests.helpers.photographs import SUBJECTS, TEMPLATES

ON_CPU = Precision("fp32", torch.device("cpu"))


@pytest.fixture
def folder(clip_folder, tmp_path):
    return shutil.copytree(clip_folder, tmp_path / "clip")


@pytest.fixture
def no_network(monkeypatch):
    """Names that were asked for on the network, where none answers; but for this machine's."""
    asked, look_up = [], socket.getaddrinfo

    def refuse(name, *others, **how):
        if name == "127.0.0.1":
            return look_up(name, *others, **how)
        asked.append(name)
        raise OSError(f"{name} was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    return asked


@pytest.fixture(scope="module")
def trained_clip(scpc, clip_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained_clip") / "out"
    assert main(finetune_clip(scpc, clip_folder, out, "--epochs", "1")) == 0
    return out


def family(folder, **options):
    given = {"model": f"{CLIP.name}_lora", "pretrained": str(folder), "lora_rank": 4, **options}
    return CLIPFamily(build_config(given), TaskShape("vqacustom", 4, True))


def change(path: Path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def tower(folder, name, **values):
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", **{name: {**config[name], **values}})


CHOOSING = {
    "_attn_implementation_internal": "stranger/kernel",
    "_attn_implementation": "stranger/kernel",
    "attn_implementation": {"text_config": "stranger/kernel"},
    "_experts_implementation": "stranger/kernel",
    "auto_map": {"AutoModel": "stranger--modeling.Model"},
    "quantization_config": {"quant_method": "stranger"},
    "transformers_weights": "../stranger.safetensors",
    "_name_or_path": "stranger/kernel",
    "torchscript": "stranger",
}


@pytest.mark.parametrize("old_names", [False, True])
def test_keys_that_choose_code_are_not_taken(folder, no_network, capsys, old_names):
    expected = family(folder).build(ON_CPU).base_sha256
    for name in ("text_config", "vision_config"):
        tower(folder, name, **CHOOSING)
        if old_names:
            config = json.loads((folder / "config.json").read_text())
            change(folder / "config.json", **{f"{name}_dict": config[name], name: {}})
    change(folder / "config.json", **CHOOSING)
    capsys.readouterr()
    made = family(folder)
    said = capsys.readouterr().out
    assert "asks for code of its own, which is ignored" in said
    assert all(name in said for name in CHOOSING if name not in ("_name_or_path", "torchscript"))
    assert "stranger" not in repr(vars(made.clip_config))
    for part in (made.clip_config, made.clip_config.text_config, made.clip_config.vision_config):
        assert "stranger" not in json.dumps(part.to_dict(), default=repr)
        assert part._attn_implementation in (None, "sdpa", "eager")
    assert made.count_parameters() > 0
    assert made.build(ON_CPU).base_sha256 == expected
    assert not no_network


def test_an_ensemble_counts_parameters_without_code_of_the_folder(
    scpc, trained_clip, folder, tmp_path, monkeypatch, no_network
):
    """Where no attention is asked for, transformers takes the one of the configuration."""
    tower(folder, "text_config", **CHOOSING)
    change(folder / "config.json", **CHOOSING)
    values = {"eval": True, "resume": str(trained_clip / BEST), "pretrained": str(folder), "output_dir": str(tmp_path)}
    _, parameters = plan_evaluation(GivenOptions({**values, "data_path": str(scpc / "data"), "device": "cpu"}))
    assert parameters == family(folder).count_parameters()


def before(version):
    """Skip where transformers has mended what a test shows; our own reading is tested in every version."""
    mended = parse_version(transformers.__version__) >= parse_version(version)
    return pytest.mark.skipif(mended, reason=f"mended in transformers {version}; this is {transformers.__version__}")


@pytest.fixture
def kernels(monkeypatch):
    """Kernels that transformers fetches and runs; it believes that the package for that is installed."""
    fetched = []
    hub_kernels = importlib.import_module("transformers.integrations.hub_kernels")
    monkeypatch.setattr(hub_kernels, "_kernels_available", True, raising=False)  # transformers 5 asks otherwise
    fetch = lambda name, *_, **how: fetched.append(name) or SimpleNamespace(flash_attn_varlen_func=None)  # noqa: E731
    monkeypatch.setattr(hub_kernels, "get_kernel", fetch, raising=False)
    monkeypatch.setattr(hub_kernels, "lazy_import_flash_attention", lambda *_, **how: None, raising=False)
    return fetched


KERNEL = {"_attn_implementation_internal": "stranger/kernel"}


def name_a_kernel(folder):
    for name in ("text_config", "vision_config"):
        tower(folder, name, **KERNEL)
    change(folder / "config.json", **KERNEL)


@before("5.3")
def test_cve_2026_4372_plain_reading_fetches_a_kernel_of_the_folders_choice(folder, kernels):
    name_a_kernel(folder)
    with suppress(Exception):  # some versions find nothing of use in what they have fetched and run
        transformers.CLIPModel.from_pretrained(folder, trust_remote_code=False)
    assert "stranger/kernel" in kernels


def test_cve_2026_4372_our_reading_fetches_no_kernel(folder, kernels, capsys):
    name_a_kernel(folder)
    made = family(folder)
    assert "asks for code of its own, which is ignored: '_attn_implementation_internal'" in capsys.readouterr().out
    for attention in ("auto", "matmul"):
        family(folder, attention=attention).build(ON_CPU)
    made.skeleton()
    assert not kernels


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A configuration that trusts its own code, as (entries, marker); the code makes a folder called as the marker."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which transformers adds that folder
    there, marker = tmp_path / "detector", tmp_path / "marker"
    there.mkdir()
    auto_map = {"AutoConfig": "configuration_stranger.StrangerConfig"}
    (there / "config.json").write_text(json.dumps({"model_type": "stranger", "auto_map": auto_map}))
    (there / "configuration_stranger.py").write_text(
        f"import os\nfrom transformers import PretrainedConfig\nos.makedirs({str(marker)!r}, exist_ok=True)\n"
        "class StrangerConfig(PretrainedConfig):\n    model_type = 'stranger'\n"
    )
    detector = {"model_type": "stranger", "_name_or_path": str(there), "auto_map": auto_map}
    return {"model_type": "lightglue", "trust_remote_code": True, "keypoint_detector_config": detector}, marker


@before("5.5")
def test_cve_2026_5241_plain_reading_runs_a_folders_code_that_it_was_told_not_to_trust(folder, code):
    entries, marker = code
    change(folder / "config.json", **entries)
    transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    assert marker.exists()


def test_cve_2026_5241_our_reading_runs_no_code_of_the_folder(folder, code, capsys):
    entries, marker = code
    plainly = family(folder).build(ON_CPU).base_sha256
    for name in ("text_config", "vision_config"):
        tower(folder, name, **entries, deeper=[[entries]])
    change(folder / "config.json", **{**entries, "model_type": "clip"})
    change(folder / "preprocessor_config.json", **entries)
    capsys.readouterr()
    made = family(folder)
    assert made.build(ON_CPU).base_sha256 == plainly
    said = capsys.readouterr().out
    for name in ("config.json", "preprocessor_config.json"):
        assert f"{folder / name}: asks for code of its own, which is ignored: 'auto_map', 'trust_remote_code'" in said
    change(folder / "config.json", **entries)
    with pytest.raises(InputError, match="is of type 'lightglue', not a CLIP"):
        family(folder)
    assert not marker.exists()


def test_a_key_that_chooses_code_is_told_however_deep_it_lies(folder, capsys):
    change(folder / "config.json", notes=[{"x": [{"auto_map": {"AutoModel": "x--y.Z"}}]}])
    family(folder)
    assert "which is ignored: 'auto_map'\n" in capsys.readouterr().out
    # What transformers itself writes is nothing to warn of.
    change(folder / "config.json", notes=[], _attn_implementation_autoset=True, quantization_config=None)
    family(folder)
    assert capsys.readouterr().out == ""


def test_no_base_model_is_looked_for_elsewhere(folder, no_network):
    """What peft's folders name as the model that they adapt, transformers reads in the folder's place."""
    expected = family(folder).build(ON_CPU).clip.logit_scale
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "stranger/clip"}))
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": "stranger--x.T"}, vocab_file="/etc/passwd")
    made = family(folder)
    assert made.build(ON_CPU).clip.logit_scale.equal(expected)
    assert made.processor(None).texts.vocab_size == len(json.loads((folder / "vocab.json").read_text()))
    assert not no_network


class Code:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.makedirs, (self.marker, 0o777, True)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pytorch_model.bin", "holds more than weights and plain data .*fetch it from where its makers"),
        ("model.safetensors.index.json", r"there is neither model\.safetensors nor"),
        ("adapter_model.bin", r"there is neither model\.safetensors nor"),
    ],
)
def test_code_in_pickled_weights_does_not_run(folder, tmp_path, name, says):
    for place in (tmp_path / "evil.bin", folder / name):
        torch.save({**load_file(folder / "model.safetensors"), "extra": Code(tmp_path / "marker")}, place)
    if name.endswith(".json"):
        (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": {"logit_scale": "../evil.bin"}}))
    family(folder).build(ON_CPU)  # the safe file is there, too
    if not name.endswith(".json"):  # what plain reading would do
        torch.load(folder / name, weights_only=False)
        (tmp_path / "marker").rmdir()
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=says):
        family(folder).build(ON_CPU)
    assert not (tmp_path / "marker").exists()


def test_weights_in_torchs_format_are_read_as_plain_data(folder):
    """As OpenAI's older folders have them."""
    expected = family(folder).build(ON_CPU).base_sha256
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**weights, "text_model.embeddings.position_ids": torch.arange(48)}, folder / "pytorch_model.bin")
    assert family(folder).build(ON_CPU).base_sha256 == expected
    many = {**weights, "logit_scale": weights["logit_scale"].to(torch.int64)}
    for changed, says in (
        (many, "logit_scale: .*int64"),
        ({**weights, "visual_projection.weight": torch.zeros(1).expand(32, 32)}, "visual_projection"),
        ({**weights, "visual_projection.weight": torch.zeros(3)}, r"visual_projection\.weight: \(3,\)"),
        ({"logit_scale": weights["logit_scale"]}, "lacks"),
    ):
        torch.save(changed, folder / "pytorch_model.bin")
        with pytest.raises(InputError, match=says):
            family(folder).build(ON_CPU)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"size": 0}, "size is 0; expected the shorter side, a whole number from 1 to 4,096"),
        ({"size": -1}, "size is -1"),
        ({"size": 50_000}, "size is 50000"),
        ({"size": [224]}, r"size is \[224\]"),
        ({"size": "224"}, "size is '224'"),
        ({"size": True}, "size is True"),
        ({"size": 224.5}, "size is 224.5"),
        ({"size": {"shortest_edge": 0}}, "size is {'shortest_edge': 0}"),
        ({"size": {"shortest_edge": [1]}}, "size is "),
        ({"size": {"height": 32}}, "size is "),
        ({"size": {}}, "size is {}"),
        ({"image_mean": "text"}, "image_mean is 'text'; expected a list of three numbers"),
        ({"image_mean": 0.5}, "image_mean is 0.5"),
        ({"image_mean": [0.5, 0.5]}, "image_mean is"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "image_mean is"),
        ({"image_mean": [0.5, 0.5, "x"]}, "image_mean is"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std is"),
        ({"image_std": [[0.5], 0.5, 1]}, "image_std is"),
    ],
)
def test_impossible_image_settings_are_refused(folder, values, says):
    change(folder / "preprocessor_config.json", **values)
    with pytest.raises(InputError, match=f"preprocessor_config.json: {says}"):
        family(folder)


@pytest.mark.parametrize("content", ["[]", "{", "3", "", '{"size": ' + "[" * 10**5])
def test_image_settings_that_are_no_object_are_refused(folder, content):
    (folder / "preprocessor_config.json").write_text(content)
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        family(folder)


@pytest.mark.parametrize("size", [40, {"shortest_edge": 40}, {"height": 32, "width": 32}])
def test_image_settings_are_read_as_transformers_reads_them(folder, size):
    change(folder / "preprocessor_config.json", size=size, image_mean=[0.1, 0.2, 0.3], feature_extractor_type="x")
    theirs = transformers.CLIPImageProcessor.from_pretrained(folder)
    ours = read_image_settings(folder, 32)
    assert (ours.size, ours.image_mean, ours.image_std) == (theirs.size, theirs.image_mean, theirs.image_std)
    evaluate = family(folder).processor(None).evaluate
    assert evaluate.shortest_edge == (None if isinstance(size, dict) and "height" in size else 40)


@pytest.mark.parametrize(
    ("where", "values", "says"),
    [
        ("text_config", {"hidden_size": "x"}, "text_config: hidden_size is 'x'; expected a whole number from 1 to"),
        ("text_config", {"hidden_size": 10**9}, "hidden_size is 1000000000"),
        ("text_config", {"hidden_size": -32}, "hidden_size is -32"),
        ("text_config", {"hidden_size": 32.0}, "hidden_size is 32.0"),
        ("text_config", {"num_hidden_layers": 10**8}, "num_hidden_layers is 100000000"),
        ("text_config", {"num_attention_heads": 5}, "hidden_size 32 can't be divided by 5 num_attention_heads"),
        ("text_config", {"vocab_size": [1]}, r"vocab_size is \[1\]"),
        ("text_config", {"eos_token_id": [1, 2]}, r"eos_token_id is \[1, 2\]"),
        ("vision_config", {"patch_size": 0}, "vision_config: patch_size is 0"),
        ("vision_config", {"image_size": [32, 32]}, r"image_size is \[32, 32\]"),
        ("vision_config", {"num_channels": 4}, "num_channels is 4"),
        ("vision_config", {"layer_norm_eps": float("inf")}, "layer_norm_eps is inf"),
        ("vision_config", {"hidden_act": "os.system"}, "hidden_act is 'os.system'; expected one of quick_gelu, gelu"),
        ("vision_config", {"hidden_act": {"x": 1}}, "hidden_act is"),
        (None, {"text_config": []}, r"config.json: text_config is \[\]; expected an object"),
        (None, {"text_config": [{"hidden_size": 32}]}, "text_config is"),
        (None, {"vision_config": "x"}, "vision_config is 'x'"),
        (None, {"vision_config_dict": 3}, "vision_config_dict is 3"),
        (None, {"projection_dim": {}}, "projection_dim is {}"),
        (None, {"logit_scale_init_value": "x"}, "logit_scale_init_value is 'x'"),
        (None, {"model_type": ["clip"]}, r"is of type \['clip'\], not a CLIP"),
    ],
)
def test_impossible_configurations_are_refused(folder, where, values, says):
    if where:
        tower(folder, where, **values)
    else:
        change(folder / "config.json", **values)
    with pytest.raises(InputError, match=says):
        family(folder)


def test_a_configuration_that_contradicts_the_weights_is_refused(folder):
    """Told from the file's list of shapes: no memory is taken for a model of terabytes."""
    tower(folder, "text_config", hidden_size=10**5, num_attention_heads=2, intermediate_size=10**6)
    started = time.process_time()
    with pytest.raises(InputError, match=r"its weights aren't those that its config\.json says:\n  text_model"):
        family(folder).build(ON_CPU)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_weights_of_other_types_are_refused(folder, dtype):
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"] = weights["visual_projection.weight"].to(dtype)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"visual_projection\.weight: \(32, 32\) [FI]8"):
        family(folder).build(ON_CPU)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_and_double_weights_become_float32(folder, dtype):
    whole = load_file(folder / "model.safetensors")
    save_file({name: value.to(dtype) for name, value in whole.items()}, folder / "model.safetensors")
    made = family(folder, lora_rank=0, model=CLIP.name).build(ON_CPU).clip.state_dict()
    for name, value in whole.items():
        assert made[name].dtype == torch.float32
        torch.testing.assert_close(made[name], value.to(dtype).float(), atol=0, rtol=0)


def used(folder):
    made = family(folder)
    made.processor(None)
    made.build(ON_CPU)


FILES = ("config.json", "preprocessor_config.json", "vocab.json", "merges.txt", "model.safetensors")


@pytest.mark.parametrize("kind", ["pipe", "device", "nowhere", "circle", "huge"])
@pytest.mark.parametrize("name", FILES)
def test_pipes_devices_broken_links_and_endless_files_are_refused(folder, tmp_path, name, kind):
    path = folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(2 * 10**12)  # sparse: no byte of it is on the disk
    else:
        path.symlink_to({"device": "/dev/zero", "nowhere": tmp_path / "nowhere", "circle": path}[kind])
    started = time.process_time()
    with pytest.raises(InputError):
        used(folder)
    assert time.process_time() - started < 5


@pytest.mark.slow
def test_a_folder_of_links_as_in_the_hubs_cache_is_read(scpc, folder, tmp_path):
    """In huggingface_hub 2, what several models share lies beside them all."""
    repository = tmp_path / "hub" / "models--somebody--clip"
    cached, blobs, shared = repository / "snapshots" / "abc", repository / "blobs", tmp_path / "hub" / "blobs" / "f0"
    for place in (cached, blobs, shared):
        place.mkdir(parents=True)
    for path in folder.iterdir():
        (cached / path.name).symlink_to(os.path.relpath(blobs / path.stem, cached))
        path.rename((shared if path.suffix == ".safetensors" else blobs) / path.stem)
    (blobs / "model").symlink_to("../../blobs/f0/model")
    (tmp_path / "link").symlink_to(cached)
    command = finetune_clip(scpc, tmp_path / "link", tmp_path / "out", "--dry_run")
    assert main(command) == 0


@pytest.mark.parametrize("name", FILES)
def test_links_out_of_the_folder_are_refused(folder, tmp_path, monkeypatch, name):
    """Each leads to the very file that belongs there: not its content is refused, but where it lies."""
    outside = tmp_path / "private"
    (folder / name).rename(outside)
    (folder / name).symlink_to("../private")
    says = f"{name} is a link out of the folder, to {outside}: copy the file"
    with pytest.raises(InputError, match=says):
        used(folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **how: str(folder))
    with pytest.raises(InputError, match=says):
        find_clip_folder("hf:somebody/clip", typed=True)
    # A stranger may pack what looks like the hub's cache, too.
    packed = tmp_path / "packed" / "snapshots" / "abc"
    packed.parent.mkdir(parents=True)
    folder.rename(packed)
    (packed / name).unlink()
    (packed.parents[1] / "blobs").symlink_to(tmp_path)
    (packed / name).symlink_to("../../blobs/private")
    with pytest.raises(InputError, match=says):
        used(packed)
    # A link within the folder harms nobody.
    (packed / name).unlink()
    (packed / "here").mkdir()
    outside.rename(packed / "here" / "file")
    (packed / name).symlink_to("here/file")
    used(packed)


def test_ids_are_those_of_transformers_whichever_files_there_are(folder, tmp_path):
    theirs = transformers.CLIPTokenizerFast.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "one file")
    for path in (tmp_path / "one file").iterdir():
        if path.name != "tokenizer.json":
            path.unlink()
    both = [CLIPTexts(folder), CLIPTexts(tmp_path / "one file")]
    rng = random.Random(0)
    texts = [f"Question: {question} Answer: {subject}" for question in TEMPLATES for subject in SUBJECTS]
    alphabet = "abc XYZ 0123'!?é가나한글日本  \t\n<|endoftext|>’—𝔸ı"
    texts += ["".join(rng.choices(alphabet, k=rng.randrange(30))) for _ in range(300)]
    expected = theirs(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    for ours in both:
        assert ours.encode_batch(texts) == expected
        assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
        assert ours.vocab_size == len(theirs)
    assert both[0].sha256 == both[1].sha256


def test_saved_tokenizers_have_the_files_of_each_version_of_transformers(folder, tmp_path):
    """Version 4 reads vocab.json and merges.txt, or tokenizer.json; version 5 writes the latter alone."""
    texts = CLIPTexts(folder)
    texts.save(tmp_path)
    assert json.loads((tmp_path / "vocab.json").read_text()) == json.loads((folder / "vocab.json").read_text())
    merges = [(path / "merges.txt").read_text(encoding="utf-8").splitlines()[1:] for path in (tmp_path, folder)]
    assert merges[0] == merges[1]
    assert (tmp_path / "tokenizer.json").exists()
    (tmp_path / "vocab.json").unlink()
    assert CLIPTexts(tmp_path).sha256 == texts.sha256


def test_only_the_vocabulary_of_a_tokenizer_json_is_used(folder, tmp_path):
    """Thirty replacements, each doubling a letter, make a gigabyte of one."""
    expected = CLIPTexts(folder).encode_batch(["a cat"])
    transformers.CLIPTokenizerFast.from_pretrained(folder).save_pretrained(tmp_path / "bomb")
    for name in ("vocab.json", "merges.txt"):  # which transformers 5 doesn't write
        (tmp_path / "bomb" / name).unlink(missing_ok=True)
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    bomb = {"normalizer": {"type": "Sequence", "normalizers": [double] * 30}}
    pattern = {"Regex": "(a*)*(a*)*(a*)*b"}
    bomb["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    change(tmp_path / "bomb" / "tokenizer.json", **bomb)
    assert CLIPTexts(tmp_path / "bomb").encode_batch(["a cat"]) == expected


def with_id(number):
    return lambda vocabulary: {**vocabulary, "new": number}


@pytest.mark.parametrize(
    "damage",
    [
        with_id(10**7),  # the tokenizer would name each of the ids between
        with_id(2**40),
        with_id(-1),
        with_id(0),
        with_id("5"),
        with_id(None),
        lambda vocabulary: {**vocabulary, "\ud800": len(vocabulary)},
        lambda vocabulary: {"<|startoftext|>": 0, "<|endoftext|>": 1},
        lambda vocabulary: {name: number for name, number in vocabulary.items() if name != "<|endoftext|>"},
        lambda vocabulary: [],
    ],
)
def test_damaged_vocabularies_are_refused(folder, capfd, damage):
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(damage(vocabulary)))
    with pytest.raises(InputError, match="no CLIP tokenizer there"):
        CLIPTexts(folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("line", ["a b c", "a", "qq qq", "\0 \0"])
def test_damaged_merges_are_refused(folder, line):
    with (folder / "merges.txt").open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    with pytest.raises(InputError, match="no CLIP tokenizer there"):
        CLIPTexts(folder)


def test_an_end_token_that_the_tokenizer_does_not_use_is_refused(folder):
    tower(folder, "text_config", eos_token_id=5)
    with pytest.raises(InputError, match="says that texts end with id 5"):
        family(folder).processor(None)


# The hub: only where it is typed as such.


@pytest.mark.slow
def test_a_typed_name_on_the_hub_is_fetched(scpc, clip_folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **how: asked.append((name, how)) or clip_folder
    )
    command = finetune_clip(scpc, clip_folder, tmp_path / "out", "--pretrained", "hf:somebody/clip-tiny", "--dry_run")
    assert main(command) == 0
    assert {name for name, _ in asked} == {"somebody/clip-tiny"}
    assert not [pattern for pattern in asked[0][1]["allow_patterns"] if pattern.endswith((".bin", ".py", "*"))]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("checkpoints/clip-vit-large-patch14", "--pretrained hf:checkpoints/clip-vit-large-patch14"),
        ("openai/clip-vit-large-patch14", "--pretrained hf:openai/clip-vit-large-patch14"),
        ("clip-vit-large-patch14", "there is no folder"),
        ("a/b/c", "there is no folder"),
        ("x" * 300, "there is no folder"),
        ("x" * 300 + "/y", "there is no folder"),
        ("hf:clip", "write hf:OWNER/NAME"),
        ("hf:../clip", "write hf:OWNER/NAME"),
        ("hf:https://hub/a/b", "write hf:OWNER/NAME"),
        ("hf:", "write hf:OWNER/NAME"),
    ],
)
def test_a_missing_folder_downloads_nothing(scpc, tmp_path, monkeypatch, no_network, capsys, name, says):
    monkeypatch.chdir(tmp_path)
    assert main(finetune_clip(scpc, Path("unused"), tmp_path / "out", "--pretrained", name)) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not no_network


COMMANDS = {
    "predict": ["predict", "--checkpoint", "{file}", "--image", "{image}", "--question", "?", "--choices", *"abcd"],
    "serve": ["serve", "--checkpoint", "{file}", "--port", "0"],
    "export": ["export", "--checkpoint", "{file}", "--output_dir", "{new}"],
    "ensemble": ["ensemble", "{file}", "--data_path", "{data}", "--output", "{new}/submission.csv"],
    "evaluate": ["finetune", "--eval", "--resume", "{file}", "--data_path", "{data}", "--output_dir", "{new}"],
    "resume": ["finetune", "--model", f"{CLIP.name}_lora", "--resume", "{file}", "--data_path", "{data}",
               "--output_dir", "{new}"],
    "config file": ["finetune", "--config", "{config}", "--data_path", "{data}", "--output_dir", "{new}"],
}  # fmt: skip


@pytest.mark.parametrize("name", ["hf:stranger/clip", "stranger/clip"])
@pytest.mark.parametrize("way", COMMANDS)
def test_a_checkpoint_downloads_nothing(scpc, trained_clip, clip_folder, tmp_path, no_network, capsys, way, name):
    content = torch.load(trained_clip / "checkpoint-0.pth")
    content["args"]["pretrained"] = name
    torch.save(content, tmp_path / "x.pth")
    change(Path(shutil.copy(trained_clip / "config.json", tmp_path)), pretrained=name)
    places = {"file": tmp_path / "x.pth", "data": scpc / "data", "new": tmp_path / "new"}
    places |= {"image": next((scpc / "images").iterdir()), "config": tmp_path / "config.json"}
    command = [word.format(**places) for word in COMMANDS[way]]
    command += [] if way == "export" else ["--device", "cpu"]
    command += ["--num_workers", "0"] if way in ("evaluate", "ensemble") else []
    assert main(command) == 2
    said = capsys.readouterr().err
    assert (
        "type it: --pretrained hf:stranger/clip" if name[:3] == "hf:" else "there is no folder stranger/clip"
    ) in said
    assert not no_network
    assert not (tmp_path / "new").exists()
    if way in ("predict", "evaluate", "ensemble"):  # what is typed counts
        assert main([*command, "--pretrained", str(clip_folder)]) == 0


def test_reports_download_nothing(scpc, trained_clip, tmp_path, no_network, capsys):
    content = torch.load(trained_clip / "checkpoint-0.pth")
    content["args"]["pretrained"] = "hf:stranger/clip"
    out = tmp_path / "out"
    evaluate = ["finetune", "--eval", "--resume", str(trained_clip / BEST), "--data_path", str(scpc / "data")]
    assert main([*evaluate, "--output_dir", str(out), "--device", "cpu", "--num_workers", "0"]) == 0
    torch.save(content, tmp_path / "x.pth")
    info = out / "predictions.info.json"
    change(info, checkpoint=str(tmp_path / "x.pth"))
    assert main(["report", str(out), "--output", str(tmp_path / "r.html"), "--device", "cpu"]) == 0
    assert "no attention maps; --pretrained hf:stranger/clip" in capsys.readouterr().out
    assert not no_network
