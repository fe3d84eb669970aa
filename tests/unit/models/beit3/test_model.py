"""Our forward pass against upstream's numbers and against torchscale's own forward pass."""

import pytest
import torch

from beit3_vqa.models.names import build_model, count_parameters
from beit3_vqa.runtime.libraries import BEiT3
from tests.helpers.upstream import CONFIG, SIZES, UPSTREAM, fill, golden_inputs, ragged_batch, small_model


def test_vqa_state_dict_equals_upstreams():
    state = small_model().state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == UPSTREAM["state_dict_keys_vqa"]
    assert list(state) == list(UPSTREAM["state_dict_keys_vqa"])
    assert sum(value.numel() for value in state.values()) == UPSTREAM["params"]["vqa"]


def test_vqa_logits_and_losses_equal_upstreams():
    model = fill.fill(small_model(drop_path_rate=0.1)).eval()
    case = UPSTREAM["cases"]["vqa"]
    with torch.no_grad():
        logits = model(*golden_inputs())
    torch.testing.assert_close(logits, torch.tensor(case["logits"]), atol=1e-5, rtol=1e-5)
    labels = torch.tensor(case["labels"])
    one_hot = torch.nn.functional.one_hot(labels, 4).float()
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, one_hot) * 4
    assert bce.item() == pytest.approx(case["bce_loss"], abs=1e-5)
    assert torch.nn.functional.cross_entropy(logits, labels).item() == pytest.approx(case["ce_loss"], abs=1e-5)


@pytest.mark.parametrize("attention", ["auto", "matmul", "reference"])
@pytest.mark.parametrize("depth", [1, 2])
def test_an_image_of_several_questions_gives_the_logits_and_gradients_of_one_for_each(attention, depth):
    torch.manual_seed(0)
    model = small_model(attention=attention, depth=depth, drop_path_rate=0.5)
    image, text, padding_mask = ragged_batch()
    image_of = torch.tensor([1, 0, 1, 1])
    results = []
    for images, shared in ((image[:2], {"image_of": image_of}), (image[image_of], {})):
        torch.manual_seed(1)  # of drop path
        loss = torch.nn.functional.cross_entropy(model(images, text, padding_mask, **shared), torch.arange(4))
        results.append((loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)))
    for one, other in zip(*results, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_what_depends_on_an_image_alone_is_computed_once_for_its_questions():
    model = small_model(drop_path_rate=0.0).eval()
    image, text, padding_mask = ragged_batch()
    rows = {}
    attention = model.beit3.encoder.layers[0].self_attn
    modules = {"patches": model.beit3.vision_embed, "queries": attention.q_proj.A, "texts": attention.q_proj.B}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, inputs, output, name=name: rows.update({name: len(output)}))
    model(image[:2], text, padding_mask, image_of=torch.tensor([1, 0, 1, 1]))
    assert rows == {"patches": 2, "queries": 2, "texts": 4}


HEADS_NAMES = {
    "nlvr2": {
        "beit3.encoder.layer_norm.A.weight": [48],
        "beit3.encoder.layer_norm.A.bias": [48],
        "beit3.encoder.layer_norm.B.weight": [48],
        "beit3.encoder.layer_norm.B.bias": [48],
        "head.norm1.weight": [192],
        "head.norm1.bias": [192],
        "head.dense1.weight": [96, 192],
        "head.dense1.bias": [96],
        "head.norm2.weight": [96],
        "head.norm2.bias": [96],
        "head.dense2.weight": [2, 96],
        "head.dense2.bias": [2],
    },
    "imageclassification": {
        "fc_norm.weight": [48],
        "fc_norm.bias": [48],
        "head.weight": [10, 48],
        "head.bias": [10],
    },
}


def other_model(head, **overrides):
    classes = {"nlvr2": 2, "imageclassification": 10}[head]
    return build_model(f"beit3_base_patch16_64_{head}", **{**SIZES, "num_classes": classes, **overrides})


@pytest.mark.parametrize(("head", "case"), [("nlvr2", "nlvr2"), ("imageclassification", "imagenet")])
def test_state_dicts_of_other_heads_equal_upstreams(head, case):
    """The backbone's keys are those of the VQA model; the head's are in upstream's order, and as many numbers."""
    state = other_model(head).state_dict()
    backbone = {name: shape for name, shape in UPSTREAM["state_dict_keys_vqa"].items() if name.startswith("beit3.")}
    assert {name: list(value.shape) for name, value in state.items()} == {**backbone, **HEADS_NAMES[head]}
    assert list(state) == [*backbone, *HEADS_NAMES[head]]
    assert sum(value.numel() for value in state.values()) == UPSTREAM["params"][case]


@pytest.mark.parametrize("attention", ["auto", "reference"])
def test_nlvr2_logits_equal_upstreams(attention):
    model = fill.fill(other_model("nlvr2", attention=attention)).eval()
    image, text, padding_mask = golden_inputs()
    second = torch.from_numpy(fill.draw("image2", (3, 3, 64, 64))).clamp(-3, 3)
    with torch.no_grad():
        logits = model(image_a=image, image_b=second, text_description=text, padding_mask=padding_mask)
    torch.testing.assert_close(logits, torch.tensor(UPSTREAM["cases"]["nlvr2"]["logits"]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["auto", "reference"])
def test_imagenet_logits_equal_upstreams(attention):
    model = fill.fill(other_model("imageclassification", attention=attention)).eval()
    with torch.no_grad():
        logits = model(image=golden_inputs()[0])
    torch.testing.assert_close(logits, torch.tensor(UPSTREAM["cases"]["imagenet"]["logits"]), atol=1e-5, rtol=1e-5)


def test_first_of_each_gives_the_features_and_gradients_of_the_whole():
    torch.manual_seed(0)
    backbone = other_model("nlvr2").beit3.train()
    image, text, padding_mask = ragged_batch()
    both = backbone.encode(image, text, padding_mask)[:, [0, 17]]
    both.square().sum().backward()
    whole = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    backbone.zero_grad()
    only = backbone.encode(image, text, padding_mask, first_of_each=True)
    torch.testing.assert_close(only, both, atol=1e-6, rtol=1e-5)
    only.square().sum().backward()
    for name, p in backbone.named_parameters():
        assert (p.grad is None) == (name not in whole), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, whole[name], atol=1e-5, rtol=1e-4)


def test_imagenet_bytes_are_normalised_with_imagenets_statistics():
    from torchvision.transforms.functional import normalize

    model = fill.fill(other_model("imageclassification")).eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    floats = normalize(pixels / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), model(floats), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("beit3_base_patch16_480_vqacustom", 223_307_524), ("beit3_large_patch16_480_vqacustom", 676_582_404)],
)
def test_parameter_counts_are_the_published_ones(name, parameters):
    assert count_parameters(name, num_classes=4) == parameters


@pytest.mark.parametrize("given", ["both", "image", "text"])
@pytest.mark.parametrize("attention", ["auto", "matmul"])
@pytest.mark.parametrize("checkpoint_every", [0, 1, 2])
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.4])
@pytest.mark.parametrize("normalized", [False, True])
def test_features_and_gradients_equal_torchscales(given, attention, checkpoint_every, drop_path_rate, normalized):
    torch.manual_seed(0)
    model = small_model(drop_path_rate=drop_path_rate, attention=attention, checkpoint_every=checkpoint_every)
    backbone = model.beit3.train()
    if normalized:
        from torchscale.component.multiway_network import MultiwayNetwork

        backbone.encoder.layer_norm = MultiwayNetwork(torch.nn.LayerNorm(CONFIG["dim"]))
    image, text, padding_mask = ragged_batch()
    image = None if given == "text" else image
    text, padding_mask = (None, None) if given == "image" else (text, padding_mask)

    torch.manual_seed(1)
    expected = BEiT3.forward(backbone, textual_tokens=text, visual_tokens=image, text_padding_position=padding_mask)[
        "encoder_out"
    ]
    expected.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    backbone.zero_grad()

    torch.manual_seed(1)
    ours = backbone.encode(image, text, padding_mask)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    ours.square().sum().backward()
    # Relative to the largest gradient: a key's bias has none but rounding, since softmax ignores it.
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, p in backbone.named_parameters():
        wanted = gradients.get(name, torch.zeros_like(p))
        got = torch.zeros_like(p) if p.grad is None else p.grad
        assert (got - wanted).abs().max() <= 1e-5 * largest, name


def test_first_token_only_gives_the_first_token_and_its_gradients():
    torch.manual_seed(0)
    backbone = small_model().beit3.train()
    image, text, padding_mask = ragged_batch()
    backbone.encode(image, text, padding_mask)[:, 0].square().sum().backward()
    whole = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    first = backbone.encode(image, text, padding_mask)[:, 0]
    backbone.zero_grad()
    only = backbone.encode(image, text, padding_mask, first_token_only=True)
    torch.testing.assert_close(only, first, atol=1e-6, rtol=1e-5)
    only.square().sum().backward()
    for name, p in backbone.named_parameters():
        if p.grad is None:  # of the last layer's text half, on which nothing depends
            assert not whole.get(name, torch.zeros(1)).any(), name
        else:
            torch.testing.assert_close(p.grad, whole[name], atol=1e-5, rtol=1e-4)


def test_padding_changes_no_logit():
    model = fill.fill(small_model()).eval()
    image, text, padding_mask = golden_inputs()
    with torch.no_grad():
        together = model(image, text, padding_mask)
        alone = model(image[1:2], text[1:2, :7], padding_mask[1:2, :7])
        unmasked = model(image[1:2], text[1:2, :7])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, unmasked, atol=1e-6, rtol=1e-6)


def test_bytes_and_normalised_floats_give_the_same_logits():
    model = fill.fill(small_model()).eval()
    _, text, padding_mask = golden_inputs()
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        as_floats = model((pixels / 255 - 0.5) / 0.5, text, padding_mask)
        torch.testing.assert_close(model(pixels, text, padding_mask), as_floats, atol=1e-5, rtol=1e-5)
