"""CLIP with adapters against transformers and peft computing the plain way: the image repeated for every option."""

import dataclasses
import json
import pickle
import random
import shutil
import subprocess
import sys
import warnings

import peft
import pytest
import torch
import transformers
from PIL import Image

from beit3_vqa.config.options import ModelConfig, OptimConfig
from beit3_vqa.data.types import Example
from beit3_vqa.engine.optim import make_optimizer, parameter_groups
from beit3_vqa.errors import InputError
from beit3_vqa.models.base import TaskShape
from beit3_vqa.models.clip.family import CLIPFamily
from beit3_vqa.models.clip.model import CLIPForMultipleChoice
from beit3_vqa.models.clip.processor import CLIPTransform
from beit3_vqa.models.clip.scratch import TinyCLIP, write_tiny_clip
from beit3_vqa.models.lora import add_adapters, lora_config
from beit3_vqa.models.names import (
    LISTED_CLIP,
    clip_config_values,
    count_adapters,
    count_clip_parameters,
    parse_clip_name,
)
from beit3_vqa.runtime.precision import Precision
from tests.helpers.commands import CLIP
from tests.helpers.options import build_config
from tests.helpers.photographs import SUBJECTS, TEMPLATES
from tests.helpers.tiny_clip import PillowProcessor, examples, family, randomise_adapters

SMALL_SIZES = [
    CLIP,
    TinyCLIP(width=48, layers=3, heads=3, img_size=48, patch_size=16, max_tokens=40),
]


def plain(folder, made: CLIPForMultipleChoice, options: ModelConfig) -> peft.PeftModel:
    """transformers' model in peft's wrapper, with the adapters of ours."""
    with warnings.catch_warnings():  # peft asks for it by the name that it had before transformers 5
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        wrapped = peft.get_peft_model(transformers.CLIPModel.from_pretrained(folder), lora_config(options))
    ours = {f"base_model.model.{n.removeprefix('clip.')}": v for n, v in made.state_dict().items()}
    missing, unexpected = wrapped.load_state_dict(ours, strict=False)
    assert not unexpected
    assert not [name for name in missing if "lora_" in name]
    return wrapped


def plain_logits(wrapped, folder, shown: list[Example]) -> torch.Tensor:
    """(B, 4): each question alone, its image once per option, texts padded to the longest the model reads."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    image_processor = PillowProcessor.from_pretrained(folder)
    rows = []
    for example in shown:
        texts = [f"Question: {example.question} Answer: {choice}" for choice in example.choices]
        length = wrapped.config.text_config.max_position_embeddings
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        pixels = image_processor([Image.open(example.image_path)] * 4, return_tensors="pt")["pixel_values"]
        rows.append(wrapped(pixel_values=pixels, **tokens).logits_per_image.diagonal())
    return torch.stack(rows)


@pytest.mark.parametrize("sizes", SMALL_SIZES, ids=lambda sizes: sizes.name)
@pytest.mark.parametrize("attention", ["auto", "matmul"])
def test_logits_and_gradients_equal_those_of_transformers_and_peft(scpc, tmp_path, sizes, attention):
    texts = [f"Question: {question} Answer: {subject}" for question in TEMPLATES for subject in SUBJECTS]
    folder = write_tiny_clip(tmp_path, texts, sizes)
    made = family(folder, model=f"{sizes.name}_lora", attention=attention)
    model, processor = made.build(Precision("fp32", torch.device("cpu"))), made.processor(None)
    randomise_adapters(model)
    wrapped = plain(folder, model, made.config.model)
    shown = examples(scpc)
    inputs = processor.collate([processor(example) for example in shown])
    assert inputs["image"].shape == (5, 3, sizes.img_size, sizes.img_size)
    assert len(inputs["text"]) == len({(e.question, choice) for e in shown for choice in e.choices}) < 36
    assert inputs["text"].shape[1] < sizes.max_tokens
    ours, theirs = model(**inputs), plain_logits(wrapped, folder, shown)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0])
    for logits in (ours, theirs):
        torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1).backward()
    gradients = {n.removeprefix("base_model.model."): p.grad for n, p in wrapped.named_parameters()}
    for name, value in model.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(value.grad, gradients[name.removeprefix("clip.")], atol=1e-5, rtol=1e-4)
        else:
            assert value.grad is None


def test_openais_wrong_end_token_and_bare_sizes_change_no_logit(scpc, clip_folder, tmp_path):
    """Their configuration names a wrong end token (2: the highest id is meant), and sizes by a number alone."""
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings |= {"size": CLIP.img_size, "crop_size": CLIP.img_size}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    logits = []
    for source in (clip_folder, folder):
        made = family(source)
        model, processor = made.build(Precision("fp32", torch.device("cpu"))), made.processor(None)
        logits.append(model(**processor.collate([processor(example) for example in examples(scpc)])))
    assert torch.equal(*logits)
    (folder / "preprocessor_config.json").unlink()
    assert family(folder).settings.image_mean == pytest.approx(transformers.image_utils.OPENAI_CLIP_MEAN)


@pytest.mark.parametrize("name", LISTED_CLIP)
def test_parameter_counts_are_those_of_the_built_and_published_models(name):
    parsed = parse_clip_name(name)
    with torch.device("meta"):
        clip = transformers.CLIPModel(transformers.CLIPConfig(**clip_config_values(parsed)))
        assert sum(p.numel() for p in clip.parameters()) == count_clip_parameters(parsed)
        add_adapters(clip, build_config({"model": f"{name}_lora"}).model)
    trained = sum(p.numel() for p in clip.parameters() if p.requires_grad)
    assert trained == count_adapters(parsed, 32)
    if name == "clip_vit_large_patch14":  # as published
        assert (sum(p.numel() for p in clip.parameters()), trained) == (434_104_577, 6_488_064)


def test_frozen_weights_in_the_compute_dtype_change_no_bit_and_get_no_gradient(scpc, clip_folder):
    precision = Precision("bf16", torch.device("cpu"))
    made = family(clip_folder)
    model, processor = made.build(precision), made.processor(None)
    randomise_adapters(model)
    products = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    frozen = [m for m in products if not m.weight.requires_grad]
    assert {m.weight.dtype for m in frozen} == {torch.bfloat16}
    assert len(frozen) == 2 * 2 * 6 + 3  # attention and MLP of two layers in two towers, patches, two projections
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    optimizer = make_optimizer(model, OptimConfig())
    inputs = processor.collate([processor(example) for example in examples(scpc)])
    with precision.autocast():
        logits = model(**inputs)
    logits.sum().backward()
    optimizer.step()
    assert {id(p) for p in optimizer.state} == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    # Autocast rounds the same weights in each forward pass: holding them rounded changes no bit.
    exact = family(clip_folder).build(Precision("fp32", torch.device("cpu")))
    randomise_adapters(exact)
    with precision.autocast():
        assert torch.equal(exact(**inputs), logits)


def test_checkpointed_activations_give_the_same_gradients(scpc, clip_folder):
    gradients = []
    for flag in (False, True):
        made = family(clip_folder, checkpoint_activations=flag)
        model, processor = made.build(Precision("fp32", torch.device("cpu"))), made.processor(None)
        randomise_adapters(model)
        model.train()
        model(**processor.collate([processor(example) for example in examples(scpc)])).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plainly, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plainly, again)


def test_layer_decay_scales_both_towers_from_the_last_layer(clip_folder):
    model = family(clip_folder, lora_rank=0, model=CLIP.name).build(Precision("fp32", torch.device("cpu")))
    groups = parameter_groups(model, OptimConfig(layer_decay=0.5))
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert scale[id(names["clip.visual_projection.weight"])] == 1
    assert scale[id(names["clip.vision_model.encoder.layers.1.self_attn.q_proj.weight"])] == 0.5
    assert scale[id(names["clip.text_model.encoder.layers.0.mlp.fc1.weight"])] == 0.25
    assert scale[id(names["clip.text_model.embeddings.token_embedding.weight"])] == 0.125
    assert scale[id(names["clip.vision_model.pre_layrnorm.weight"])] == 0.125  # it stands before the layers
    assert scale[id(names["clip.vision_model.post_layernorm.weight"])] == 1


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (31, 200), (33, 33), (32, 32), (100, 37)])
def test_pixels_equal_those_of_transformers(size):
    generator = random.Random(1)
    image = Image.frombytes("RGB", size, generator.randbytes(3 * size[0] * size[1]))
    settings = {"do_rescale": False, "do_normalize": False, "size": {"shortest_edge": 32}, "crop_size": 32}
    theirs = PillowProcessor(**settings)(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(CLIPTransform(32, 32)(image), theirs.to(torch.uint8))
    whole = CLIPTransform(32, None)(image)
    assert torch.equal(whole, CLIPTransform(32, 32)(image.resize((32, 32), Image.Resampling.BICUBIC)))


def test_training_sees_the_square_of_evaluation_unless_augmentation_is_asked_for(scpc, clip_folder):
    example = examples(scpc)[0]
    processor = family(clip_folder).processor(None)
    augmented = family(clip_folder, flip=1.0).processor(None)
    pixels = processor(example)["image"]
    assert torch.equal(processor(example, random.Random(0))["image"], pixels)
    assert torch.equal(augmented(example, random.Random(0))["image"], pixels.flip(2))
    for about_sides in ({"question": "Left?"}, {"wordings": ("Left?",)}):
        kept = augmented(dataclasses.replace(example, **about_sides), random.Random(0))["image"]
        assert torch.equal(kept, pixels)


def test_long_questions_are_cut_and_options_never(clip_folder):
    processor = family(clip_folder, num_max_bpe_tokens=16).processor(None)
    long = Example("0", "x", "What is in the picture? " * 9, SUBJECTS[:4])
    for ids, choice in zip(processor.token_ids(long), long.choices, strict=True):
        assert len(ids) <= 16
        end = processor.texts.encode_batch([f"Answer: {choice}"])[0]
        assert list(ids[-1 - len(end) : -1]) == end
        assert (ids[0], ids[-1]) == (processor.texts.bos_id, processor.texts.eos_id)
    lengths = processor.measure([long], 0)
    assert (lengths.longest, lengths.cut) == (16, 4)


def test_an_end_token_typed_in_a_question_is_plain_text(clip_folder):
    processor = family(clip_folder).processor(None)
    ids = processor.token_ids(Example("0", "x", "Is <|endoftext|> the end?", SUBJECTS[:4]))[0]
    assert ids.count(processor.texts.eos_id) == 1


def test_building_a_model_prints_nothing(clip_folder, tmp_path, capfd):
    """transformers 5 would draw a progress bar for each model that is read or written, however small."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    family(clip_folder).build(Precision("fp32", torch.device("cpu")))
    write_tiny_clip(tmp_path, ["a cat", "a dog"], CLIP)
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled() == shown


def test_a_pickled_processor_gives_the_same_pixels_and_tokens(scpc, clip_folder):
    processor, example = family(clip_folder).processor(None), examples(scpc)[0]
    here, there = processor(example), pickle.loads(pickle.dumps(processor))(example)
    assert here["texts"] == there["texts"]
    assert torch.equal(here["image"], there["image"])


def test_upstreams_token_ids_are_refused(clip_folder):
    processor = family(clip_folder).processor(None)
    with pytest.raises(InputError, match="CLIP needs the text:\n  row 7"):
        processor.measure([Example("7", "x", "", token_ids=(5, 6))], 64010)


def test_open_ended_data_are_refused(clip_folder):
    with pytest.raises(InputError, match="open-ended"):
        family(clip_folder, TaskShape("vqacustom", 13, False))


def test_auto_precision_means_fp16_on_a_gpu():
    assert CLIPFamily.auto_precision == {"cuda": "fp16"}


def test_clip_names_are_parsed_and_impossible_resolutions_refused():
    parsed = parse_clip_name("clip_vit_large_patch14_336_lora")
    assert (parsed.size, parsed.patch_size, parsed.img_size, parsed.lora) == ("large", 14, 336, True)
    assert all(parse_clip_name(name).img_size in (224, 336) for name in LISTED_CLIP)
    with pytest.raises(InputError, match="multiple of the patch"):
        parse_clip_name("clip_vit_base_patch16_225")


@pytest.mark.slow
def test_without_transformers_clip_says_what_to_install_and_beit3_trains(scpc, clip_folder, tmp_path):
    """And BEiT-3 asks for neither package."""
    code = (
        "import sys; sys.modules['transformers'] = sys.modules['peft'] = None\n"
        "from beit3_vqa.cli.main import main\n"
        "from tests.helpers.commands import finetune, finetune_clip\nfrom pathlib import Path\n"
        f"scpc, clip, out = Path({str(scpc)!r}), Path({str(clip_folder)!r}), Path({str(tmp_path)!r})\n"
        "assert main(finetune(scpc, out / 'beit3', '--epochs', '1')) == 0\n"
        "sys.exit(main(finetune_clip(scpc, clip, out / 'clip')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert 'pip install "beit3_vqa[clip]"' in result.stderr
    assert result.stderr.count("error:") == 1
