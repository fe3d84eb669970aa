"""Small data sets in the official formats of the tasks, whose images are one coloured square or disc each."""

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40)}
QUESTION = "What colour is the thing?"


def draw_thing(path: Path, colour: str, rng: random.Random) -> None:
    """A square or a disc of that colour somewhere on grey."""
    image = Image.new("RGB", (40, 40), (128, 128, 128))
    x, y = rng.randint(0, 14), rng.randint(0, 14)
    draw = ImageDraw.Draw(image)
    rng.choice((draw.rectangle, draw.ellipse))((x, y, x + 24, y + 24), fill=COLOURS[colour])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_vqav2(folder: Path, images: int = 12, seed: int = 0) -> Path:
    """`images` images of each of train2014 and val2014, half as many of test2015, a question about each; the folder."""
    rng = random.Random(seed)
    for split, count in (("train2014", images), ("val2014", images), ("test2015", images // 2)):
        questions, annotations = [], []
        for place in range(count):
            image = place + {"train2014": 1000, "val2014": 2000, "test2015": 3000}[split]
            colour = list(COLOURS)[place % len(COLOURS)]
            draw_thing(folder / split / f"COCO_{split}_{image:012}.jpg", colour, rng)
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


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content))


def write_nlvr2(folder: Path, pairs: int = 12, seed: int = 0) -> Path:
    """Sentences on whether two things have the same colour, half of them true; `pairs` of train, fewer of others."""
    rng = random.Random(seed)
    for split, images, count in (("train", "images/train", pairs), ("dev", "dev", pairs // 3), ("test1", "test1", 5)):
        lines = []
        for place in range(count):
            same, wanted = place % 2 == 0, place // 2 % 2 == 0
            first = rng.choice(list(COLOURS))
            second = first if same else rng.choice([c for c in COLOURS if c != first])
            directory = {"directory": place % 3} if split == "train" else {}
            at = folder / images / str(directory.get("directory", ""))
            draw_thing(at / f"{split}-{place}-0-img0.png", first, rng)
            draw_thing(at / f"{split}-{place}-0-img1.png", second, rng)
            sentence = "Both things have the same colour." if wanted else "The colours of the things differ."
            line = {"identifier": f"{split}-{place}-0-0", "sentence": sentence, "label": str(same == wanted)}
            lines.append(json.dumps({**line, **directory}) + "\n")
        (folder / f"{split}.json").write_text("".join(lines))
    return folder


def write_imagenet(folder: Path, images: int = 12, seed: int = 0) -> Path:
    """A class for each colour, `images` of each in train, fewer in val."""
    rng = random.Random(seed)
    for split, count in (("train", images), ("val", max(1, images // 3))):
        for colour in COLOURS:
            for place in range(count):
                draw_thing(folder / split / colour / f"{colour}_{place}.png", colour, rng)
    return folder
