import subprocess
import sys

import pytest
import torch

from beit3_vqa.errors import InputError
from beit3_vqa.models.beit3.model import init_unit_scale
from beit3_vqa.models.names import build_model, listed_names, parse_name


def in_a_fresh_process(code):
    subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", code], check=True)


def test_importing_the_package_changes_nothing_outside_it():
    in_a_fresh_process("""
import sys
before = list(sys.meta_path), list(sys.path_hooks), {name for name in sys.modules if name[:5] in ("torch", "timm")}
import beit3_vqa
assert (list(sys.meta_path), list(sys.path_hooks)) == before[:2]
assert not {"torch", "timm"} & set(sys.modules)
import warnings
warnings.simplefilter("ignore")  # of timm's own import
import timm
from beit3_vqa.models.names import HEADS, listed_names
ours = {name for head in HEADS for name in listed_names(head)}
assert not ours & set(timm.list_models()) and not any(map(timm.models.is_model, ours))
""")


@pytest.mark.parametrize("timm_before", [True, False])
@pytest.mark.slow
def test_timm_builds_our_models_after_register_with_timm(timm_before):
    in_a_fresh_process(f"""
import beit3_vqa, warnings
if {timm_before}:
    warnings.simplefilter("ignore")  # of timm's own import
    import timm
    theirs = {{name: timm.models.model_entrypoint(name) for name in timm.list_models()}}
beit3_vqa.register_with_timm()
import timm
known = timm.list_models()
if {timm_before}:  # newer versions have names of their own that begin with beit3_
    assert all(timm.models.model_entrypoint(name) is build for name, build in theirs.items())
model = timm.create_model("beit3_base_patch16_480_vqacustom", num_classes=4, vocab_size=64010, drop_path_rate=0.0,
                          embed_dim=32, depth=2, num_heads=2, img_size=64)
assert model.beit3.encoder.embed_positions.A.weight.shape == (19, 32)
assert model.beit3.text_embed.weight.shape == (64010, 32)
assert "beit3_large_patch16_768_vqav2" in timm.list_models("beit3*")
beit3_vqa.register_with_timm()  # again does no harm
assert timm.list_models() == known and len(set(known)) == len(known)
""")


@pytest.mark.parametrize(
    "module",
    [
        "models.beit3.model",
        pytest.param("models.beit3.multiway", marks=pytest.mark.slow),
        pytest.param("data.imagenet_augment", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_timms_import_prints_no_warning(module):
    in_a_fresh_process(f"import beit3_vqa.{module}")


@pytest.mark.slow
def test_of_torchscale_only_its_modules_are_needed():
    """Not its metadata, nor fairscale's: in environments with newer packages they say that nothing fits together."""
    in_a_fresh_process("""
from importlib import metadata
found = metadata.distribution
def distribution(name):
    if name in ("torchscale", "fairscale"):
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.distribution = distribution
import beit3_vqa.cli.main, beit3_vqa.engine.api
from beit3_vqa.engine.checkpoint.manifest import _version
from beit3_vqa.models.names import build_model
build_model("beit3_tiny_patch8_32_vqacustom", vocab_size=300)
assert _version("torchscale") is None and _version("timm")
""")


@pytest.mark.slow
def test_pretrained_weights_through_timm_are_refused():
    in_a_fresh_process("""
import beit3_vqa
beit3_vqa.register_with_timm()
import timm
try:
    timm.create_model("beit3_base_patch16_480_vqacustom", pretrained=True)
except beit3_vqa.InputError as error:
    assert "--finetune FILE" in str(error)
else:
    raise AssertionError
""")


def test_full_name_equals_name_and_task():
    assert parse_name("beit3_large_patch16_480", head="vqacustom") == parse_name("beit3_large_patch16_480_vqacustom")
    assert str(parse_name("beit3_large_patch16_480", head="vqacustom")) == "beit3_large_patch16_480_vqacustom"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("beit_base_patch16_224", "beit3_base_patch16_224"),
        ("beit3_huge_patch16_224", "tiny, base, large"),
        ("beit3_base_patch16_230", "multiple of the patch"),
        ("beit3_base_patch16_224_vqacustm", "vqacustom"),
        ("beit3_base_patch0_0", "multiple of the patch"),
    ],
)
def test_the_error_for_a_wrong_name_says_what_is_right(name, says):
    with pytest.raises(InputError, match=says):
        parse_name(name, head="vqacustom")


def test_any_resolution_that_the_patch_divides_is_built():
    with torch.device("meta"):
        model = build_model("beit3_base_patch16_592_vqacustom", vocab_size=100)
    assert model.beit3.vision_embed.num_patches == 37 * 37
    assert "beit3_base_patch16_480" in listed_names()


def test_fresh_weights_have_upstreams_scale_and_unit_scale_if_asked_for():
    model = build_model("beit3_tiny_patch8_32_vqacustom", vocab_size=300)
    positions = model.beit3.encoder.embed_positions
    assert positions.B.weight.std().item() == pytest.approx(1.0, rel=0.1)  # torchscale's own
    assert model.beit3.text_embed.weight.std().item() == pytest.approx(128**-0.5, rel=0.1)
    assert model.head[0].weight.abs().max().item() <= 0.02
    init_unit_scale(model)
    for table in (model.beit3.text_embed, positions.A, positions.B):
        assert table.weight.std().item() == pytest.approx(1.0, rel=0.1)
    with torch.no_grad():
        features = model.beit3.encode(torch.randn(4, 3, 32, 32), torch.randint(4, 300, (4, 9)))
    assert 0.5 < features.std().item() < 4
