"""Bad images are passed over up to a number; what stands in for them depends on the key of the draw alone."""

import pickle
import re
from pathlib import Path

import pytest
import torch

from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.bad_images import BadImages
from beit3_vqa.data.dataset import IndexDataset, build_question
from beit3_vqa.data.images import open_image
from beit3_vqa.data.loader import BatchLoader
from beit3_vqa.errors import ImageError, InputError

ROWS = 23
BAD = {3, 4, 11, ROWS - 1}  # two beside one another, and the last, after which comes the first


def read_image(example, rng):
    """Stands in for pixels: one random number per example, and an error for a bad image."""
    if "bad" in example.image_path and not example.problem:
        raise ImageError(f"image {example.image_path!r} is damaged", example.image_path)
    return {"noise": torch.tensor(0.0 if rng is None else rng.random())}


def collate(items):
    return {"noise": torch.stack([item["noise"] for item in items])}


def question(row, place):
    return build_question(row, AnswerTable(["A", "B"]))


def loader_of(allowed, *, bad=frozenset(BAD), training=True, workers=0):
    rows = [
        {"id": f"r{i}", "image_path": f"{'bad' if i in bad else 'good'}_{i}.jpg", "question": "?", "answer": "A"}
        for i in range(ROWS)
    ]
    made = IndexDataset(rows, question, Path(), read_image, training=training, seed=3)
    return BatchLoader(made, collate, 5, shuffle=training, seed=3, num_workers=workers, bad_images=BadImages(allowed))


def seen(loader, epoch=0):
    batches = list(loader.epoch(epoch))
    return [e for batch in batches for e in batch.examples], torch.cat([batch.inputs["noise"] for batch in batches])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_next_readable_row_stands_in_and_everything_else_stays(workers, capsys):
    whole, noise = seen(loader_of(0, bad=frozenset()))
    instead, same_noise = seen(loader_of(len(BAD), workers=workers))
    stand_ins = {"r3": "r5", "r4": "r5", "r11": "r12", f"r{ROWS - 1}": "r0"}
    assert [e.id for e in instead] == [stand_ins.get(e.id, e.id) for e in whole]
    assert torch.equal(noise, same_noise)  # drawn as the row it replaces
    lines = capsys.readouterr().out.splitlines()
    first_met = [e.id for e in whole if e.id in stand_ins]
    assert len(lines) == len(BAD)
    # r3's stand-in is looked for at r4, so that may be named before its own draw.
    assert {line.split("row ")[1].split(":")[0] for line in lines} == set(first_met)
    assert [line.split(" of 4 allowed: ")[0] for line in lines] == [f"bad image {n}" for n in (1, 2, 3, 4)]


def test_each_bad_image_is_named_once_in_all_epochs(capsys):
    loader = loader_of(len(BAD))
    for epoch in range(3):
        assert len(seen(loader, epoch)[0]) == ROWS
    assert capsys.readouterr().out.count("bad image") == len(BAD)


def error_of(loader) -> str:
    """What ends an epoch; its traceback is let go, since one that is kept keeps the loader and its workers too."""
    try:
        seen(loader)
    except InputError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize("workers", [0, 2])
def test_one_bad_image_too_many_ends_the_run(workers, capsys):
    said = error_of(loader_of(3, workers=workers))
    assert re.match(r"row r\d+: image 'bad_\d+.jpg' is damaged\n.*--skip_bad_images 3 allows", said)
    assert capsys.readouterr().out.count("bad image") == 3


def test_any_number_of_workers_ends_at_the_same_bad_image():
    said = {error_of(loader_of(2, workers=workers)) for workers in (0, 1, 2)}
    assert len(said) == 1
    assert "allows" in said.pop()


def test_without_an_allowance_the_first_bad_image_is_the_error():
    with pytest.raises(InputError, match=r"^row r\d+: image 'bad_\d+.jpg' is damaged$"):
        seen(loader_of(0, workers=0))


def test_a_split_without_any_readable_image_is_an_error():
    with pytest.raises(InputError, match="none of the images can be read"):
        seen(loader_of(1000, bad=frozenset(range(ROWS)), workers=0))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_answers_every_row_in_its_place(workers):
    examples, noise = seen(loader_of(len(BAD), training=False, workers=workers))
    assert [e.id for e in examples] == [f"r{i}" for i in range(ROWS)]
    assert {i for i, e in enumerate(examples) if e.problem} == BAD
    assert examples[3].problem == "row r3: image 'bad_3.jpg' is damaged"
    assert len(noise) == ROWS
    assert "allows" in error_of(loader_of(len(BAD) - 1, training=False, workers=workers))


def test_two_spellings_of_a_path_are_one_image(capsys):
    bad_images = BadImages(1)
    for path in ("img/0.jpg", "img/./0.jpg", "img//0.jpg"):
        bad_images.add(ImageError("damaged", path))
    assert bad_images.left == 0
    assert "img/x/../0.jpg" in bad_images
    with pytest.raises(InputError, match="not an image's"):
        bad_images.add(InputError("not an image's"))


def test_errors_travel_between_processes(tmp_path):
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "gone.jpg")
    error = pickle.loads(pickle.dumps(ImageError(str(caught.value), "gone.jpg")))
    assert (type(error), str(error), error.path) == (ImageError, str(caught.value), "gone.jpg")
