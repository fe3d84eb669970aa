"""Questions in several wordings: read from tables, drawn in training, averaged by `--tta questions`."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import beit3_vqa
from beit3_vqa.cli.main import main
from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.dataset import IndexDataset, build_question
from beit3_vqa.data.fingerprint import FingerprintMaker, compare
from beit3_vqa.data.predictions import read_predictions
from beit3_vqa.data.rows import read_rows, write_rows
from beit3_vqa.data.types import Example, Prediction
from beit3_vqa.engine.evaluator import _check
from beit3_vqa.errors import InputError
from beit3_vqa.metrics.robustness import averaged, order_metrics
from beit3_vqa.preparation.columns import find_columns
from beit3_vqa.preparation.table import Arguments, read
from beit3_vqa.preparation.writer import PrepareOptions
from beit3_vqa.tasks.nlvr2 import NLVR2
from beit3_vqa.tasks.vqa import VQACustom
from tests.faults.kills import differences
from tests.helpers.commands import evaluate_on, finetune
from tests.helpers.photographs import SUBJECTS

KOREAN = "이 사진에 무엇이 있나요?"
HEADER = ["img", "question", "question_2", "question_3", "A", "B", "answer"]


def table_rows(path, text, **values):
    path.write_text(text, encoding="utf-8")
    prepared = read(Arguments(train=str(path), **values), PrepareOptions("out", "images"))
    assert prepared.problems == []
    return prepared.splits["train"], prepared.notes


# Tables


def test_numbered_columns_are_wordings_and_blank_cells_and_repeats_are_none(tmp_path):
    lines = [
        "Img,Question,Question_3,QUESTION 2,A,B,answer",
        "a,q1,third,second,x,y,A",
        "a,q1,, ,x,y,B",
        "a,q,q,w,x,y,A",
    ]
    rows, notes = table_rows(tmp_path / "t.csv", "\n".join(lines))
    assert [row.get("wordings") for row in rows] == [["second", "third"], None, ["w"]]
    assert "wordings" not in rows[1]
    assert [row["question"] for row in rows] == ["q1", "q1", "q"]
    assert "train: 2 rows with more than one wording of the question" in notes
    assert any("question=Question,QUESTION 2,Question_3" in note for note in notes)


def test_a_list_in_the_cell_of_the_question_is_its_wordings(tmp_path):
    items = [{"image": "a", "question": ["q1", " ", KOREAN], "A": "x", "B": "y", "answer": "A"}]
    items += [{"image": "a", "question": "q2", "question_2": ["w", "v"], "A": "x", "B": "y", "answer": "B"}]
    rows, _ = table_rows(tmp_path / "t.jsonl", "\n".join(map(json.dumps, items)))
    assert [(row["question"], row.get("wordings")) for row in rows] == [("q1", [KOREAN]), ("q2", ["w", "v"])]


def test_wordings_are_said_by_hand_as_the_first_column_and_the_last():
    header = ["img", "q_en", "q_ko", "q_ja", "answer"]
    found = find_columns(header, "t.csv:1", "question=q_en:q_ja")
    assert (found.places["question"], found.wordings, found.ignored) == (1, (2, 3), ())
    assert find_columns(header, "t.csv:1", "question=q_en").wordings == ()
    header = ["img", "Question_1", "Question_2", "answer"]
    assert find_columns(header, "t.csv:1", "question=Question_1").wordings == (2,)
    with pytest.raises(InputError, match="question=q_ja:q_en: must lead from the first wording to the last"):
        find_columns(["img", "q_en", "q_ja", "answer"], "t.csv:1", "question=q_ja:q_en")


def test_two_columns_of_one_number_are_an_error_that_asks():
    with pytest.raises(InputError, match="'Question_2' and 'question 2' may both be wording 2 of the question"):
        find_columns(["img", "Question", "Question_2", "question 2", "answer"], "t.csv:1")


def test_an_empty_question_is_an_error_whatever_its_other_wordings(tmp_path):
    (tmp_path / "t.csv").write_text("img,question,question_2,A,B,answer\na,,w,x,y,A\n")
    prepared = read(Arguments(train=str(tmp_path / "t.csv")), PrepareOptions("out", "images"))
    assert "question is empty" in prepared.problems[0]


@pytest.mark.parametrize("wordings", ["text", [""], [3], {"a": "b"}, None])
def test_an_index_with_other_wordings_is_refused(tmp_path, wordings):
    row = {"id": "1", "image_path": "a.jpg", "question": "q", "wordings": wordings}
    (tmp_path / "i.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"i\.jsonl:1: wordings must be a list of texts"):
        read_rows(tmp_path / "i.jsonl")


# Draws


def dataset(wordings, seed=0, *, training=True):
    rows = [
        {"id": f"r{i}", "image_path": "x", "question": "q", "answer": "A", "choices": ["x", "y"]} for i in range(40)
    ]
    rows = [row | ({"wordings": wordings} if wordings and number % 2 else {}) for number, row in enumerate(rows)]
    table = AnswerTable(["A", "B"])
    return IndexDataset(
        rows,
        lambda row, place: build_question(row, table),
        Path(),
        lambda example, rng: {"noise": rng.random() if rng else None, "text": example.question},
        training=training,
        shuffle_choices=True,
        seed=seed,
    )


def drawn(wordings, epoch, seed=0, draws=range(40)):
    made = dataset(wordings, seed)
    return [made[epoch, draw, row] for row, draw in enumerate(draws)]


def texts(items):
    return [tensors["text"] for _, tensors in items]


def test_each_epoch_draws_by_seed_epoch_and_row_alone():
    first = texts(drawn(["v", "w"], 0))
    assert texts(drawn(["v", "w"], 0, draws=reversed(range(40)))) == first
    assert texts(drawn(["v", "w"], 1)) != first != texts(drawn(["v", "w"], 0, seed=1))
    many = [text for epoch in range(60) for text in texts(drawn(["v", "w"], epoch))[1::2]]
    assert all(340 < many.count(text) < 460 for text in "qvw")  # of 1,200
    assert first[::2] == ["q"] * 20


def test_rows_of_one_wording_are_what_they_would_be_without_the_others():
    with_others, without = drawn(["v"], 2), drawn([], 2)
    assert with_others[::2] == without[::2]
    for (one, tensors), (other, same) in zip(with_others, without, strict=True):
        assert one.choices == other.choices  # shuffled, and images augmented, by a generator that wordings don't touch
        assert tensors["noise"] == same["noise"]


def test_evaluation_asks_the_first_wording():
    made = dataset(["v"], training=False)
    assert [made[7, 0, row][1]["text"] for row in range(40)] == ["q"] * 40


def test_fingerprints_know_other_wordings_as_changed_rows_that_ask_the_same():
    made = []
    for wordings in ((), ("v",), ("w",)):
        maker = FingerprintMaker()
        rows = [Example("1", "a", "q", wordings=wordings), Example("2", "a", "r")]
        list(maker.watch(rows))
        made.append(maker.done())
    for one, two in ((0, 1), (1, 2)):
        changes = compare(made[one], made[two])
        assert (changes.added, changes.removed, changes.changed) == (0, 0, 1)
        assert made[one].order == made[two].order


# Whole runs


@pytest.fixture(scope="module")
def folder(scpc, tmp_path_factory):
    """A prepared folder with one to three wordings of each question, and what one run of two epochs made of it."""
    home = tmp_path_factory.mktemp("wordings")
    names = sorted(path.name for path in (scpc / "images").iterdir())[:6]
    for split, count in (("train", 12), ("val", 8)):
        with (home / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(HEADER)
            for number in range(count):
                words = ["What is it?", "Which thing is on the left?", KOREAN][: 1 + number % 3]
                words += [""] * (3 - len(words))
                options = [SUBJECTS[number % 6], SUBJECTS[(number + 1) % 6]]
                writer.writerow([names[number % 6], *words, *options[:: 1 - number % 2 * 2], "AB"[number % 2]])
    command = ["prepare", "table", "--train", str(home / "train.csv"), "--val", str(home / "val.csv")]
    command += ["--image_root", str(scpc / "images"), "--data_path", str(home / "data"), "--train_tokenizer", "300"]
    assert main(command) == 0
    assert main(finetune(home, home / "out", *FLAGS)) == 0
    return home


FLAGS = ["--epochs", "2", "--drop_path", "0.2", "--shuffle_choices"]


def test_check_and_tokenizer_see_every_wording(folder):
    found = json.loads((folder / "data" / "check.json").read_text(encoding="utf-8"))
    assert found["texts"]["scripts"]["Hangul"]["words"] == 6 * len(KOREAN.split())
    assert found["texts"]["scripts"]["Hangul"]["unknown_words"] == 0
    rows = list(read_rows(folder / "data" / "vqacustom.train.jsonl"))
    assert [1 + len(row.get("wordings", ())) for row in rows] == [1, 2, 3] * 4


def test_a_run_that_is_stopped_and_resumed_draws_the_same_wordings(folder, tmp_path):
    out = tmp_path / "out"
    assert main(finetune(folder, out, *FLAGS, "--stop_after_epochs", "1")) == 0
    assert main(finetune(folder, out, *FLAGS)) == 0
    contents = []
    for run in (folder / "out", out):
        contents.append(torch.load(run / "checkpoint-1.pth"))
        contents[-1]["args"] = None
    assert differences(*contents) == []


@pytest.mark.slow
def test_without_the_other_wordings_weights_are_others_and_a_run_says_what_has_changed(folder, tmp_path, capsys):
    other = tmp_path / "one"
    shutil.copytree(folder / "data", other / "data")
    path = other / "data" / "vqacustom.train.jsonl"
    write_rows(path, [{k: v for k, v in row.items() if k != "wordings"} for row in list(read_rows(path))])
    flags = ["--image_root", json.loads((folder / "data" / "dataset.json").read_text())["image_root"]]
    assert main(finetune(other, other / "out", *FLAGS, *flags)) == 0
    ours, theirs = (torch.load(home / "out" / "checkpoint-1.pth")["model"] for home in (folder, other))
    assert differences(ours, theirs)
    shutil.copytree(folder / "out", tmp_path / "out")
    capsys.readouterr()
    assert main(finetune(other, tmp_path / "out", *FLAGS, *flags, "--epochs", "3")) == 0
    assert "8 changed" in capsys.readouterr().out


@pytest.fixture(scope="module")
def model(folder):
    return beit3_vqa.load(folder / "out", device="cpu", precision="fp32")


def read_frame(folder):
    return pd.read_csv(folder / "val.csv", dtype=str, keep_default_na=False)


def test_tta_averages_what_each_wording_alone_is_answered(folder, scpc, model, tmp_path, capsys):
    frame = read_frame(folder)
    words = [[text for text in texts if text] for texts in frame[["question", "question_2", "question_3"]].to_numpy()]
    alone = []
    for number in range(3):
        own = frame[["img", "A", "B"]].assign(question=[texts[min(number, len(texts) - 1)] for texts in words])
        alone.append(model.predict_frame(own, scpc / "images"))
    assert (alone[0]["p_A"] - alone[2]["p_A"]).abs().max() > 1e-3  # so that an average is something else
    metrics = {}
    for mode in ("questions", "cyclic+questions"):
        out, checkpoint = tmp_path / mode, folder / "out" / "checkpoint-best.pth"
        flags = ["--split", "val", "--precision", "fp32", "--eval_batch_size", "3", "--tta", mode]
        assert main(evaluate_on(folder / "data", "vqacustom", checkpoint, out, *flags)) == 0
        assert "right in every wording" in capsys.readouterr().out
        metrics[mode] = json.loads((out / "metrics_val.json").read_text())
    for place, p in enumerate(read_predictions(tmp_path / "questions" / "predictions_val.json")):
        assert p.question == words[place][0]
        for letter, share in p.probabilities.items():
            mean = sum(alone[number][f"p_{letter}"][place] for number in range(len(words[place]))) / len(words[place])
            assert share == pytest.approx(mean, abs=1e-5)
    asked, found = sum(map(len, words)), metrics["questions"]["tta"]
    assert (found["passes"], found["asked"]) == (3, asked)
    assert "circular" not in found
    assert found["averaged"]["accuracy"] == metrics["questions"]["accuracy"]
    right = [all(one["answer"][place] == truth for one in alone) for place, truth in enumerate(frame["answer"])]
    assert found["every_wording"]["accuracy"] == 100 * sum(right) / len(right)
    both = metrics["cyclic+questions"]["tta"]
    assert (both["passes"], both["asked"]) == (6, 2 * asked)
    assert both["plain"] == found["plain"]
    assert both["every_wording"] == found["every_wording"]
    assert both["circular"]["accuracy"] <= both["plain"]["accuracy"]


def test_frames_ask_the_first_wording(folder, scpc, model):
    frame = read_frame(folder)
    first = frame.drop(columns=["question_2", "question_3"])
    answered, expected = (model.predict_frame(one, scpc / "images") for one in (frame, first))
    pd.testing.assert_frame_equal(answered[expected.columns], expected)
    assert model.evaluate_frame(frame, scpc / "images") == model.evaluate_frame(first, scpc / "images")


@pytest.mark.slow
def test_open_questions_are_averaged_too(scpc, tmp_path, capsys):
    names = sorted(path.name for path in (scpc / "images").iterdir())[:6]
    lines = [f"{name},What is it?,Which thing?,{SUBJECTS[place]}" for place, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("\n".join(["img,question,question_2,answer", *lines]))
    command = ["prepare", "table", "--train", str(tmp_path / "t.csv"), "--val", str(tmp_path / "t.csv")]
    command += ["--image_root", str(scpc / "images"), "--data_path", str(tmp_path / "data"), "--train_tokenizer", "200"]
    assert main(command) == 0
    assert main(finetune(tmp_path, tmp_path / "out", "--epochs", "1")) == 0
    checkpoint = tmp_path / "out" / "checkpoint-best.pth"
    evaluate = evaluate_on(tmp_path / "data", "vqacustom", checkpoint, tmp_path / "out", "--split", "val")
    assert main([*evaluate, "--tta", "questions"]) == 0
    found = json.loads((tmp_path / "out" / "metrics_val.json").read_text())
    assert found["tta"]["asked"] == 12
    predictions = read_predictions(tmp_path / "out" / "predictions_val.json")
    assert found["accuracy"] == 100 * sum(p.answer == p.truth for p in predictions) / 6
    assert main([*evaluate, "--tta", "cyclic+questions"]) == 2
    assert "--tta cyclic+questions: is for multiple choice" in capsys.readouterr().err


def test_an_average_of_open_answers_is_scored_as_each_answer_is():
    """Teal and "The teal." are one class, whose name is what a model answers."""
    shares = [{"teal": 0.5, "red": 0.4}, {"blue": 0.6, "red": 0.3}, {"teal": 0.4}]
    answers = [
        Prediction("1", f"q{n}", max(of, key=of.get), of, "The teal.", float("teal" in of))
        for n, of in enumerate(shares)
    ]
    mean = averaged(answers)
    assert (mean.answer, mean.score, mean.question) == ("teal", 1.0, "q0")
    assert mean.probabilities == pytest.approx({"teal": 0.3, "red": 0.7 / 3, "blue": 0.2})
    assert averaged([replace(one, truth="blue", score=0.0) for one in answers]).score == 0


@pytest.mark.parametrize("mode", ["questions", "all+questions"])
def test_modes_that_make_no_sense_for_a_task_are_refused(mode):
    run = SimpleNamespace(tta=mode, blind=False, temperature="")
    task = SimpleNamespace(spec=NLVR2.spec, answers_are_options=False, num_classes=2)
    components = SimpleNamespace(config=SimpleNamespace(run=run), task=task)
    with pytest.raises(InputError, match=re.escape(f"--tta {mode}: nlvr2 has no questions")):
        _check(components, fit=False)
    task.spec = VQACustom.spec
    if mode == "questions":
        _check(components, fit=False)
        return
    with pytest.raises(InputError, match=re.escape(f"--tta {mode}: is for multiple choice")):
        _check(components, fit=False)


def test_the_ways_of_a_question_are_told_apart():
    """Of two wordings, each in two orders: right in the first order of both, and in the first wording once."""

    def answer(score):
        return Prediction("1", "q", "A", {"A": 0.6, "B": 0.4}, "A", score, choices=("x", "y"))

    found = order_metrics([[answer(score) for score in (1, 0, 1, 0)]], [2], "all+questions", [2])
    accuracies = {name: of["accuracy"] for name, of in found.items() if isinstance(of, dict)}
    assert accuracies == {"plain": 100, "averaged": 100, "circular": 0, "every_order": 0, "every_wording": 100}
