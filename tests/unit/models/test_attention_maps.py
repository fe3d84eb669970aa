"""Where the model looked, against the weights that torchscale and transformers give out themselves."""

import pytest
import torch
from PIL import Image

from beit3_vqa.data.images import image_size
from beit3_vqa.models.beit3.family import BEiT3Family
from beit3_vqa.models.clip.processor import CLIPTransform
from beit3_vqa.runtime.precision import Precision
from tests.helpers.options import build_config
from tests.helpers.tiny_clip import FOUR, examples, family, randomise_adapters


def beit3(scpc, **options):
    """A family, its processor, and a model of random weights."""
    given = {"model": "beit3_tiny_patch8_32", "vocab_size": 300, "data_path": str(scpc / "data"), **options}
    made = BEiT3Family(build_config(given), FOUR)
    torch.manual_seed(0)
    return made, made.processor(None), made.build(Precision("fp32", torch.device("cpu"))).eval()


def collated(processor, shown):
    return processor.collate([processor(example) for example in shown]), [image_size(e.image_path) for e in shown]


@pytest.mark.parametrize("last_layers", [1, 3])
def test_beit3_maps_equal_torchscales_attention_weights(scpc, last_layers):
    ours, processor, model = beit3(scpc)
    _, _, theirs = beit3(scpc, attention="reference")
    given = []
    for layer in theirs.beit3.encoder.layers:
        # torchscale hands out (H, B, L, L).
        layer.self_attn.register_forward_hook(lambda module, inputs, outputs: given.append(outputs[1]))
    shown = examples(scpc)
    inputs, sizes = collated(processor, shown)
    with torch.no_grad():
        logits, maps = ours.attention(model, processor, inputs, sizes, last_layers)
        torch.testing.assert_close(logits, model(**inputs), atol=0, rtol=0)
        torch.testing.assert_close(logits, theirs(**inputs), atol=1e-5, rtol=1e-5)
    expected = torch.stack(given[-last_layers:]).mean(dim=(0, 1))[:, 0]  # (B, L), of [CLS]
    for row, (found, example) in enumerate(zip(maps, shown, strict=True)):
        torch.testing.assert_close(found.patches.flatten(), expected[row, 1:17], atol=1e-5, rtol=1e-4)
        assert found.patches.shape == (4, 4)
        assert found.region == (0, 0, 1, 1)
        (tokens,) = found.texts
        assert "".join(token for token, _ in tokens).strip() == processor.text(example).replace("R", "⁇")
        of_tokens = expected[row, 18 : 18 + len(tokens)]  # [CLS], 16 patches and <s> come before
        torch.testing.assert_close(torch.tensor([share for _, share in tokens]), of_tokens, atol=1e-5, rtol=1e-4)
    assert len({len(found.texts[0]) for found in maps}) > 1  # padding was among the keys


def test_no_hook_stays_on_the_model(scpc):
    ours, processor, model = beit3(scpc)
    with torch.no_grad():
        ours.attention(model, processor, *collated(processor, examples(scpc)[:2]))
    assert not any(module._forward_hooks for module in model.modules())


def test_beit3_maps_change_with_the_adapters(scpc):
    """A query goes through its adapter, so the map must change with it."""
    ours, processor, model = beit3(scpc, lora_rank=4, finetune="x")
    with torch.no_grad():
        _, before = ours.attention(model, processor, *collated(processor, examples(scpc)[:2]))
        randomise_adapters(model)
        _, after = ours.attention(model, processor, *collated(processor, examples(scpc)[:2]))
    assert not torch.allclose(before[0].patches, after[0].patches, atol=1e-4)


def test_clip_maps_equal_transformers_attention_weights(scpc, clip_folder):
    ours = family(clip_folder)
    processor = ours.processor(None)
    model = ours.build(Precision("fp32", torch.device("cpu"))).eval()
    randomise_adapters(model)
    shown = examples(scpc)
    inputs, sizes = collated(processor, shown)
    with torch.no_grad():
        logits, maps = ours.attention(model, processor, inputs, sizes, last_layers=2)
        torch.testing.assert_close(logits, model(**inputs), atol=0, rtol=0)
        model.clip.config._attn_implementation = "eager"
        for part in (model.clip.vision_model, model.clip.text_model):
            part.config._attn_implementation = "eager"
        pixels = (inputs["image"].float() - model.mean) / model.std
        images = model.clip.vision_model(pixels, output_attentions=True).attentions
        texts = model.clip.text_model(inputs["text"], output_attentions=True).attentions
    images, texts = (torch.stack(each).mean(dim=(0, 2)) for each in (images, texts))
    for row, found in enumerate(maps):
        expected = images[inputs["image_of"][row], 0, 1:]
        torch.testing.assert_close(found.patches.flatten(), expected, atol=1e-5, rtol=1e-4)
        assert len(found.texts) == 4
        for words, place in zip(found.texts, inputs["text_of"][row].tolist(), strict=True):
            ids = inputs["text"][place].tolist()
            end = ids.index(processor.texts.eos_id)
            assert sum(share for _, share in words) == pytest.approx(texts[place, end, 1:end].sum().item(), abs=1e-5)
            assert max(share for _, share in words) <= texts[place, end, :end].max().item() * len(words)
        said = "".join(word for word, _ in found.texts[0]).split()
        wanted = processor.template(shown[row].question, shown[row].choices[0]).lower()
        assert "".join(said) == wanted.replace(" ", "")


@pytest.mark.parametrize("width_height", [(100, 50), (50, 100), (64, 64), (37, 91)])
def test_clip_region_is_the_square_that_it_crops(width_height):
    """A mark on the region's corners is what the square's corners show."""
    transform = CLIPTransform(32, 32)
    left, top, right, bottom = transform.region(*width_height)
    width, height = width_height
    image = Image.new("L", width_height, 0)
    image.paste(255, (round(left * width), round(top * height), round(right * width), round(bottom * height)))
    inside = transform(image.convert("RGB")).float().mean().item()
    assert inside > 245
    assert (right - left) * width == pytest.approx((bottom - top) * height, rel=0.05)
    assert CLIPTransform(32, None).region(*width_height) == (0, 0, 1, 1)
