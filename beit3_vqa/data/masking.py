"""Masking words of a caption, for a model that learns to fill them in."""

import random
from collections.abc import Sequence

from beit3_vqa.data.tokenizer import UNK_ID

AS_MASK, AS_IT_IS = 0.8, 0.1  # of the masked words; the rest become any word at all


def mask_words(
    ids: Sequence[int], rng: random.Random, probability: float, mask_id: int, vocab_size: int
) -> tuple[list[int], list[int]]:
    """A text with some of its words hidden, upstream's way.

    Round(n * probability) of the n tokens are chosen, at least one, never `<s>`; `</s>` may be, since a captioner must
    learn to stop. Of them 80 % become `<mask>`, 10 % stay, and 10 % become a random word (Devlin et al. 2019, "BERT").

    Args:
        ids: `<s> text </s>`, at least two.
        rng: all that is random comes from here.
        probability: of a token to be chosen.
        mask_id: of `<mask>`.
        vocab_size: ids of the tokenizer; random words are any from `<unk>` on.

    Returns:
        ids as the model sees them, and the positions chosen, in order.
    """
    count = min(max(1, int(len(ids) * probability + 0.5)), len(ids) - 1)
    chosen = sorted(rng.sample(range(1, len(ids)), count))
    masked = list(ids)
    for position in chosen:
        kind = rng.random()
        if kind < AS_MASK:
            masked[position] = mask_id
        elif kind >= AS_MASK + AS_IT_IS:
            masked[position] = rng.randrange(UNK_ID, vocab_size)
    return masked, chosen
