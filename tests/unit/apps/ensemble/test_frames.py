"""Answers of several models in DataFrames, averaged."""

import numpy as np
import pandas as pd
import pytest

import beit3_vqa
from beit3_vqa.apps.ensemble.frames import average_frames
from beit3_vqa.errors import InputError

OPTIONS = {"ID": ["x", "y"], "answer": ["A", "B"], "probability": [0.6, 0.7]}
ONE = pd.DataFrame({**OPTIONS, "p_A": [0.6, 0.3], "p_B": [0.4, 0.7], "p_C": [np.nan, 0.0]}, index=[7, 3])
TWO = pd.DataFrame(
    {"answer": ["B", "B"], "probability": [0.9, 1.0], "p_A": [0.1, 0.0], "p_B": [0.9, 1.0], "p_C": [np.nan, 0.0]},
    index=[7, 3],
)


def test_options_get_their_mean_probabilities():
    mean = beit3_vqa.average_frames([ONE, TWO])
    assert list(mean["answer"]) == ["B", "B"]
    assert list(mean["probability"]) == pytest.approx([0.65, 0.85])
    assert list(mean["p_A"]) == pytest.approx([0.35, 0.15])
    assert np.isnan(mean["p_C"][7])
    assert list(mean["ID"]) == ["x", "y"]
    assert list(ONE["answer"]) == ["A", "B"]  # as it was


def test_an_even_vote_goes_to_the_first_option():
    one, two = (pd.DataFrame({"answer": [a], "p_A": [p], "p_B": [1 - p], "probability": [0.75]}) for a, p in
                (("A", 0.75), ("B", 0.25)))  # fmt: skip
    assert list(average_frames([two, one])["answer"]) == ["A"]


def test_open_ended_answers_count_as_nothing_where_a_model_does_not_hold_them():
    one = pd.DataFrame({"answer": ["teal"], "probability": [0.5], "answer_2": ["red"], "probability_2": [0.4]})
    two = pd.DataFrame({"answer": ["Red"], "probability": [0.3], "answer_2": ["blue"], "probability_2": [0.2]})
    mean = average_frames([one, two])
    assert list(mean["answer"]) == ["red"]  # in the spelling that came first
    assert list(mean["probability"]) == pytest.approx([0.35])
    assert list(mean.columns) == ["answer", "probability"]


def test_one_model_is_itself():
    pd.testing.assert_frame_equal(average_frames([ONE]), ONE)


def test_frames_of_other_rows_are_refused():
    with pytest.raises(InputError, match="different rows"):
        average_frames([ONE, TWO.reset_index()])
    with pytest.raises(InputError, match="one model at least"):
        average_frames([])
