"""Captioning: upstream's logits, loss and captions; decoding with and without memory; beam search by brute force."""

import itertools
import math

import pytest
import torch

from beit3_vqa.models.beit3.beam_search import beam_search
from beit3_vqa.models.beit3.captioning import caption_mask
from tests.helpers.upstream import CAPTIONING, CONFIG, UPSTREAM, captioner, fill, golden_inputs, masked_positions


def test_captioning_parameters_have_upstreams_names_and_shapes():
    model = captioner()
    assert sum(p.numel() for p in model.parameters()) == UPSTREAM["params"]["captioning"]
    new = {n: list(v.shape) for n, v in model.state_dict().items() if n not in UPSTREAM["state_dict_keys_vqa"]}
    dim = CONFIG["dim"]
    norm = {f"beit3.encoder.layer_norm.{side}.{kind}": [dim] for side in "AB" for kind in ("weight", "bias")}
    assert new == {**norm, "mlm_head.weight": [CONFIG["vocab_size"], dim], "mlm_head.bias": [CONFIG["vocab_size"]]}


@pytest.mark.parametrize("attention", ["auto", "matmul", "reference"])
def test_masked_logits_equal_upstreams(attention):
    model = fill.fill(captioner(attention=attention)).eval()
    with torch.no_grad():
        logits = model(*golden_inputs(), language_masked_pos=masked_positions())
    assert logits.shape == (len(CAPTIONING["masked_pos"]), CONFIG["vocab_size"])
    torch.testing.assert_close(logits[:, :8], torch.tensor(CAPTIONING["logits_first8"]), atol=1e-5, rtol=1e-5)


def test_masked_logits_and_gradients_equal_torchscales():
    image, text, padding_mask = golden_inputs()
    found = []
    for attention in ("reference", "auto"):
        torch.manual_seed(0)
        model = captioner(attention=attention, drop_path_rate=0.3).train()
        torch.manual_seed(1)
        logits = model(image, text, padding_mask, language_masked_pos=masked_positions())
        logits.square().sum().backward()
        found.append((logits, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (expected, gradients), (logits, ours) = found
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (ours[name] - gradient).abs().max() <= 1e-5 * largest, name


def test_places_of_masked_words_say_what_a_mask_says():
    found = []
    for name, masked in (
        ("language_masked_pos", masked_positions()),
        ("masked_places", masked_positions().flatten().nonzero().squeeze(1)),
    ):
        model = fill.fill(captioner())
        logits = model(*golden_inputs(), **{name: masked})
        logits.square().sum().backward()
        found.append([logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0][0]) == len(CAPTIONING["masked_pos"])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_a_word_sees_the_image_and_the_words_up_to_itself():
    model = fill.fill(captioner()).eval()
    image, text, _ = golden_inputs()
    other = text.clone()
    other[:, 6:] = 20
    with torch.no_grad():
        logits, changed = model(image, text), model(image, other)
        blank = model(torch.zeros_like(image), text)
    torch.testing.assert_close(changed[:, :6], logits[:, :6], atol=1e-6, rtol=1e-6)
    assert (changed[:, 6] - logits[:, 6]).abs().max() > 1e-2
    assert (blank[:, 0] - logits[:, 0]).abs().max() > 1e-2
    assert caption_mask(2, 3).int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]


@torch.no_grad()
def test_incremental_state_gives_the_logits_of_the_whole_text():
    """Word by word through `incremental_state`, as upstream's own decoding loop calls the model."""
    model = fill.fill(captioner()).eval()
    image, text, _ = golden_inputs()
    mask = CAPTIONING["beam_search"]["mask_id"]
    state: dict = {}
    for length in range(1, 8):
        whole = torch.cat([text[:, :length], torch.full((3, 1), mask)], dim=1)
        expected = model(image, whole)[:, -1]
        first = length == 1
        logits, state = model(image if first else None, whole[:, -2:], text_len=length + 1, incremental_state=state)
        torch.testing.assert_close(logits[:, -1], expected, atol=1e-5, rtol=1e-5)
        for layer in state.values():
            for name in layer:
                layer[name] = layer[name][:, :, :-1]


def generate(model, image, beams=3, max_len=8, penalty=0.6):
    ids = {"start_id": 0, "mask_id": CAPTIONING["beam_search"]["mask_id"], "end_id": 2}
    return model.generate(image, **ids, num_beams=beams, max_len=max_len, length_penalty=penalty)


def test_beam_search_writes_upstreams_captions():
    given = CAPTIONING["beam_search"]
    model = fill.fill(captioner()).eval()
    found = generate(model, golden_inputs()[0], given["num_beams"], given["max_len"], given["length_penalty"])
    assert [" ".join(map(str, c.ids)) for c in found] == [row["caption"] for row in given["decoded_ids"]]


class WholeTexts:
    """A decoder that keeps nothing: every step is a forward pass over image and all words."""

    def __init__(self, model, image, mask_id):
        self.model, self.image, self.mask_id = model, image, mask_id
        self.texts = torch.zeros(len(image), 1, 1, dtype=torch.long)

    def scores(self):
        n, k, _ = self.texts.shape
        text = torch.cat([self.texts, torch.full((n, k, 1), self.mask_id)], dim=2).flatten(0, 1)
        return self.model(self.image.repeat_interleave(k, 0), text)[:, -1].log_softmax(-1).unflatten(0, (n, k))

    start = scores

    def extend(self, parents, words):
        n, length = len(parents), self.texts.size(2)
        old = self.texts.gather(1, parents[..., None].expand(n, -1, length))
        self.texts = torch.cat([old, words[..., None]], dim=2)
        return self.scores()

    def keep(self, images):
        self.texts, self.image = self.texts[images], self.image[images]


@torch.no_grad()
@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("beams", [1, 4])
def test_captions_with_kept_keys_equal_those_of_whole_forward_passes(beams, penalty):
    torch.manual_seed(0)
    image = torch.randn(6, 3, 64, 64)
    model = fill.fill(captioner()).eval()
    model.mlm_head.bias[2] = 1.5  # some captions end early, others late
    mask = CAPTIONING["beam_search"]["mask_id"]
    whole = beam_search(WholeTexts(model, image, mask), beams, 2, 9, penalty)
    ours = generate(model, image, beams, 12, penalty)
    assert [c.ids for c in ours] == [c.ids for c in whole]
    assert [c.score for c in ours] == pytest.approx([c.score for c in whole], abs=1e-5)
    alone = [generate(model, one[None], beams, 12, penalty)[0] for one in image]
    assert [c.ids for c in alone] == [c.ids for c in ours]


def test_log_probabilities_with_kept_keys_equal_those_of_whole_forward_passes():
    model = fill.fill(captioner()).eval()
    from beit3_vqa.models.beit3.captioning import CaptionDecoder

    image, mask = golden_inputs()[0], CAPTIONING["beam_search"]["mask_id"]
    with torch.no_grad():
        one, two = CaptionDecoder(model, image, 0, mask), WholeTexts(model, image, mask)
        torch.testing.assert_close(one.start(), two.start(), atol=1e-5, rtol=1e-5)
        generator = torch.Generator().manual_seed(0)
        beams = 1
        for _ in range(6):
            parents = torch.randint(0, beams, (3, 4), generator=generator)
            words = torch.randint(4, 120, (3, 4), generator=generator)
            torch.testing.assert_close(one.extend(parents, words), two.extend(parents, words), atol=1e-5, rtol=1e-5)
            beams = 4


class Table:
    """Log-probabilities that are a function of the words so far, for a vocabulary of a few words."""

    def __init__(self, images, vocabulary, seed):
        self.numbers = {}
        self.generator = torch.Generator().manual_seed(seed)
        self.vocabulary = vocabulary
        self.images = list(range(images))
        self.texts = [[()] for _ in self.images]
        self.asked = 0

    def row(self, image, text):
        key = (image, text)
        if key not in self.numbers:
            self.numbers[key] = (2 * torch.randn(self.vocabulary, generator=self.generator)).log_softmax(0)
        return self.numbers[key]

    def fill(self, length):
        for image in self.images:
            for size in range(length + 1):
                for text in itertools.product(range(self.vocabulary), repeat=size):
                    self.row(image, text)

    def start(self):
        self.asked += len(self.images)
        rows = [[self.row(i, t) for t in texts] for i, texts in zip(self.images, self.texts, strict=True)]
        return torch.stack([torch.stack(row) for row in rows])

    def extend(self, parents, words):
        self.texts = [
            [texts[p] + (w,) for p, w in zip(ps, ws, strict=True)]
            for texts, ps, ws in zip(self.texts, parents.tolist(), words.tolist(), strict=True)
        ]
        return self.start()

    def keep(self, images):
        self.images = [self.images[i] for i in images.tolist()]
        self.texts = [self.texts[i] for i in images.tolist()]


END = 1


def best_of_all(table, image, longest, penalty):
    """Every caption there is, scored one by one."""
    best = (-math.inf, ())
    for length in range(longest + 1):
        for text in itertools.product([w for w in range(table.vocabulary) if w != END], repeat=length):
            total = sum(float(table.row(image, text[:n])[w]) for n, w in enumerate(text))
            last = table.row(image, text)
            total += float(last.max() if length == longest else last[END])
            best = max(best, (total / (length + 2) ** penalty, text))
    return best


@pytest.mark.parametrize("vocabulary", [2, 3, 4])
@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_the_best_caption_of_all(vocabulary, penalty, seed):
    longest, images = 4, 5
    table = Table(images, vocabulary, seed)
    table.fill(longest)
    expected = [best_of_all(table, image, longest, penalty) for image in range(images)]
    found = beam_search(table, vocabulary**longest, END, longest, penalty)
    assert [c.ids for c in found] == [text for _, text in expected]
    assert [c.score for c in found] == pytest.approx([score for score, _ in expected], abs=1e-5)


def test_finished_images_leave_the_batch():
    table = Table(8, 6, seed=1)
    found = beam_search(table, 2, END, 12, 0.0)
    assert len(found) == 8
    assert all(math.isfinite(c.score) for c in found)
    assert len(table.images) < 8
    assert table.asked < 8 * 13


def test_one_beam_decodes_greedily():
    table = Table(4, 5, seed=2)
    for caption, image in zip(beam_search(table, 1, END, 6, 0.0), range(4), strict=True):
        text, total, best = (), 0.0, -math.inf
        for _ in range(7):
            row = table.row(image, text)
            if len(text) == 6:
                best = max(best, total + float(row.max()))
                break
            order = row.argsort(descending=True).tolist()
            if order[0] == END:  # an end behind the beam's own word doesn't count
                best = max(best, total + float(row[END]))
            word = next(w for w in order if w != END)
            text, total = text + (word,), total + float(row[word])
        assert caption.score == pytest.approx(best, abs=1e-5)


@torch.no_grad()
def test_bf16_captions_have_the_lengths_and_scores_of_fp32():
    model = fill.fill(captioner()).eval()
    image = golden_inputs()[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = generate(model, image)
    assert [len(c.ids) for c in found] == [len(c.ids) for c in generate(model, image)]
    assert [c.score for c in found] == pytest.approx([c.score for c in generate(model, image)], abs=0.05)
