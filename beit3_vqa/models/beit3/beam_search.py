"""Beam search over the words of captions, many images at once.

Shapes: N images that aren't finished, K beams of each (1 at the first word, `num_beams` after it), V words in the
vocabulary, C candidates of an image: its best continuations, twice as many as beams.

A caption of n words scores the sum of its log-probabilities, `</s>` included, over (n + 2)^length_penalty. A caption of
the greatest length that hasn't ended counts its likeliest next token in place of `</s>`. Both are upstream's.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Caption:
    """A caption: ids of its words, without `<s>` and `</s>`, and the score by which it was chosen."""

    ids: tuple[int, ...]
    score: float


class Decoder(Protocol):
    """The model as beam search sees it: it remembers the words of its beams and says how likely the next ones are."""

    def start(self) -> Tensor:
        """Return log-probabilities of the first word, (N, 1, V)."""

    def extend(self, parents: Tensor, words: Tensor) -> Tensor:
        """Make new beams, each an old one and a word, and return log-probabilities of the word after that.

        Args:
            parents: int (N, K), the old beam that each new one goes on from.
            words: int (N, K), the word that it goes on with.

        Returns:
            (N, K, V).
        """

    def keep(self, images: Tensor) -> None:
        """Forget all images but these, int (N,), places among those that it has."""


def beam_search(decoder: Decoder, num_beams: int, end_id: int, max_words: int, length_penalty: float) -> list[Caption]:
    """Return the best caption found for each image.

    An image leaves the batch as soon as none of its beams can do better than the best caption that has ended.

    Args:
        decoder: the model, about to write captions of N images.
        num_beams: beams that are followed for each image.
        end_id: id of the word that ends a caption.
        max_words: the most words of a caption, without the end.
        length_penalty: 0 takes log-probabilities as they are, which favours short captions; must not be negative.
    """
    scores = decoder.start()  # (N, 1, V)
    found = [Caption((), float("-inf")) for _ in range(len(scores))]
    images = torch.arange(len(scores), device=scores.device)  # the caption in `found` that each row is about
    words = images.new_zeros(len(scores), 1, 0)  # (N, K, words so far)
    sums = scores.new_zeros(len(scores), 1)  # (N, K), log-probabilities of the words so far
    for length in range(max_words + 1):
        totals = sums[..., None] + scores  # (N, K, V)
        step = _Step(totals.flatten(1), num_beams, beams=totals.size(1), end_id=end_id, forced=length == max_words)
        # Ended captions are noted first: the bound below compares what may still come with them.
        _note_ended(found, images, words, step, (length + 2) ** length_penalty)
        if length == max_words:
            break
        # Sums only fall: no caption to come has more than the best sum over the largest divisor.
        best = scores.new_tensor([found[image].score for image in images.tolist()])
        going = (best < step.sums[:, 0] / (max_words + 2) ** length_penalty).nonzero().squeeze(1)
        if not len(going):
            break
        if len(going) < len(images):
            decoder.keep(going)
            images, words, step = images[going], words[going], step.of(going)
        sums, parents, chosen = step.sums, step.parents, step.words
        # Each new beam takes over the words of the beam it goes on from, and adds its own.
        words = torch.cat([words.gather(1, parents[..., None].expand(-1, -1, length)), chosen[..., None]], dim=-1)
        scores = decoder.extend(parents, chosen)
    return found


class _Step:
    """The best continuations of each image: the beams that go on, and the captions that end.

    Args:
        totals: (N, K * V), sums with the next word included.
        num_beams: beams that go on.
        beams: K, those so far.
        end_id: id of the word that ends a caption.
        forced: whether every caption ends here, whatever its next word is.

    Attributes:
        sums: (N, num_beams), of the beams that go on, best first.
        parents: (N, num_beams), the old beam that each goes on from.
        words: (N, num_beams), the word that it goes on with.
        ended: (N,), the best sum of a caption that ends here; -inf if none does.
        ended_beam: (N,), the beam of that caption.
    """

    def __init__(self, totals: Tensor, num_beams: int, beams: int, end_id: int, forced: bool):
        vocabulary = totals.size(1) // beams
        # Twice as many as go on: each beam has one end at most, so enough others are left.
        sums, places = totals.topk(min(2 * num_beams, totals.size(1)), dim=1)  # (N, C), best first
        parents, words = places // vocabulary, places % vocabulary
        ends = words == end_id
        # As upstream, an end that is worse than every beam that goes on doesn't count.
        counted = (~ends).cumsum(dim=1) < num_beams if not forced else torch.ones_like(ends)
        self.ended, first = sums.masked_fill(~(counted & (ends | forced)), float("-inf")).max(dim=1)
        self.ended_beam = parents.gather(1, first[:, None]).squeeze(1)
        # A stable sort by "ends" puts what goes on to the front and keeps its order, best first.
        going = ends.long().argsort(dim=1, stable=True)[:, : min(num_beams, beams * (vocabulary - 1))]
        self.sums, self.parents, self.words = (x.gather(1, going) for x in (sums, parents, words))

    def of(self, images: Tensor) -> "_Step":
        """Leave only the rows of these images, in place, of what the search goes on with."""
        self.sums, self.parents, self.words = self.sums[images], self.parents[images], self.words[images]
        return self


def _note_ended(found: list[Caption], images: Tensor, words: Tensor, step: _Step, divisor: float) -> None:
    """Put the captions that end in this step into `found`, if they beat those there."""
    # Two copies to the CPU per step, rather than two per image.
    ended, beams = step.ended.tolist(), step.ended_beam.tolist()
    for row, image in enumerate(images.tolist()):
        score = ended[row] / divisor
        if score > found[image].score:
            found[image] = Caption(tuple(words[row, beams[row]].tolist()), score)
