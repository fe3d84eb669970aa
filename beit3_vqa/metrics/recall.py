"""Recall of retrieval: how often the right image or text is among the first k."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

KS = (1, 5, 10)
CHUNK = 1024  # queries compared with everything at once


def recall_metrics(images: Tensor, texts: Tensor, image_of: Tensor) -> dict[str, float | dict[str, float]]:
    """Return recall in percent, both ways, and its mean.

    An image finds its text if any of its captions is among the first k of all captions; a text finds its image if that
    is among the first k images. A tie counts as lost, so that equal vectors find nothing and every device gives the
    same. Upstream's script leaves ties to the order in which `torch.topk` happens to give them.

    Args:
        images: (I, D), each image once.
        texts: (T, D).
        image_of: (T,), the row in `images` that each text describes; every image has a text.

    Returns:
        upstream's names: `tr_rK` (image to text), `ir_rK` (text to image), `average_score`; and `topk`, the same with
        ties as upstream's script decides them.
    """
    ranks = {"tr": _ranks_of_images(images, texts, image_of), "ir": _ranks_of_texts(images, texts, image_of)}
    hits = {f"{way}_r{k}": rank < k for way, rank in ranks.items() for k in reversed(KS)}
    own = torch.arange(len(images), device=image_of.device)
    of_topk = {f"tr_r{k}": _in_topk(images, texts, own, image_of, k) for k in reversed(KS)}
    of_topk |= {f"ir_r{k}": _in_topk(texts, images, image_of, own, k) for k in reversed(KS)}
    return {**_percent(hits), "topk": _percent(of_topk)}


def _percent(hits: dict[str, Tensor]) -> dict[str, float]:
    shares = {name: 100.0 * hit.double().mean().item() for name, hit in hits.items()}
    return {**shares, "average_score": sum(shares.values()) / len(shares)}


def _in_topk(queries: Tensor, found: Tensor, query_image: Tensor, found_image: Tensor, k: int) -> Tensor:
    """Return for each query whether torch.topk's k best hold something of its image, bool (Q,).

    `query_image` (Q,) and `found_image` (F,) name the image of each row.
    """
    hits = []
    for rows in _chunks(len(queries), queries):
        best = (queries[rows] @ found.T).topk(min(k, len(found)), dim=1).indices
        hits.append((found_image[best] == query_image[rows, None]).any(dim=1))
    return torch.cat(hits)


def _ranks_of_images(images: Tensor, texts: Tensor, image_of: Tensor) -> Tensor:
    """Return for each image how many texts of other images come before its own best text, (I,)."""
    ranks = []
    for rows in _chunks(len(images), images):
        scores = images[rows] @ texts.T
        own = image_of[None, :] == rows[:, None]
        best = scores.masked_fill(~own, float("-inf")).amax(dim=1, keepdim=True)
        ranks.append((~own & (scores >= best)).sum(dim=1))
    return torch.cat(ranks)


def _ranks_of_texts(images: Tensor, texts: Tensor, image_of: Tensor) -> Tensor:
    """Return for each text how many other images come before its own, (T,)."""
    ranks = []
    for rows in _chunks(len(texts), texts):
        scores = texts[rows] @ images.T
        right = scores.gather(1, image_of[rows, None])
        ranks.append((scores >= right).sum(dim=1) - 1)  # less its own image
    return torch.cat(ranks)


def _chunks(count: int, like: Tensor) -> Iterator[Tensor]:
    return iter(torch.split(torch.arange(count, device=like.device), CHUNK))


def chance_of_recall(captions_of: list[int]) -> float:
    """Return the `average_score` of blind guessing in percent.

    Args:
        captions_of: number of captions of each image.
    """
    images, texts = len(captions_of), sum(captions_of)
    shares = [min(1.0, k / images) for k in KS]
    for k in KS:
        # Probability that k texts drawn without replacement hold none of an image's own.
        missed = [math.comb(texts - own, k) / math.comb(texts, k) if k <= texts else 0.0 for own in captions_of]
        shares.append(1 - sum(missed) / images)
    return 100.0 * sum(shares) / len(shares)
