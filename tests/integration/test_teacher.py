"""--teacher: a model learns from the probabilities of another, beside the answers."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from beit3_vqa.cli.main import main
from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.dataset import permute_choices
from beit3_vqa.data.fingerprint import FingerprintMaker
from beit3_vqa.data.predictions import write_predictions
from beit3_vqa.data.types import Batch, Example, Prediction
from beit3_vqa.tasks.vqa import VQACustom
from beit3_vqa.tasks.vqa_rank import VQARank
from tests.faults.kills import differences
from tests.helpers.commands import finetune
from tests.helpers.options import build_config

SHARES = (0.1, 0.6, 0.2, 0.1)
EXAMPLE = Example("0", "a.jpg", "What?", ("w", "x", "y", "z"), "A", ((0, 1.0),), teacher=tuple(enumerate(SHARES)))


def losses(logits, *examples, kind=VQACustom, **options):
    task = kind(AnswerTable(list("ABCD")), build_config(options))
    return task.loss(logits, task.attach_targets(Batch({}, examples), [])).item()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_loss_is_cross_entropy_and_the_divergence_from_the_teacher_in_the_asked_shares(temperature):
    logits = np.array([[2.0, -1.0, 0.5, 0.0]])
    teacher = softmax(np.log(SHARES) / temperature)
    divergence = temperature**2 * rel_entr(teacher, softmax(logits[0] / temperature)).sum()
    entropy = -np.log(softmax(logits[0])[0])
    for weight in (0.25, 1.0):
        found = losses(torch.tensor(logits), EXAMPLE, teacher_weight=weight, teacher_temperature=temperature)
        assert found == pytest.approx((1 - weight) * entropy + weight * divergence, abs=1e-6)


@pytest.mark.parametrize("kind", [VQACustom, VQARank])
def test_a_model_that_says_what_its_teacher_says_has_nothing_to_learn(kind):
    logits = torch.tensor([SHARES]).log() + 3.0
    shown = logits.view(-1, 1) if kind is VQARank else logits
    assert losses(shown, EXAMPLE, kind=kind, teacher_weight=1.0) == pytest.approx(0, abs=1e-6)


def test_without_a_teacher_the_loss_is_what_it_was():
    logits = torch.randn(2, 4)
    plain = replace(EXAMPLE, teacher=())
    assert losses(logits, plain, plain) == losses(logits, plain, plain, teacher_weight=1.0, teacher_temperature=9.0)


def test_options_that_a_question_does_not_have_are_learned_from_no_teacher():
    few = replace(EXAMPLE, choices=("w", "x"), teacher=((0, 0.25), (1, 0.75)))
    logits = torch.tensor([[0.25, 0.75, 9.0, 9.0], *torch.zeros(1, 4).tolist()])
    logits[0, :2] = logits[0, :2].log()
    full = replace(EXAMPLE, teacher=tuple(enumerate([0.25] * 4)))
    assert losses(logits, few, full, teacher_weight=1.0) == pytest.approx(0, abs=1e-6)


def test_the_teachers_probabilities_move_with_the_options():
    moved = permute_choices(EXAMPLE, random.Random(3))
    assert moved.choices != EXAMPLE.choices
    said = dict(zip(EXAMPLE.choices, SHARES, strict=True))
    assert {moved.choices[label]: share for label, share in moved.teacher} == said


def test_another_teacher_is_another_fingerprint():
    found = []
    for example in (EXAMPLE, replace(EXAMPLE, teacher=((0, 1.0),))):
        maker = FingerprintMaker()
        list(maker.watch([example]))
        found.append(maker.done())
    assert found[0].order == found[1].order
    assert found[0].digest != found[1].digest


def test_answers_that_only_the_teacher_knows_are_left_out_and_counted(tmp_path, capsys):
    said = [
        Prediction("0", "What?", "cat", {"cat": 0.5, "cow": 0.25, "dog": 0.25}),
        Prediction("1", "What?", "dog", {"cat": 0.5, "dog": 0.5}),
    ]
    path = write_predictions(said, tmp_path / "teacher.json")
    task = VQACustom(AnswerTable(["cat", "dog"]), build_config({"teacher": str(path)}))
    rows = [{"id": name, "question": "What?", "answer": "cat", "image_path": "a.jpg"} for name in "01"]
    example = task._taught(rows)(rows[0], 0)
    assert example.teacher == ((0, 0.5), (1, 0.25))
    assert "1 row with answers that answer2label.txt lacks" in capsys.readouterr().out


@pytest.fixture(scope="module")
def taught(scpc, trained, tmp_path_factory):
    """The predictions of a trained model for its training rows."""
    folder = tmp_path_factory.mktemp("teacher")
    command = ["--eval", "--split", "train", "--resume", str(trained / "checkpoint-best.pth")]
    assert main(finetune(scpc, folder, *command)) == 0
    return folder / "predictions_train.json"


def test_a_student_comes_nearer_to_its_teacher_and_resumes_bit_for_bit(scpc, taught, tmp_path):
    flags = ["--teacher", str(taught), "--teacher_weight", "1", "--epochs", "3", "--lr", "1e-3", "--drop_path", "0"]
    assert main(finetune(scpc, tmp_path / "whole", *flags)) == 0
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.txt").read_text().splitlines()]
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    for more in (["--stop_after_epochs", "2"], []):
        assert main(finetune(scpc, tmp_path / "out", *flags, *more)) == 0
    ours, theirs = (torch.load(tmp_path / name / "checkpoint-2.pth") for name in ("out", "whole"))
    ours["args"] = theirs["args"] = None
    assert differences(ours, theirs) == []


@pytest.mark.slow
def test_a_changed_teacher_is_told_when_the_run_goes_on(scpc, taught, tmp_path, capsys):
    teacher = tmp_path / "teacher.json"
    teacher.write_text(taught.read_text())
    command = ["--teacher", str(teacher), "--epochs", "2"]
    assert main(finetune(scpc, tmp_path / "out", *command, "--stop_after_epochs", "1")) == 0
    rows = json.loads(taught.read_text())
    letters = "ABCD"
    rows[0]["probabilities"] = {letter: float(letter == rows[0]["answer"]) for letter in letters}
    teacher.write_text(json.dumps(rows))
    capsys.readouterr()
    assert main(finetune(scpc, tmp_path / "out", *command)) == 0
    assert "train: 1 changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "flags", "says"),
    [
        (lambda rows: rows.pop(), [], "isn't there"),
        (lambda rows: rows[0].update(choices=rows[0]["choices"][::-1]), [], "has another list of options there"),
        (lambda rows: rows[0].update(question="Who?"), [], "has another question there"),
        (lambda rows: rows[0].update(image="other.jpg"), [], "has another image there"),
        (lambda rows: None, ["--vqa_loss", "bce"], "--teacher needs --vqa_loss ce"),
        (lambda rows: rows[0].update(probabilities={"A": 2.0}), [], "probabilities must be"),
        (lambda rows: None, ["--teacher_weight", "0"], "teacher_weight"),
        (lambda rows: None, ["--teacher_temperature", "nan"], "teacher_temperature"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_error_before_training(scpc, taught, tmp_path, change, flags, says, capsys):
    rows = json.loads(taught.read_text())
    change(rows)
    (tmp_path / "teacher.json").write_text(json.dumps(rows))
    command = ["--teacher", str(tmp_path / "teacher.json"), "--epochs", "1", *flags]
    assert main(finetune(scpc, tmp_path / "out", *command)) == 2
    assert says in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.pth"))
