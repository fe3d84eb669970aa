import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.data.tokenizer import mask_words

MASK, SIZE = 151, 152


@given(st.lists(st.integers(3, 150), max_size=40), st.floats(0.01, 1), st.integers())
def test_masking_chooses_the_right_number_of_tokens_and_never_the_first(words, probability, seed):
    ids = [0, *words, 2]
    masked, places = mask_words(ids, random.Random(seed), probability, MASK, SIZE)
    assert mask_words(ids, random.Random(seed), probability, MASK, SIZE) == (masked, places)
    assert len(places) == min(max(1, int(len(ids) * probability + 0.5)), len(ids) - 1)
    assert places == sorted(set(places))
    assert min(places) >= 1
    assert masked[0] == 0
    assert len(masked) == len(ids)
    assert all(masked[place] == ids[place] for place in set(range(len(ids))) - set(places))
    assert all(3 <= token < SIZE for place in places for token in [masked[place]] if token != ids[place])


def test_masked_kept_and_random_words_have_berts_shares():
    rng, kinds, ended = random.Random(0), Counter(), 0
    ids = [0, *[7] * 20, 2]
    for _ in range(500):
        masked, places = mask_words(ids, rng, 0.6, MASK, SIZE)
        ended += ids.index(2) in places
        for place in places:
            kinds["mask" if masked[place] == MASK else "same" if masked[place] == ids[place] else "other"] += 1
    total = sum(kinds.values())
    assert kinds["mask"] / total == pytest.approx(0.8, abs=0.02)
    assert kinds["same"] / total == pytest.approx(0.1, abs=0.02)
    assert kinds["other"] / total == pytest.approx(0.1, abs=0.02)
    assert ended / 500 == pytest.approx(13 / 21, abs=0.1)  # </s> is masked as often as any word
