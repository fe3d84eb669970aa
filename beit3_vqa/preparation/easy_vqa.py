"""easy-VQA, the data set of the demo: 48k questions about 5,000 images of one coloured shape each.

It comes with the PyPI package `easy-vqa`, images included. `--mode open` keeps it as it is, open-ended with 13
answers. `--mode choices` gives each question four options: the wrong ones are of the answer's kind (other colours for a
colour) as far as there are any, then other answers.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from beit3_vqa.data.index import split_by_image
from beit3_vqa.data.rows import Row
from beit3_vqa.errors import InputError
from beit3_vqa.preparation.choices_csv import LETTERS
from beit3_vqa.preparation.writer import Prepared, PrepareOptions
from beit3_vqa.runtime.fields import Options, option


@dataclass(frozen=True)
class Arguments(Options):
    """What to make of the package's questions."""

    mode: str = option("open", "open: open-ended, 13 answers; choices: four options each", choices=("open", "choices"))
    train_images: int = option(0, "number of training images whose questions are used; 0: all 4,000", low=0)


SHAPES = frozenset({"circle", "rectangle", "triangle"})
YES_NO = frozenset({"yes", "no"})


def read(arguments: Arguments, options: PrepareOptions) -> Prepared:
    """Read the installed package; train and test are its own splits, validation is cut from train."""
    try:
        import easy_vqa
    except ImportError as error:
        raise InputError(
            'the format easy_vqa reads the package easy-vqa: pip install "beit3_vqa[demo]" (or: pip install easy-vqa)'
        ) from error
    if options.image_root:
        raise InputError("the format easy_vqa brings its own images: leave --image_root out")
    answers = easy_vqa.get_answers()
    is_open = arguments.mode == "open"
    prepared = Prepared("easy_vqa", answers if is_open else list(LETTERS), Path(easy_vqa.__file__).parent / "data")
    splits = {
        "train": _open_rows("train", *easy_vqa.get_train_questions()),
        "test": _open_rows("test", *easy_vqa.get_test_questions()),
    }
    if arguments.train_images:
        kept = set(sorted({row["image_path"] for row in splits["train"]})[: arguments.train_images])
        splits["train"] = [row for row in splits["train"] if row["image_path"] in kept]
    if options.val_ratio and not options.folds:
        if options.group_near_copies:
            raise InputError(
                "easy_vqa cuts its validation split by its own answers: give --group_near_copies with --folds"
            )
        # Cut here, by the open-ended answers, so that both modes validate on the same images: a model trained on the
        # one and fine-tuned on the other hasn't seen them.
        splits["train"], splits["val"] = split_by_image(splits["train"], options.val_ratio, options.seed)
        prepared.notes.append(f"validation split cut from train by image, ratio {options.val_ratio:g}")
    for split, rows in splits.items():
        for row in rows:
            if not is_open:
                # Drawn by the question's own id, so that its options don't depend on which others are read.
                choices = make_choices(row["answer"], answers, random.Random(f"{options.seed}/{row['id']}"))
                row |= {"choices": choices, "answer": LETTERS[choices.index(row["answer"])]}
            prepared.add(split, row, f"easy-vqa, {row['id']}")
    return prepared


def _open_rows(split: str, questions: Sequence[str], answers: Sequence[str], image_ids: Sequence[int]) -> list[Row]:
    return [
        {
            "id": f"{split}_{number}",
            "image_path": f"{split}/images/{image_id}.png",
            "question": question,
            "answer": answer,
        }
        for number, (question, answer, image_id) in enumerate(zip(questions, answers, image_ids, strict=True))
    ]


def make_choices(answer: str, answers: Sequence[str], rng: random.Random) -> list[str]:
    """Return four different options in random order: `answer`, and wrong ones of its kind as far as there are any."""
    same_kind = [other for other in answers if other != answer and _kind(other) == _kind(answer)]
    other_kinds = [other for other in answers if _kind(other) != _kind(answer)]
    rng.shuffle(same_kind)
    rng.shuffle(other_kinds)
    choices = [answer, *[*same_kind, *other_kinds][: len(LETTERS) - 1]]
    rng.shuffle(choices)
    return choices


def _kind(answer: str) -> str:
    return "shape" if answer in SHAPES else "yes or no" if answer in YES_NO else "colour"
