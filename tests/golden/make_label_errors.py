"""Make label_errors.json with cleanlab: `pip install cleanlab`, then `python tests/golden/make_label_errors.py`.

Answers of a model that is right more often than not, likes the last option too much, and is asked about rows of which
some have a wrong label. The file holds the labels, the probabilities, and cleanlab's likely errors in its order.
"""

import json
from pathlib import Path

import numpy as np
from cleanlab.filter import find_label_issues

ROWS, OPTIONS = 150, 4


def main() -> None:
    """Write the file."""
    rng = np.random.default_rng(18)
    truth = rng.integers(0, OPTIONS, ROWS)
    logits = rng.normal(size=(ROWS, OPTIONS)) + [0.0, 0.2, -0.3, 0.8]
    logits[np.arange(ROWS), truth] += 2.0
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    shares = shares.round(4)
    shares[:, -1] = (1 - shares[:, :-1].sum(axis=1)).round(4)
    labels = np.where(rng.random(ROWS) < 0.15, rng.integers(0, OPTIONS, ROWS), truth)
    ranked = find_label_issues(
        labels, shares, filter_by="confident_learning", return_indices_ranked_by="self_confidence", n_jobs=1
    )
    content = {"labels": labels.tolist(), "shares": shares.tolist(), "ranked": ranked.tolist()}
    path = Path(__file__).with_name("label_errors.json")
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
