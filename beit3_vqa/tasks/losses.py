"""Losses that PyTorch has no function for: the contrastive one over all processes, and the one of masked words."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.distributed import gather_rows, shard_sizes


def contrastive_loss(features: Tensor, global_batch: int | None = None) -> Tensor:
    """Return how badly each image finds its text among all of the batch, and each text its image.

    Every other row counts as wrong, even a second caption of the same image, as in upstream. Processes compare with
    each other's rows: their losses, weighted by the rows of each, add up to the loss of one process with all rows, and
    so do gradients.

    Args:
        features: (B, 2, D), the image (times the scale) and the text of each row.
        global_batch: rows of all processes; this one's are the first `shard_sizes(global_batch)[rank]`. None: B, and no
            other process is asked.

    Returns:
        the mean cross entropy of this process's rows, a scalar; 0 if it has none.

    Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
    """
    if global_batch is None:
        counts, rank, everyone = [len(features)], 0, features
    else:
        counts, rank, everyone = shard_sizes(global_batch), distributed.rank(), gather_rows(features, global_batch)
    # An example that only fills a short last batch isn't this process's own.
    own = features[: counts[rank]]
    # Among everyone's rows, own ones come after those of the processes before this one.
    targets = torch.arange(len(own), device=features.device) + sum(counts[:rank])
    to_texts = own[:, 0] @ everyone[:, 1].T
    to_images = own[:, 1] @ everyone[:, 0].T
    losses = [F.cross_entropy(logits, targets, reduction="sum") for logits in (to_texts, to_images)]
    return (losses[0] + losses[1]) / (2 * max(1, len(own)))


def caption_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0, drop_worst: float = 0.0) -> Tensor:
    """Return the divergence of the predicted words from the smoothed true ones, without the words predicted worst.

    Args:
        logits: (M, V), of M masked words.
        labels: (M,), the true ids.
        smoothing: probability that all wrong words share, 0 <= smoothing < 1.
        drop_worst: share of the words that are left out, those with the greatest loss.

    Returns:
        the mean over the words that are left, a scalar in nats; 0 if M is 0.
    """
    words, others = logits.size(1), logits.size(1) - 1
    right, wrong = 1 - smoothing, smoothing / others
    log_p = logits.log_softmax(dim=1)
    true = log_p.gather(1, labels[:, None]).squeeze(1)
    # KL(target || predicted) = sum of t log t, less sum of t log p; t is `right` once and `wrong` for all others.
    entropy = right * math.log(right) + (others * wrong * math.log(wrong) if wrong else 0.0)
    losses = entropy - (right - wrong) * true - (wrong * words) * log_p.mean(dim=1)
    if drop_worst and len(losses):
        losses = losses.topk(max(1, int(len(losses) * (1 - drop_worst))), largest=False).values
    return losses.sum() / max(1, len(losses))
