"""A small generated set of images with captions, as Karpathy's file has them: coloured shapes."""

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

from beit3_vqa.cli.main import main

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 230), "yellow": (240, 220, 40)}
SHAPES = ("circle", "square", "triangle")
GROUNDS = {"black": (0, 0, 0), "white": (255, 255, 255)}
TEMPLATES = ("a {c} {s} on a {g} ground", "there is a {c} {s} on {g}", "{g} ground with a {c} {s}")
KINDS = [(c, s, g) for c in COLOURS for s in SHAPES for g in GROUNDS]  # 24


def draw(kind: tuple[str, str, str], rng: random.Random, size: int = 48) -> Image.Image:
    colour, shape, ground = kind
    image = Image.new("RGB", (size, size), GROUNDS[ground])
    pen = ImageDraw.Draw(image)
    half = rng.randint(size // 4, size // 3)
    x, y = (rng.randint(half, size - half) for _ in "xy")
    if shape == "circle":
        pen.ellipse((x - half, y - half, x + half, y + half), fill=COLOURS[colour])
    elif shape == "square":
        pen.rectangle((x - half, y - half, x + half, y + half), fill=COLOURS[colour])
    else:
        pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill=COLOURS[colour])
    return image


def write_captioned(folder: Path, train: int, val: int, test: int, captions: int = 2, seed: int = 0) -> Path:
    """`folder` with dataset_coco.json, dataset_flickr30k.json, nocaps' two files and images where each looks for them.

    Images of a split are of different kinds as long as there are any.
    """
    rng = random.Random(seed)
    for name in ("train2014", "flickr30k-images", "val", "test"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images, sentences = [], 0
    for split, count in (("train", train), ("val", val), ("test", test)):
        kinds = rng.sample(KINDS, len(KINDS))
        for place in range(count):
            number = len(images)
            colour, shape, ground = kind = kinds[place % len(kinds)]
            image = draw(kind, rng)
            for where in ("train2014", "flickr30k-images", *((split,) if split != "train" else ())):
                image.save(folder / where / f"{number}.png")
            texts = [t.format(c=colour, s=shape, g=ground) for t in rng.sample(TEMPLATES, captions)]
            raws = [{"raw": text, "sentid": sentences + n, "imgid": number} for n, text in enumerate(texts)]
            sentences += captions
            one = {"filename": f"{number}.png", "split": split, "imgid": number, "cocoid": 1000 + number}
            images.append({**one, "sentences": raws})
    coco = [{**image, "filepath": "train2014"} for image in images]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": coco, "dataset": "coco"}))
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    for split, name in (("val", "nocaps_val_4500_captions.json"), ("test", "nocaps_test_image_info.json")):
        own = [image for image in images if image["split"] == split]
        listed = [{"id": image["cocoid"], "file_name": image["filename"]} for image in own]
        told = [{"image_id": i["cocoid"], "caption": s["raw"]} for i in own for s in i["sentences"]]
        content = {"images": listed, **({"annotations": told} if split == "val" else {})}
        (folder / name).write_text(json.dumps(content))
    return folder


def prepare_captioned(folder: Path, train: int) -> Path:
    """`folder` with raw/ and data/, which has the index files of COCO's tasks, of Flickr30k and of nocaps."""
    raw = str(write_captioned(folder / "raw", train=train, val=12, test=12))
    places = ["--image_root", raw, "--data_path", str(folder / "data")]
    lists = ["--val", f"{raw}/nocaps_val_4500_captions.json", "--test", f"{raw}/nocaps_test_image_info.json"]
    assert main(["prepare", "nocaps", *lists, *places]) == 0
    for name in ("flickr30k", "coco"):
        arguments = ["--json", f"{raw}/dataset_{name}.json", *places, "--train_tokenizer", "300"]
        assert main(["prepare", name, *arguments]) == 0
    return folder / "data"
