"""A small VQAv2 in the official files, whose images are coloured squares and discs."""

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40)}
QUESTION = "What colour is the thing?"


def write_vqav2(folder: Path, images: int = 12, seed: int = 0) -> Path:
    """`images` images of each of train2014 and val2014, half as many of test2015, a question about each; the folder."""
    rng = random.Random(seed)
    for split, count in (("train2014", images), ("val2014", images), ("test2015", images // 2)):
        (folder / split).mkdir(parents=True)
        questions, annotations = [], []
        for place in range(count):
            image = place + {"train2014": 1000, "val2014": 2000, "test2015": 3000}[split]
            colour = list(COLOURS)[place % len(COLOURS)]
            draw_thing(folder / split / f"COCO_{split}_{image:012}.jpg", COLOURS[colour], rng)
            number = image * 10
            questions.append({"question_id": number, "image_id": image, "question": QUESTION})
            annotations.append(annotation(number, image, colour, rng))
        _write(folder / f"v2_OpenEnded_mscoco_{split}_questions.json", {"questions": questions})
        if split == "test2015":
            dev = {"questions": questions[: count // 2]}
            _write(folder / "v2_OpenEnded_mscoco_test-dev2015_questions.json", dev)
        else:
            _write(folder / f"v2_mscoco_{split}_annotations.json", {"annotations": annotations})
    return folder


def annotation(number: int, image: int, colour: str, rng: random.Random) -> dict:
    """Seven of ten annotators agree, two say something else, one writes the same otherwise."""
    other = rng.choice([c for c in COLOURS if c != colour])
    answers = [colour] * 7 + [other] * 2 + [f"The {colour.title()}."]
    return {
        "question_id": number,
        "image_id": image,
        "multiple_choice_answer": colour,
        "answers": [{"answer": a, "answer_id": i + 1} for i, a in enumerate(answers)],
    }


def draw_thing(path: Path, colour: tuple[int, int, int], rng: random.Random) -> None:
    """A square or a disc of that colour somewhere on grey."""
    image = Image.new("RGB", (40, 40), (128, 128, 128))
    x, y = rng.randint(0, 14), rng.randint(0, 14)
    draw = ImageDraw.Draw(image)
    rng.choice((draw.rectangle, draw.ellipse))((x, y, x + 24, y + 24), fill=colour)
    image.save(path, quality=95)


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content))
