"""An option says which values it may have, and so does its error."""

from dataclasses import dataclass
from typing import Literal

import pytest

from beit3_vqa.errors import InputError
from beit3_vqa.runtime.fields import Options, option, typed

Size = int | Literal["auto"]


@dataclass(frozen=True)
class Example(Options):
    share: float = option(0.5, "in [0, 1)", low=0, below=1)
    rate: float | None = option(None, "in (0, 1e6]", above=0, high=1e6)
    size: Size = option(8, "a number or a word", low=1, high=1e6)
    seed: int = option(0, "with one bound", low=0)
    way: str | None = option(None, "a choice", choices=("up", "down"))
    ways: tuple[str, ...] = option(("up",), "several choices", choices=("up", "down"))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("share", 1.0, "--share 1.0: must be at least 0 and less than 1."),
        ("share", -0.1, "--share -0.1: must be at least 0 and less than 1."),
        ("share", float("nan"), "--share nan: must be at least 0 and less than 1."),
        ("rate", 0, "--rate 0: must be more than 0 and at most 1,000,000."),
        ("rate", 1000001, "--rate 1000001: must be more than 0 and at most 1,000,000."),
        ("size", 0, "--size 0: must be at least 1 and at most 1,000,000, or auto."),
        ("size", 10**40, "--size with 133 bits: must be at least 1 and at most 1,000,000, or auto."),
        ("seed", -1, "--seed -1: must be at least 0."),
        ("way", "uq", "--way uq: must be one of up, down. Did you mean 'up'?"),
        ("way", "", "--way : must be one of up, down."),
        ("ways", ("up", "dwn"), "--ways dwn: must be one of up, down. Did you mean 'down'?"),
    ],
)
def test_a_value_out_of_bounds_is_an_error_that_names_the_bounds(name, value, says):
    with pytest.raises(InputError) as caught:
        Example(**{name: value})
    assert str(caught.value) == says


def test_inclusive_bounds_are_accepted():
    assert Example(share=0, rate=1e6, size=1, way="up") == Example(0, 1e6, 1, 0, "up")
    assert Example(size="auto").size == "auto"
    assert Example(rate=None, way=None) == Example()


def test_only_the_options_own_words_are_accepted():
    assert [typed(value, Size, "x") for value in ("auto", 0, 3)] == ["auto", 0, 3]
    for value in ("some", None, True, 1.5, []):
        with pytest.raises(InputError, match=r"^x can't be .*; expected int or auto\.$"):
            typed(value, Size, "x")


@pytest.mark.parametrize("value", [(10**400, 0.9), (True, 0.9), ("0.9", 0.9)])
def test_tuple_takes_numbers_that_a_float_can_hold_and_nothing_else(value):
    assert typed((1, 0.5), tuple[float, ...], "x") == (1.0, 0.5)
    with pytest.raises(InputError, match="x can't be"):
        typed(value, tuple[float, ...], "x")
