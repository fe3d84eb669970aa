"""The queue before the model."""

import threading
import time

import pytest

from beit3_vqa.apps.serve import batching
from beit3_vqa.apps.serve.batching import Batcher, Overloaded


def test_waiting_items_are_answered_together_each_with_its_own_result():
    batches = []

    def square(items):
        batches.append(items)
        time.sleep(0.02)
        return [item * item for item in items]

    with Batcher(square, lambda item: item % 2, most=4, window=0.2) as batcher:
        futures = [batcher.submit(item) for item in range(20)]
        assert [future.result(10) for future in futures] == [item * item for item in range(20)]
    assert sorted(map(len, batches)) == [2, 2, 4, 4, 4, 4]
    assert all(len({item % 2 for item in batch}) == 1 for batch in batches)
    assert batches[0] == [0, 2, 4, 6]  # of the first one's kind, in the order they came


def test_a_single_item_waits_no_longer_than_the_window():
    with Batcher(list, lambda item: None, most=8, window=0.05) as batcher:
        started = time.monotonic()
        assert batcher.submit(1).result(10) == 1
        assert 0.04 < time.monotonic() - started < 5


def test_an_item_that_fails_does_not_fail_its_batch():
    def divide(items):
        return [10 / item for item in items]

    with Batcher(divide, lambda item: None, most=4, window=0.2) as batcher:
        futures = [batcher.submit(item) for item in (1, 0, 5, 2)]
        with pytest.raises(ZeroDivisionError):
            futures[1].result(10)
        assert [futures[place].result(10) for place in (0, 2, 3)] == [10, 2, 5]
        assert batcher.submit(4).result(10) == 2.5  # and the thread lives on


@pytest.mark.parametrize(("waiting", "says"), [(1, "1 question is waiting"), (3, "3 questions are waiting")])
def test_a_full_queue_refuses_and_waiting_items_are_answered_at_the_end(waiting, says):
    started, go_on = threading.Event(), threading.Event()

    def slow(items):
        started.set()
        assert go_on.wait(10)
        return items

    with Batcher(slow, lambda item: None, most=1, window=0, waiting=waiting) as batcher:
        futures = [batcher.submit(0)]
        assert started.wait(10)
        futures += [batcher.submit(item) for item in range(1, waiting + 1)]
        with pytest.raises(Overloaded, match=says):
            batcher.submit(4)
        futures[-1].cancel()
        go_on.set()
    assert [future.result(0) for future in futures if not future.cancelled()] == list(range(waiting))
    with pytest.raises(Overloaded, match="stopped"):
        batcher.submit(5)


def test_when_nothing_comes_after_work_freed_memory_is_given_back_once(monkeypatch):
    given_back = []
    monkeypatch.setattr(batching, "REST_SECONDS", 0.05)
    monkeypatch.setattr(batching, "give_back_freed_memory", lambda: given_back.append(time.monotonic()))
    with Batcher(list, lambda item: None, window=0) as batcher:
        time.sleep(0.2)
        assert not given_back  # nothing was computed, so nothing was freed
        for count in (1, 2):
            assert batcher.submit(count).result(10) == count
            for _ in range(200):
                if len(given_back) == count:
                    break
                time.sleep(0.05)
            time.sleep(0.2)
            assert len(given_back) == count
