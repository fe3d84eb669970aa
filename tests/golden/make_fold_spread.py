"""Make fold_spread.json with scikit-learn: `pip install scikit-learn`, then `python -m tests.golden.make_fold_spread`.

How evenly StratifiedGroupKFold spreads pairs of question word and answer over five folds, for some tables of
questions; images are its groups.
"""

import json
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from tests.helpers.questions import draw_questions, spread

SEEDS = range(6)
FOLDS = 5


def main() -> None:
    """Write the file."""
    found = []
    for seed in SEEDS:
        rows = draw_questions(seed)
        labels = [f"{row['question']} {row['answer']}" for row in rows]
        folds = np.zeros(len(rows), dtype=int)
        splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        for fold, (_, held_out) in enumerate(splitter.split(labels, labels, [row["image_path"] for row in rows])):
            folds[held_out] = fold
        found.append(spread(labels, folds.tolist()))
    path = Path(__file__).with_name("fold_spread.json")
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
