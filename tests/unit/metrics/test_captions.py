"""Scores of captions are pycocoevalcap's own, and a file of references is checked."""

import contextlib
import io
import json
import shutil

import pytest

from beit3_vqa.errors import InputError
from beit3_vqa.metrics.captions import read_references, score_captions, tokenize

pytest.importorskip("pycocoevalcap")
REFERENCES = {
    "1": ["A man, riding a horse.", "The man's horse is brown!"],
    "2": ["Two cats (black ones) sleep on a sofa", "two sleeping cats - on the couch"],
    "3": ["a plate of food; with rice", "Rice, beans & meat on a plate"],
}
CAPTIONS = {"1": "a man riding a brown horse", "2": "two black cats sleep on a couch.", "3": "a train at a station"}
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")


@pytest.mark.slow  # METEOR alone takes half a minute
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # pycocoevalcap's METEOR leaves pipes open
@needs_java
def test_scores_equal_cocoevalcap(tmp_path):
    from pycocoevalcap.eval import COCOEvalCap
    from pycocotools.coco import COCO

    annotations = [
        {"image_id": int(image), "id": 10 * int(image) + n, "caption": text}
        for image, texts in REFERENCES.items()
        for n, text in enumerate(texts)
    ]
    content = {"images": [{"id": int(image)} for image in REFERENCES], "annotations": annotations}
    (tmp_path / "gt.json").write_text(json.dumps(content))
    results = [{"image_id": int(image), "caption": text} for image, text in CAPTIONS.items()]
    (tmp_path / "results.json").write_text(json.dumps(results))
    references = read_references(tmp_path / "gt.json")
    assert references == REFERENCES
    ours = score_captions(CAPTIONS, references, meteor=True)
    assert ours.pop("tokenizer") == "ptb"
    with contextlib.redirect_stdout(io.StringIO()), pytest.MonkeyPatch.context() as patch:
        patch.setattr("pycocoevalcap.eval.Spice", _NoSpice)  # it would download its models
        gold = COCO(str(tmp_path / "gt.json"))
        evaluation = COCOEvalCap(gold, gold.loadRes(str(tmp_path / "results.json")))
        evaluation.evaluate()
    for name, score in ours.items():
        assert score == pytest.approx(100 * evaluation.eval[name]), name
    assert set(ours) == set(evaluation.eval) - {"SPICE"}


class _NoSpice:
    def method(self):
        return "SPICE"

    def compute_score(self, gts, res):
        return 0.0, [0.0] * len(gts)


def test_without_java_words_are_split_plainly_and_meteor_is_left_out(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert tokenize(["A man's horse, (brown)!", "", "two\nlines"]) == (
        ["a man's horse brown", "", "two lines"],
        "plain",
    )
    scores = score_captions(CAPTIONS, REFERENCES, meteor=True)
    assert scores["tokenizer"] == "plain"
    assert "METEOR" not in scores
    perfect = score_captions({image: texts[0] for image, texts in REFERENCES.items()}, REFERENCES)
    assert perfect["Bleu_4"] == pytest.approx(100, abs=1e-3)
    assert perfect["CIDEr"] > scores["CIDEr"]


def test_a_failing_java_prints_a_note_and_words_are_split_plainly(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: "false")
    assert tokenize(["A cat."]) == (["a cat"], "plain")
    assert "Java's tokenizer failed" in capsys.readouterr().out


def test_an_image_without_a_reference_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="no reference caption for image 7"):
        score_captions({"1": "a", "7": "b"}, REFERENCES)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[", "isn't JSON"),
        ("[1]", 'no list "annotations"'),
        ('{"annotations": [{"image_id": 1, "caption": "a"}, {"caption": "b"}, 7]}', "annotation 2: must have"),
        ('{"annotations": [{"image_id": true, "caption": "a"}]}', "annotation 1"),
        ('{"annotations": [{"image_id": 1, "caption": null}]}', "annotation 1"),
    ],
)
def test_bad_reference_files_are_errors_that_say_what_is_wrong(tmp_path, content, says):
    (tmp_path / "gt.json").write_text(content)
    with pytest.raises(InputError, match=says):
        read_references(tmp_path / "gt.json")
