"""Even out folds: swap images between them until each holds about the same share of every label.

The number of images in a fold doesn't change, nor does that of a kind of image by more than from the smaller of its
two numbers to the larger.
"""

import random
from collections import Counter
from collections.abc import Mapping

from beit3_vqa.data.question_words import question_word
from beit3_vqa.data.rows import LETTERS, Row

TRIES = 40  # random pairs that are tried for each image
LEAST_TRIES, MOST_TRIES = 2_000, 200_000  # in all; the most take a few seconds


def get_labels(row: Row) -> list[str]:
    """Return what each fold is to have the same share of: rows, question words, answers, and pairs of the two.

    An answer among options is its letter, and the option's text too.
    """
    word, answer = question_word(str(row.get("question", ""))), str(row.get("answer", row.get("label", "")))
    labels = ["", f"word {word}", f"answer {answer}", f"both {word} {answer}"]
    choices = dict(zip(LETTERS, row.get("choices", ()), strict=False))
    return [*labels, f"text {choices[answer].casefold()}"] if answer in choices else labels


def even_out(
    fold_of: dict[str, int], kind_of: Mapping[str, str], labels: Mapping[str, Counter[str]], rng: random.Random
) -> None:
    """Swap images between folds, in place, as long as that brings the counts of labels nearer to even ones.

    What falls is the sum over folds and labels of (count - expected count)^2 / expected count. A rare label thus weighs
    as much as a frequent one, and can't be had at the cost of it.

    Args:
        fold_of: image -> its fold, from 0.
        kind_of: image -> what kind it is; images of a kind are spread over the folds as evenly as can be.
        labels: image -> how often each label occurs in it.
        rng: which pairs to try.
    """
    images = sorted(fold_of)
    folds = max(fold_of.values()) + 1
    counts: list[Counter[str]] = [Counter() for _ in range(folds)]
    kinds: list[Counter[str]] = [Counter() for _ in range(folds)]
    total: Counter[str] = Counter()
    alike: dict[str, list[str]] = {}
    for image in images:
        counts[fold_of[image]].update(labels[image])
        kinds[fold_of[image]][kind_of[image]] += 1
        total.update(labels[image])
        alike.setdefault(kind_of[image], []).append(image)

    def may_move(image: str, source: int, target: int) -> bool:
        """Return whether its kind stays as evenly spread as it is."""
        return kinds[source][kind_of[image]] > kinds[target][kind_of[image]]

    def change(one: str, two: str) -> float:
        """Return half of the change of the sum, times the number of folds, if the images swap their folds."""
        ours, theirs = counts[fold_of[one]], counts[fold_of[two]]
        mine, yours = labels[one], labels[two]
        added = {label: yours.get(label, 0) - mine.get(label, 0) for label in (*mine, *yours)}
        return sum(n * (ours[label] - theirs[label] + n) / total[label] for label, n in added.items() if n)

    for number in range(min(max(TRIES * len(images), LEAST_TRIES), MOST_TRIES)):
        one = rng.choice(images)
        two = rng.choice(images if number % 2 else alike[kind_of[one]])
        a, b = fold_of[one], fold_of[two]
        if a == b or (kind_of[one] != kind_of[two] and not (may_move(one, a, b) and may_move(two, b, a))):
            continue
        if change(one, two) < -1e-9:
            fold_of[one], fold_of[two] = b, a
            for image, source, target in ((one, a, b), (two, b, a)):
                counts[source].subtract(labels[image])
                counts[target].update(labels[image])
                kinds[source][kind_of[image]] -= 1
                kinds[target][kind_of[image]] += 1
