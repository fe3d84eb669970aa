"""The data path: JPEG to pixels against upstream's pipeline, a million questions, and the memory of a worker."""

import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from beit3_vqa.data.images import ImageCache, open_image
from beit3_vqa.data.rows import Rows, read_prepared_rows, read_rows
from beit3_vqa.data.transforms import EvalTransform, TrainTransform
from beit3_vqa.runtime.files import file_sha256
from benchmarks.paired import arguments, build_rows, paired, report

BATCH = 32
QUESTIONS_PER_IMAGE = 4
LOOKED_AT = 20_000  # rows that a worker reads before its memory is measured


def write_photographs(folder: Path, count: int) -> list[Path]:
    """Write JPEGs of 640x480, cut from scikit-image's photographs, and return their paths."""
    import skimage.data

    photographs = [Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "chelsea", "coffee")]
    rng = random.Random(0)
    paths = []
    for number in range(count):
        photograph = rng.choice(photographs)
        left, top = rng.randrange(100), rng.randrange(60)
        box = (left, top, photograph.width - rng.randrange(100), photograph.height - rng.randrange(60))
        paths.append(folder / f"{number}.jpg")
        photograph.crop(box).resize((640, 480), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def upstreams(paths: list[Path], size: int, training: bool) -> Callable[[], torch.Tensor]:
    """Return upstream's way to a batch of float32 pixels: Pillow, timm, torchvision."""
    from timm.data.transforms import RandomResizedCropAndInterpolation
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    crop = [
        RandomResizedCropAndInterpolation(size, scale=(0.5, 1.0), interpolation="bicubic"),
        transforms.RandomHorizontalFlip(),
    ]
    resize = [transforms.Resize((size, size), interpolation=InterpolationMode.BICUBIC)]
    end = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    pipeline = transforms.Compose([*(crop if training else resize), *end])

    def batch() -> torch.Tensor:
        images = []
        for path in paths:
            with path.open("rb") as file:
                images.append(pipeline(Image.open(file).convert("RGB")))
        return torch.stack(images)

    return batch


def ours(paths: list[Path], size: int, training: bool) -> Callable[[], torch.Tensor]:
    """Return our way to a batch of uint8 pixels, which the model normalises on its device.

    In evaluation an image that several questions share is decoded once a batch.
    """
    train, evaluate = TrainTransform(size), EvalTransform(size)

    def batch() -> torch.Tensor:
        look = open_image if training else ImageCache().open
        images = [look(path) for path in paths]
        return torch.stack([train(i, random.Random(n)) if training else evaluate(i) for n, i in enumerate(images)])

    return batch


def time_images(rounds: int, output: Path | None) -> None:
    """Time decoding, augmenting and resizing on one core, and report it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(Path(folder), BATCH)
        shared = [path for path in paths[: BATCH // QUESTIONS_PER_IMAGE] for _ in range(QUESTIONS_PER_IMAGE)]
        for what, training, size, files in (
            ("training", True, 480, paths),
            ("training", True, 224, paths),
            ("evaluation", False, 480, paths),
            (f"evaluation, {QUESTIONS_PER_IMAGE} questions an image", False, 480, shared),
        ):
            runs = {"upstream's": upstreams(files, size, training), "ours": ours(files, size, training)}
            rows = build_rows(paired(runs, rounds), "upstream's")
            report(f"{BATCH} JPEGs of 640x480 to {size}x{size}, {what}, one core", rows, output)


def write_index(path: Path, rows: int) -> None:
    """Write an index of multiple-choice questions, as `prepare` does."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = {
                "id": f"TRAIN_{number:07}",
                "image_path": f"train/{number // QUESTIONS_PER_IMAGE:07}.jpg",
                "question": f"What is the person number {number} on the left side of the picture doing?",
                "choices": ["riding a bicycle", "eating lunch", "reading a newspaper", "nothing at all"],
                "answer": "ABCD"[number % 4],
            }
            file.write(json.dumps(row) + "\n")


def unique_set_size() -> float:
    """Return the memory, in MiB, that this process shares with no other (Linux)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def _work(rows: Rows, seed: int, queue: "multiprocessing.Queue[float]") -> None:
    """Read random rows, as a worker of the loader does, then send the memory that it took."""
    rng = random.Random(seed)
    for _ in range(LOOKED_AT):
        rows[rng.randrange(len(rows))]
    queue.put(unique_set_size())


def time_index(count: int, output: Path | None) -> None:
    """Time opening a large index, measure the memory of each further process that reads it, and report both."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vqacustom.train.jsonl"
        write_index(path, count)
        checksum = file_sha256(path)  # prepare keeps it in dataset.json
        started = time.perf_counter()
        read_prepared_rows(path, checksum)
        prepared = time.perf_counter() - started
        started = time.perf_counter()
        rows = read_rows(path)
        seconds = time.perf_counter() - started
        for _ in rows:  # as a run does, which counts the tokens of every row before its workers start
            pass
        context = multiprocessing.get_context("fork")
        queue: multiprocessing.Queue[float] = context.Queue()
        workers = [context.Process(target=_work, args=(rows, seed, queue)) for seed in range(2)]
        for worker in workers:
            worker.start()
        memory = max(queue.get() for _ in workers)
        for worker in workers:
            worker.join()
    row = {
        "questions": count,
        "seconds to open, as prepare wrote it": round(prepared, 2),
        "seconds to open, every row checked": round(seconds, 2),
        "MiB of a worker's own after 20,000 rows": round(memory, 1),
    }
    report("index", [row], output)


def main() -> None:
    """Run `python -m benchmarks.data`."""
    parser = arguments(__doc__ or "", rounds=7)
    parser.add_argument("--questions", type=int, default=1_000_000, help="rows of the index")
    options = parser.parse_args()
    time_index(options.questions, options.output)
    time_images(options.rounds, options.output)


if __name__ == "__main__":
    main()
