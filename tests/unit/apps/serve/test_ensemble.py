"""Who answers: many questions at once as each alone, two families, an ensemble."""

import string
from pathlib import Path

import pytest

from beit3_vqa.apps.serve.ensemble import Ensemble
from beit3_vqa.apps.serve.replies import describe
from beit3_vqa.errors import InputError
from tests.helpers.serve_client import CHOICES

TEXTS = [f"o{place}" for place in range(12)]


def questions(ensemble, images: list[Path], attention: bool, options: int = 4):
    """Of different images and lengths."""
    return [
        ensemble.prepare(
            path, "What " + "really " * place + "is this?", TEXTS[place : place + options], attention=attention
        )
        for place, path in enumerate(images)
    ]


def numbers(answer) -> list[float]:
    """Everything an answer says."""
    patches = [share for seen in answer.attention for share in seen.patches.flatten().tolist()]
    return [*answer.probabilities.values(), *patches]


@pytest.mark.parametrize("attention", [False, True])
def test_batched_answers_equal_single_ones(ensemble, clip, scpc, attention):
    images = sorted((scpc / "images").iterdir())[:7]
    both = Ensemble([*ensemble.predictors, clip])
    for ensemble_ in (ensemble, both):
        asked = questions(ensemble_, images, attention)
        together = ensemble_.answer(asked)
        for answer, one in zip(together, asked, strict=True):
            (alone,) = ensemble_.answer([one])
            assert numbers(answer) == pytest.approx(numbers(alone), abs=1e-5)
            assert answer.answer == alone.answer
            assert len(answer.attention) == attention * len(ensemble_.predictors)


def test_ensemble_answers_with_the_mean_of_its_members(ensemble, clip, photograph):
    both = Ensemble([*ensemble.predictors, clip])
    (answer,) = both.answer([both.prepare(photograph, "What is it?", CHOICES, attention=False)])
    each = [one.predict(photograph, "What is it?", CHOICES).probabilities for one in both.predictors]
    mean = {letter: (each[0][letter] + each[1][letter]) / 2 for letter in "ABCD"}
    assert answer.probabilities == pytest.approx(mean)
    assert each[0] != pytest.approx(each[1])
    assert answer.answer == max(mean, key=mean.__getitem__)
    assert both.option_counts == range(4, 5)
    assert [model.model for model in describe(both).models] == ["beit3_tiny_patch8_32", "clip_vit_tiny_patch8_32_lora"]


def test_clip_takes_two_to_ten_options(clip, photograph):
    assert clip.option_counts == range(2, 11)
    full = clip.predict(photograph, "What is it?", TEXTS[:10]).probabilities
    assert list(full) == list(string.ascii_uppercase[:10])
    pair = clip.predict(photograph, "What is it?", TEXTS[:2]).probabilities
    # Option by option: what isn't offered leaves the ratio of the others as it was.
    assert pair["A"] / pair["B"] == pytest.approx(full["A"] / full["B"], rel=1e-4)
    assert clip.components.task.num_classes == 4  # it stays what it was
    for wrong in (1, 11):
        with pytest.raises(InputError, match=f"among 2 to 10 options; {wrong} were given"):
            clip.predict(photograph, "What is it?", TEXTS[:wrong])


def test_a_head_takes_as_many_options_as_it_was_trained_with(ensemble, photograph):
    assert ensemble.option_counts == range(4, 5)
    for wrong in (2, 3, 5):
        with pytest.raises(InputError, match=f"among 4 options; {wrong} were given"):
            ensemble.prepare(photograph, "What is it?", TEXTS[:wrong], attention=False)


def test_questions_of_different_kinds_are_not_batched_together(clip, photograph):
    ensemble = Ensemble([clip])
    kinds = {
        ensemble.prepare(photograph, "What?", TEXTS[:count], attention=attention).kind
        for count in (2, 3)
        for attention in (False, True)
    }
    assert len(kinds) == 4


def test_several_open_ended_models_are_refused(ensemble):
    with pytest.raises(InputError, match="multiple-choice questions only"):
        Ensemble([ensemble.predictors[0], _OpenEnded()])
    with pytest.raises(InputError, match=r"different numbers of options \(4, 5\)"):
        Ensemble([ensemble.predictors[0], _Five()])


class _OpenEnded:
    option_counts = range(0)


class _Five:
    option_counts = range(5, 6)
