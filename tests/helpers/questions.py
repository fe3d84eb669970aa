"""Tables of questions whose words and answers aren't equally frequent, and how evenly folds hold them."""

import random
from collections import Counter
from collections.abc import Sequence

WORDS = ("what", "how", "where", "who", "which")


def draw_questions(seed: int, images: int = 120, most: int = 6) -> list[dict[str, str]]:
    """Return one to `most` questions about each image, with answers A to D."""
    rng = random.Random(seed)
    return [
        {
            "id": f"{image}-{number}",
            "image_path": f"{image}.jpg",
            "question": rng.choices(WORDS, (9, 4, 3, 2, 1))[0],
            "answer": rng.choices("ABCD", (4, 3, 2, 1))[0],
        }
        for image in range(images)
        for number in range(rng.randint(1, most))
    ]


def spread(labels: Sequence[str], folds: Sequence[int]) -> float:
    """Return by how much a fold's share of a label's rows differs from an even one, on average over both."""
    total, count = Counter(labels), Counter(zip(labels, folds, strict=True))
    number = max(folds) + 1
    return sum(
        abs(count[label, fold] / rows - 1 / number) for label, rows in total.items() for fold in range(number)
    ) / (len(total) * number)
