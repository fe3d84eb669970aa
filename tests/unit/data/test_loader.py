"""Order and randomness depend on seed, epoch and draw alone."""

import gc
import random
import time
from array import array
from itertools import groupby
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.dataset import IndexDataset, build_question, get_balancing_weights, permute_choices
from beit3_vqa.data.loader import BatchLoader, EpochBatches, evaluation_order, noting_rows
from beit3_vqa.data.types import Example
from beit3_vqa.errors import InputError

LETTERS = AnswerTable(["A", "B", "C", "D"])


def fake_processor(example, rng):
    """Stands in for pixels: one random number per example."""
    if example.question == "bad":
        raise InputError("x.jpg: can't be read")
    return {"noise": torch.tensor(0.0 if rng is None else rng.random())}


def collate(items):
    return {"noise": torch.stack([item["noise"] for item in items])}


def lettered(row, place):
    return build_question(row, LETTERS)


def dataset(rows=23, *, training=True, seed=3, bad=()):
    made = [
        {
            "id": f"r{i}",
            "image_path": "x.jpg",
            "question": "bad" if i in bad else f"q{i}",
            "choices": [f"{i}-{letter}" for letter in "abcd"],
            "answer": "ABCD"[i % 4],
        }
        for i in range(rows)
    ]
    return IndexDataset(made, lettered, Path(), fake_processor, training=training, shuffle_choices=training, seed=seed)


def pass_over(epoch, *, workers=0, training=True, seed=3, batch_size=5):
    loader = BatchLoader(dataset(training=training, seed=seed), collate, batch_size, shuffle=training, seed=seed,
                         num_workers=workers)  # fmt: skip
    batches = list(loader.epoch(epoch))
    examples = [example for batch in batches for example in batch.examples]
    return examples, torch.cat([batch.inputs["noise"] for batch in batches])


def test_every_row_once_and_a_new_order_each_epoch():
    first, second = pass_over(0)[0], pass_over(1)[0]
    assert sorted(e.id for e in first) == sorted(e.id for e in second) == sorted(f"r{i}" for i in range(23))
    assert [e.id for e in first] != [e.id for e in second]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_no_batch(workers):
    ours, theirs = pass_over(2), pass_over(2, workers=workers)
    assert ours[0] == theirs[0]
    assert torch.equal(ours[1], theirs[1])


def test_an_epoch_depends_on_its_number_not_on_epochs_before():
    loader = BatchLoader(dataset(), collate, 5, shuffle=True, seed=3)
    for epoch in range(2):
        list(loader.epoch(epoch))
    after_two = [example for batch in loader.epoch(2) for example in batch.examples]
    assert after_two == pass_over(2)[0]


def test_another_seed_gives_another_order():
    assert [e.id for e in pass_over(0, seed=1)[0]] != [e.id for e in pass_over(0, seed=2)[0]]


def test_the_models_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    pass_over(0, workers=1)
    assert torch.equal(torch.get_rng_state(), expected)


def test_evaluation_keeps_order_and_options():
    examples, noise = pass_over(0, training=False, workers=2)
    assert [e.id for e in examples] == [f"r{i}" for i in range(23)]
    assert [e.choices[0] for e in examples] == [f"{i}-a" for i in range(23)]
    assert not noise.any()


def test_options_are_permuted_anew_and_the_answer_with_them():
    places = set()
    for epoch in range(12):
        for example in pass_over(epoch)[0]:
            number = int(example.id[1:])
            ((label, score),) = example.targets
            assert score == 1.0
            assert example.choices[label] == f"{number}-{'abcd'[number % 4]}"
            places.add((example.id, label))
    assert len(places) > 80  # of 92: nearly every answer was seen at every place


@given(st.integers(2, 8), st.integers(0, 99))
def test_permuting_keeps_the_answers_text(count, seed):
    choices = tuple(f"c{i}" for i in range(count))
    example = Example("0", "x", "q", choices, "B", ((1, 1.0),))
    permuted = permute_choices(example, random.Random(seed))
    assert sorted(permuted.choices) == sorted(choices)
    assert permuted.choices[permuted.targets[0][0]] == "c1"
    assert permuted.answer == "ABCDEFGH"[permuted.targets[0][0]]


@pytest.mark.parametrize(
    ("choices", "moving"),
    [(("red", "blue", "None of the above"), {0, 1}), (("cat", "dog", "both A and B", "ant", "bee"), {3, 4})],
)
def test_training_leaves_options_that_speak_of_others_where_they_are(choices, moving):
    example = Example("0", "x.png", "Q?", choices=choices, answer="A", targets=((0, 1.0),))
    shown = [permute_choices(example, random.Random(seed)) for seed in range(50)]
    for one in shown:
        assert one.choices["ABCDE".index(one.answer)] == choices[0]
    moved = {place for one in shown for place, text in enumerate(choices) if one.choices[place] != text}
    assert moved == moving


@pytest.mark.parametrize("labels", [[1], [0, 1]])
def test_a_question_knows_the_texts_of_all_its_answers(labels):
    scores = [1.0] * len(labels)
    row = {"qid": 1, "image_path": "x.png", "text_segment": "Where?", "labels": labels, "scores": scores}
    found = build_question(row, AnswerTable(["wall", "left"]))
    assert found.answers == tuple(("wall", "left")[label] for label in labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_example_that_cannot_be_read_is_one_clear_error(workers):
    loader = BatchLoader(dataset(bad={7}), collate, 5, num_workers=workers)
    with pytest.raises(InputError, match=r"^row r7: x\.jpg: can't be read$"):
        list(loader.epoch(0))


def test_balancing_within_questions_makes_the_answers_of_each_equally_likely():
    rows = [{"id": str(i), "image_path": "x", "question": f"is it {i % 2}?", "answer": "yes"} for i in range(12)]
    for number, answer in ((0, "no"), (1, "no"), (2, "no"), (11, "no")):
        rows[number]["answer"] = answer  # 2 of 6 rows of the first question, 2 of 6 of the second
    made = IndexDataset(rows, lettered, Path(), fake_processor, training=True)
    weights = made.balancing_weights(1.0, "question").tolist()
    for question in (0, 1):
        of_answer = {
            answer: sum(
                w
                for row, w in zip(rows, weights, strict=True)
                if row["answer"] == answer and row["question"] == f"is it {question}?"
            )
            for answer in ("yes", "no")
        }
        assert of_answer == pytest.approx({"yes": 3, "no": 3})
    assert made.balancing_weights(0.0, "question").unique().tolist() == [1.0]


@pytest.mark.parametrize("within", ["all", "question"])
def test_rows_without_answers_cannot_be_balanced(within):
    rows = [{"id": str(i), "image_path": "x", "text_segment": "a cat"} for i in range(3)]
    with pytest.raises(InputError, match="--balance_answers: the rows of this task have no answers"):
        get_balancing_weights(rows, 1.0, within)
    get_balancing_weights([*rows, {**rows[0], "answer": "yes"}], 1.0, within)


def test_balancing_within_questions_reads_the_words_of_a_letter():
    row = {"image_path": "x", "question": "which?"}
    said = [("A", ["red", "blue"]), ("B", ["blue", "red"]), ("B", ["red", "blue"])]  # red twice, blue once
    rows = [{**row, "id": str(i), "answer": a, "choices": choices} for i, (a, choices) in enumerate(said)]
    made = IndexDataset(rows, lettered, Path(), fake_processor, training=True)
    assert made.balancing_weights(1.0, "question").tolist() == [0.75, 0.75, 1.5]


def test_rows_without_a_text_all_have_the_same_question():
    rows = [{"id": str(i), "image_path": "x", "label": label} for i, label in enumerate([1, 2, 1])]
    assert get_balancing_weights(rows, 1.0, "question").tolist() == [0.75, 0.75 * 2, 0.75]


def test_balancing_makes_answers_equally_likely_and_keeps_draws_apart():
    rows = [{"id": str(i), "image_path": "x", "question": "q", "answer": "A" if i else "B"} for i in range(60)]
    made = IndexDataset(rows, lettered, Path(), fake_processor, training=True)
    weights = made.balancing_weights(1.0)
    assert weights[0] == pytest.approx(weights[1:].sum())
    assert made.balancing_weights(0.0).unique().tolist() == [1.0]
    loader = BatchLoader(made, collate, 60, shuffle=True, weights=weights)
    (batch,) = loader.epoch(0)
    drawn = [example.id for example in batch.examples]
    assert 15 < drawn.count("0") < 45
    assert len(batch.inputs["noise"].unique()) == 60  # a row drawn twice is augmented twice
    (again,) = BatchLoader(made, collate, 60, shuffle=True, weights=weights).epoch(0)
    assert again.examples == batch.examples


def test_len_is_the_number_of_batches():
    for rows in range(1, 30):
        batches = EpochBatches(rows, 7, shuffle=True)
        assert len(batches) == len(list(batches))


def test_rows_of_upstreams_scripts_become_examples():
    rows = [
        {"image_path": "a.jpg", "text_segment": [5, 6], "labels": [2, 0], "scores": [0.6, 1.0], "qid": 17},
        {"image_path": "a.jpg", "text_segment": "what?", "labels": "", "scores": "", "qid": "TEST_1"},
        {"image_path": "a.jpg", "text_segment": [5], "labels": [9], "scores": [1.0], "qid": 18},
    ]
    colours = AnswerTable(["red", "blue", "green"])
    made = IndexDataset(rows, lambda row, place: build_question(row, colours), Path("/data"), fake_processor)
    first = made.example(0)
    assert (first.id, first.token_ids, first.answer) == ("17", (5, 6), "red")
    assert first.targets == ((2, 0.6), (0, 1.0))
    assert (made.example(1).question, made.example(1).answer) == ("what?", None)
    with pytest.raises(InputError, match="row 18: label 9"):
        made.example(2)


def test_after_an_error_the_workers_end_at_once():
    """A loader caught in a cycle with its error would be left to the garbage collector, which waits for them."""
    loader = BatchLoader(dataset(bad={7}), collate, 5, num_workers=2)
    with pytest.raises(InputError) as caught:
        list(loader.epoch(0))
    assert "r7" in str(caught.value)
    gc.collect()  # what other tests left
    started = time.monotonic()
    del caught, loader
    gc.collect()
    assert time.monotonic() - started < 4


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), max_size=30), st.integers(1, 3))
def test_rows_of_an_image_come_together_the_longest_text_first_and_are_told_in_their_own_order(asked, processes):
    noted = array("q")
    examples = [Example("", f"{image}.jpg", "x" * length) for image, length in asked]
    assert list(noting_rows(examples, noted)) == examples
    images = [image for image, _ in asked]
    order = evaluation_order(noted)
    rows = list(range(len(images))) if order is None else order.tolist()
    assert sorted(rows) == list(range(len(images)))
    assert order is None or rows != sorted(rows)
    runs = [(image, list(group)) for image, group in groupby(rows, key=images.__getitem__)]
    assert len(runs) == len(set(images))  # each image in one place
    assert all(group == sorted(group) for _, group in runs)
    longest = [max(asked[row][1] for row in group) for _, group in runs]
    assert longest == sorted(longest, reverse=True)
    loader = BatchLoader(dataset(len(images), training=False), collate, 4, order=order)
    assert loader.in_input_order([f"r{row}" for row in rows]) == [f"r{row}" for row in range(len(images))]
    batches = [
        EpochBatches(len(images), 4, shuffle=False, order=order, of_rank=r, of_size=processes) for r in range(processes)
    ]
    parts = list(zip(*batches, strict=True))
    assert {row for part in parts for keys in part for *_, row in keys} == set(rows)
