"""The ten-annotator score, by hand and against the definition written out."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.data.answers import normalize_word, without_marks
from beit3_vqa.data.types import Prediction
from beit3_vqa.errors import InputError
from beit3_vqa.metrics.vqav2 import read_annotations, vqa_accuracy, vqav2_score


def ten(**counts):
    return [answer for answer, times in counts.items() for _ in range(times)]


@pytest.mark.parametrize(("agreeing", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)])
def test_vqa_accuracy_equals_the_published_table(agreeing, score):
    others = [f"other {i}" for i in range(10 - agreeing)]
    assert vqa_accuracy("cat", ["cat"] * agreeing + others) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "annotated", "score"),
    [
        ("The Cat.", ten(cat=10), 1),
        ("two", ten(**{"2": 9, "x": 1}), 1),
        ("2", ten(two=9, x=1), 0),  # annotators' number words stay as they are
        ("t-shirt", ["t-shirt"] * 10, 0),  # of one mind, so theirs keeps its mark, which the answer loses
        ("t-shirt", ["t-shirt"] * 9 + ["shirt"], 1),
        ("a\ncat", ["cat"] * 3 + ["dog"] * 7, 0.9),
    ],
)
def test_annotators_answers_are_processed_only_if_they_differ(answer, annotated, score):
    assert vqa_accuracy(answer, annotated) == pytest.approx(score)


answers = st.sampled_from(["cat", "a cat", "Cat", "cat.", "dog", "2", "two", "t-shirt", ""])


@given(answers, st.lists(answers, min_size=2, max_size=12))
def test_vqa_accuracy_is_the_mean_over_leaving_each_annotator_out(answer, annotated):
    given_answer = normalize_word(answer)
    theirs = [without_marks(a) for a in annotated] if len(set(annotated)) > 1 else annotated
    scores = []
    for left_out in range(len(theirs)):
        others = theirs[:left_out] + theirs[left_out + 1 :]
        scores.append(min(1.0, sum(other == given_answer for other in others) / 3))
    assert vqa_accuracy(answer, annotated) == pytest.approx(sum(scores) / len(scores))


def annotation(name, answers, **more):
    return {"question_id": name, "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(answers, 1)], **more}


def write(path, rows):
    path.write_text(json.dumps({"annotations": rows}))
    return path


def test_vqav2_score_by_answer_type_and_refusal_of_missing_or_doubled_ids(tmp_path):
    rows = [
        annotation(1, ["yes"] * 10, answer_type="yes/no"),
        annotation(2, ["3"] * 2 + ["4"] * 8, answer_type="number"),
        annotation(3, ["no"] * 10, answer_type="yes/no"),
    ]
    path = write(tmp_path / "annotations.json", rows)
    predictions = [Prediction(str(i), "q", a, {a: 1.0}) for i, a in ((3, "yes"), (2, "3"), (1, "yes"))]
    found = vqav2_score(predictions, read_annotations(path), path)
    assert found["accuracy"] == pytest.approx(100 * (1 + 0.6 + 0) / 3)
    assert found["by_type"]["yes/no"]["accuracy"] == 50
    assert found["by_type"]["number"]["questions"] == 1
    with pytest.raises(InputError, match=r"(?s)1 not predicted.*'1'"):
        vqav2_score(predictions[:2], read_annotations(path), path)
    doubled = read_annotations(write(path, [*rows, rows[0]]))
    with pytest.raises(InputError, match="1 doubled in it"):
        vqav2_score(predictions, doubled, path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "no list"),
        ({"annotations": []}, "no list"),
        ({"annotations": [3]}, "annotation 1: isn't an object"),
        ({"annotations": [{"question_id": None}]}, "question_id None"),
        ({"annotations": [{"question_id": True, "answers": []}]}, "question_id True"),
        ({"annotations": [{"question_id": 1, "answers": [{"answer": "x"}]}]}, "two or more"),
        ({"annotations": [{"question_id": 1, "answers": ["x", "y"]}]}, 'text "answer"'),
    ],
)
def test_bad_annotations_are_errors_that_say_what_is_wrong(tmp_path, content, says):
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=says):
        read_annotations(tmp_path / "a.json")
