import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from beit3_vqa.config.options import DEFAULT_PROMPT_TEMPLATE
from beit3_vqa.data.prompt import PromptTemplate
from beit3_vqa.data.tokenizer import Tokenizer, train_tokenizer
from beit3_vqa.data.transforms import EvalTransform, TrainTransform
from beit3_vqa.data.types import Example, Inputs
from beit3_vqa.errors import InputError
from beit3_vqa.models.beit3.processor import BEiT3Processor

CORPUS = [
    "What is on the table?",
    "Choices: A. a red cup B. two dogs C. nothing D. a cat",
    "How many people are there on the left?",
]


@pytest.fixture(scope="module")
def spm(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("spm") / "tokenizer.spm"
    train_tokenizer(CORPUS, 120, path)
    return path


def processor(spm, max_tokens=64, train=None, **more) -> BEiT3Processor:
    return BEiT3Processor(
        Tokenizer(spm),
        max_tokens,
        PromptTemplate(DEFAULT_PROMPT_TEMPLATE),
        EvalTransform(32),
        train or TrainTransform(32),
        **more,
    )


def example(question="What is on the table?", choices=("a red cup", "two dogs", "nothing", "a cat"), **more) -> Example:
    return Example(id="7", image_path="x.jpg", question=question, choices=choices, **more)


def test_prompt_is_the_published_one(spm):
    text = processor(spm).text(example())
    assert text == "What is on the table? Choices: A. a red cup B. two dogs C. nothing D. a cat"
    assert processor(spm).text(example(choices=())) == "What is on the table?"


def test_braces_in_the_data_are_text(spm):
    text = processor(spm).text(example(question="{a} {question} {0}", choices=("{b}", "}", "{", "x")))
    assert text == "{a} {question} {0} Choices: A. {b} B. } C. { D. x"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{question} {a} {b} {c}", "missing: {d}"),
        ("{question} {a} {b} {c} {d} {e}", "unknown: {e}"),
        ("{question} {a} {b} {c} {d} {", "brace"),
        ("{question!r} {a} {b} {c} {d}", "without a format"),
        ("{question.x} {a} {b} {c} {d}", r"unknown: {question\.x}"),
        ("", "missing"),
    ],
)
def test_wrong_templates_are_refused(template, says):
    with pytest.raises(InputError, match=says):
        PromptTemplate(template, 4)


def test_ids_begin_and_end_with_special_tokens(spm):
    made = processor(spm)
    assert made.token_ids(example()) == [0, *made.tokenizer.encode(made.text(example())), 2]


@settings(max_examples=60, deadline=None)
@given(question=st.text(max_size=80), room=st.integers(34, 64))
def test_long_texts_are_cut_in_the_question_never_in_the_options(spm, question, room):
    made = processor(spm, max_tokens=room)
    long = example(question=question + " What is on the table?" * 10)
    ids = made.token_ids(long)
    assert len(ids) <= room
    options = made.tokenizer.encode("Choices: A. a red cup B. two dogs C. nothing D. a cat")
    assert ids[-1 - len(options) : -1] == options


def test_a_cut_question_keeps_as_much_as_fits(spm):
    made = processor(spm, max_tokens=40)
    long = example(question="What is on the table? " * 9)
    assert 36 <= len(made.token_ids(long)) <= 40
    lengths = made.measure([long, example()], 300)
    assert lengths.cut == 1
    assert lengths.longest == 40


def test_options_that_do_not_fit_are_an_error_that_names_the_rows(spm):
    made = processor(spm, max_tokens=12)
    with pytest.raises(InputError, match=r"row 7: its options alone take \d+ tokens"):
        made.measure([example()], 300)


def test_token_ids_of_upstreams_index_are_taken_and_cut(spm):
    made = processor(spm, max_tokens=6)
    row = example(question="", choices=(), token_ids=(9, 8, 7, 6, 5))
    assert made.token_ids(row) == [0, 9, 8, 7, 6, 2]
    assert made.measure([row], 300).cut == 1


def test_a_batch_has_stacked_images_and_padded_texts(spm, tmp_path):
    Image.new("RGB", (40, 20), "red").save(tmp_path / "x.png")
    made = processor(spm)
    examples = [Example("0", str(tmp_path / "x.png"), q) for q in ("What is on the table?", "How many")]
    batch = made.collate([made(e) for e in examples])
    assert batch["image"].shape == (2, 3, 32, 32)
    assert batch["image"].dtype == torch.uint8
    assert batch["question"].shape == batch["padding_mask"].shape
    assert batch["padding_mask"].sum(1).tolist()[0] == 0
    assert (batch["question"][1][batch["padding_mask"][1] == 1] == 1).all()


@pytest.mark.parametrize("length_step", [1, 8])
def test_an_image_of_several_questions_comes_once_unless_the_model_is_compiled(spm, tmp_path, length_step):
    for name in ("red", "blue"):
        Image.new("RGB", (40, 20), name).save(tmp_path / f"{name}.png")
    made = processor(spm, inputs=Inputs(shared=True), length_step=length_step)
    grey = Example("3", "", "Is it grey?", problem="no image")
    rows = [Example(str(n), str(tmp_path / f"{name}.png"), f"{n}?") for n, name in enumerate(["blue", "red", "red"])]
    items = [made(row) for row in [*rows, grey, grey]]
    batch = made.collate(items)
    each = torch.stack([item["image"] for item in items])
    if length_step > 1:
        assert "image_of" not in batch
        assert torch.equal(batch["image"], each)
    else:
        assert batch["image_of"].tolist() == [0, 1, 1, 2, 2]
        assert torch.equal(batch["image"][batch["image_of"]], each)
    assert "image_of" not in made.collate(items[:2])


def test_augmented_views_of_an_image_are_images_of_their_own(spm, tmp_path):
    Image.effect_noise((40, 20), 90).convert("RGB").save(tmp_path / "x.png")
    made = processor(spm, train=TrainTransform(32), inputs=Inputs(shared=True))
    row = Example("0", str(tmp_path / "x.png"), "What is it?")
    batch = made.collate([made(row, random.Random(seed)) for seed in range(3)])
    assert batch["image"].shape == (3, 3, 32, 32)
    assert "image_of" not in batch


def test_images_are_not_flipped_if_the_question_speaks_of_sides(spm, tmp_path):
    left_red = Image.new("RGB", (32, 32), "blue")
    left_red.paste("red", (0, 0, 16, 32))
    left_red.save(tmp_path / "x.png")
    made = processor(spm, train=TrainTransform(32, scale=(1, 1), flip=1.0))
    plain = made(Example("0", str(tmp_path / "x.png"), "What is it?"), random.Random(0))["image"]
    assert plain[0, :, 0].float().mean() < 5  # red went to the right
    ids = tuple(made.tokenizer.encode("What is on the left?"))  # as in upstream's index
    other_words = {"question": "Quoi?", "wordings": ("What is on the left?",)}
    answered = {"question": "Where is red?", "answer": "wall", "answers": ("wall", "left side")}  # of ten annotators
    for about_sides in ({"question": "On the left?"}, other_words, {"question": "", "token_ids": ids}, answered):
        sides = made(Example("0", str(tmp_path / "x.png"), **about_sides), random.Random(0))["image"]
        assert sides[0, :, 0].float().mean() > 250
