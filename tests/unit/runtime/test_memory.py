"""Copies in main memory: equal, apart from what they were made of, and no larger."""

import gc
import weakref

import pytest
import torch

from beit3_vqa.runtime import memory
from beit3_vqa.runtime.memory import copy_to_main, count_bytes, has_room_for


@pytest.fixture
def content():
    whole = torch.arange(12.0).view(3, 4)
    state = {0: {"step": torch.tensor(3.0), "moment": whole[1:].t()}}
    groups = ([1, "two", None], (True, whole))
    return {"model": {"weight": whole, "empty": torch.zeros(0)}, "state": state, "groups": groups}


def test_a_copy_stays_as_it_is_when_the_original_changes(content):
    copy = copy_to_main(content)
    content["model"]["weight"].zero_()
    content["groups"][0].append(4)
    weight = torch.arange(12.0).view(3, 4)
    assert torch.equal(copy["model"]["weight"], weight)
    assert torch.equal(copy["state"][0]["moment"], weight[1:].t())
    assert copy["state"][0]["moment"].stride() == (1, 4)
    assert copy["model"]["empty"].shape == (0,)
    assert copy["state"][0]["step"] == 3
    assert copy["groups"][0] == [1, "two", None]
    assert copy["groups"][1][0] is True


def test_a_tensor_in_two_places_is_copied_and_counted_once(content):
    copy = copy_to_main(content)
    assert copy["groups"][1][1] is copy["model"]["weight"]
    assert count_bytes(content) == count_bytes(copy) == (12 + 8 + 1) * 4


def test_a_copy_is_freed_with_its_last_name(content):
    copy = copy_to_main(content)
    weight = weakref.ref(copy["model"]["weight"])
    gc.disable()  # gigabytes can't wait for the garbage collector
    try:
        del copy
        assert weight() is None
    finally:
        gc.enable()


def test_there_is_room_for_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda _device: 100)
    sizes = {"VmHWM": 70, "VmRSS": 50}
    monkeypatch.setattr(memory, "_status", sizes.__getitem__)
    assert has_room_for(80)
    assert not has_room_for(81)  # 20 were in use before, and may be again
    monkeypatch.setattr(memory, "can_measure", lambda _device: False)
    assert has_room_for(81)
