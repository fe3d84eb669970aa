"""Beam search over the words of captions, many images at once.

Shapes: N images that aren't finished, K beams of each, V words in the vocabulary.

A caption of n words scores the sum of its log-probabilities, `</s>` included, over (n + 2)^length_penalty. One that has
reached the longest length without `</s>` is scored with its likeliest next token in its place. Both are upstream's.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Caption:
    """Ids of the words, without `<s>` and `</s>`, and the score by which the caption was chosen."""

    ids: tuple[int, ...]
    score: float


class Decoder(Protocol):
    """What says how likely words are; it remembers the words of its beams."""

    def start(self) -> Tensor:
        """Log-probabilities of the first word, (N, 1, V)."""

    def extend(self, parents: Tensor, words: Tensor) -> Tensor:
        """New beams (N, K), each an old one and a word: log-probabilities of the word after that, (N, K, V)."""

    def keep(self, images: Tensor) -> None:
        """The images that go on, int (N,)."""


def beam_search(decoder: Decoder, num_beams: int, end_id: int, max_words: int, length_penalty: float) -> list[Caption]:
    """The best caption that is found for each image; an image leaves the batch when no beam of it can do better.

    Args:
        decoder: of N images.
        num_beams: beams that are followed for each image.
        end_id: the word that ends a caption.
        max_words: the most words of a caption, without the end.
        length_penalty: 0: log-probabilities as they are, which favours short captions; must not be negative.
    """
    scores = decoder.start()
    found = [Caption((), float("-inf")) for _ in range(len(scores))]
    images = torch.arange(len(scores), device=scores.device)  # where the rows of `scores` belong
    words = images.new_zeros(len(scores), 1, 0)  # (N, K, words so far)
    sums = scores.new_zeros(len(scores), 1)
    for length in range(max_words + 1):
        totals = sums[..., None] + scores
        step = _Step(totals.flatten(1), num_beams, beams=totals.size(1), end_id=end_id, forced=length == max_words)
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
        words = torch.cat([words.gather(1, parents[..., None].expand(-1, -1, length)), chosen[..., None]], dim=-1)
        scores = decoder.extend(parents, chosen)
    return found


class _Step:
    """The best continuations of each image: the beams that go on, and the captions that end.

    Attributes:
        sums: (N, K), of the beams that go on, best first.
        parents: (N, K), which beam each goes on from.
        words: (N, K), and with which word.
        ended: (N,) the best sum of a caption that ends here, -inf where none does.
        ended_beam: (N,) the beam that it is.
    """

    def __init__(self, totals: Tensor, num_beams: int, beams: int, end_id: int, forced: bool):
        vocabulary = totals.size(1) // beams
        # As many again as go on: at most one end for each beam can be among them.
        sums, places = totals.topk(min(2 * num_beams, totals.size(1)), dim=1)
        parents, words = places // vocabulary, places % vocabulary
        ends = words == end_id
        # What comes behind the last beam that goes on doesn't count, be it an end.
        counted = (~ends).cumsum(dim=1) < num_beams if not forced else torch.ones_like(ends)
        self.ended, first = sums.masked_fill(~(counted & (ends | forced)), float("-inf")).max(dim=1)
        self.ended_beam = parents.gather(1, first[:, None]).squeeze(1)
        going = ends.long().argsort(dim=1, stable=True)[:, : min(num_beams, beams * (vocabulary - 1))]
        self.sums, self.parents, self.words = (x.gather(1, going) for x in (sums, parents, words))

    def of(self, images: Tensor) -> "_Step":
        """The step of some images alone."""
        self.sums, self.parents, self.words = self.sums[images], self.parents[images], self.words[images]
        return self


def _note_ended(found: list[Caption], images: Tensor, words: Tensor, step: _Step, divisor: float) -> None:
    ended, beams = step.ended.tolist(), step.ended_beam.tolist()
    for row, image in enumerate(images.tolist()):
        score = ended[row] / divisor
        if score > found[image].score:
            found[image] = Caption(tuple(words[row, beams[row]].tolist()), score)
