"""Groups of rows in fixed proportions: none again before all, the same from anywhere, shared by several processes."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.dataset import IndexDataset, build_question
from beit3_vqa.data.loader import EpochBatches
from beit3_vqa.data.mixture import Group, JoinedDataset, count_draws
from beit3_vqa.errors import InputError

GROUPS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 20)), min_size=1, max_size=4)
LETTERS = AnswerTable(["A", "B"])


def made(sizes_and_draws):
    groups, start = [], 0
    for number, (size, draws) in enumerate(sizes_and_draws):
        groups.append(Group(str(number), torch.arange(start, start + size), draws))
        start += size
    return groups


def keys(groups, epoch=0, first=0, **how):
    batches = EpochBatches(0, how.pop("batch_size", 3), shuffle=True, groups=groups, **how)
    batches.epoch, batches.first = epoch, first
    return [key for batch in batches for key in batch]


@given(GROUPS, st.integers(0, 3), st.integers(0, 99))
def test_an_epoch_has_each_groups_draws(sizes, epoch, seed):
    groups = made(sizes)
    drawn = Counter(row for *_, row in keys(groups, epoch, seed=seed))
    for group in groups:
        assert sum(drawn[row] for row in group.rows.tolist()) == group.draws
    assert EpochBatches(0, 3, shuffle=True, groups=groups).rows == drawn.total()


@given(GROUPS, st.integers(0, 99))
def test_no_row_comes_again_before_all_of_its_group_have_come(sizes, seed):
    groups = made(sizes)
    stream = [row for epoch in range(4) for *_, row in keys(groups, epoch, seed=seed)]
    for group in groups:
        rows = set(group.rows.tolist())
        own = [row for row in stream if row in rows]
        for start in range(0, len(own), len(rows)):
            turn = own[start : start + len(rows)]
            assert len(set(turn)) == len(turn)


@given(GROUPS, st.integers(1, 4), st.integers(1, 3), st.integers(0, 2))
def test_processes_share_an_epoch_and_a_rest_is_the_same_from_any_step(sizes, processes, batch_size, epoch):
    groups = made(sizes)
    together = keys(groups, epoch, batch_size=batch_size * processes)
    shares = [keys(groups, epoch, batch_size=batch_size, of_rank=rank, of_size=processes) for rank in range(processes)]
    assert set().union(*shares) == set(together)
    # A process may get the first key of a last batch that has none for it; every other key has one owner.
    last = (len(together) - 1) // (batch_size * processes) * batch_size * processes
    owners = Counter(key for share in shares for key in share)
    assert all(owners[key] == 1 for key in together[:last])
    for first in range(0, len(together), batch_size * processes):
        assert keys(groups, epoch, first, batch_size=batch_size * processes) == together[first:]


def test_groups_come_mixed_and_anew_in_each_epoch():
    groups = made([(50, 50), (50, 50)])
    first, second = ([row for *_, row in keys(groups, epoch)] for epoch in range(2))
    assert 10 < sum(row < 50 for row in first[:50]) < 40
    assert first != second
    assert first != [row for *_, row in keys(groups, seed=1)]
    # Groups of one size aren't drawn in step.
    assert [row for row in first if row < 50] != [row - 50 for row in first if row >= 50]


@pytest.mark.parametrize(
    ("sizes", "shares", "once", "draws"),
    [
        ([100, 10], [1, 1], 1, [10, 10]),
        ([100, 10], [1, 1], 0, [100, 100]),
        ([100, 100, 10], [1, 2, 0.5], 2, [20, 40, 10]),
        ([100, 10], [1e-9, 1], 1, [1, 10]),
        ([100, 3], [0.5, 1], 1, [2, 3]),
    ],
)
def test_the_source_that_is_validated_on_is_seen_once(sizes, shares, once, draws):
    assert count_draws(sizes, shares, once) == draws


@pytest.mark.parametrize("share", [1e9, 1e308])
def test_an_epoch_that_is_too_long_is_an_error(share):
    with pytest.raises(InputError, match=r"--mix: .* examples would make an epoch"):
        count_draws([5, 10], [share, 1], 1)


def rows(name, count):
    fields = {"question": name, "choices": ["x", "y"]}
    return [{**fields, "id": str(i), "image_path": f"{name}.jpg", "answer": "AB"[i % 2]} for i in range(count)]


def test_sources_keep_their_rows_image_roots_and_randomness():
    def source(name, count):
        return IndexDataset(
            rows(name, count),
            lambda row, _: build_question(row, LETTERS),
            Path(f"/{name}"),
            lambda _, rng: {"noise": rng and rng.random()},
            training=True,
        )

    parts = [source("one", 3), source("two", 1), source("three", 2)]
    joined = JoinedDataset(parts)
    assert len(joined) == 6
    found = [joined.example(index) for index in range(6)]
    assert [(e.question, e.id) for e in found] == [
        ("one", "0"), ("one", "1"), ("one", "2"), ("two", "0"), ("three", "0"), ("three", "1"),
    ]  # fmt: skip
    assert {e.image_path for e in found} == {"/one/one.jpg", "/two/two.jpg", "/three/three.jpg"}
    assert joined[2, 7, 4] == parts[2][2, 7, 0]
    assert joined.without_image(3, "gone") == parts[1].without_image(0, "gone")
    assert joined.balancing_weights(1).tolist() == [1 / 4, 1 / 2, 1 / 4, 1 / 4, 1 / 4, 1 / 2]
