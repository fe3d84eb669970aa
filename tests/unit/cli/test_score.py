"""`beit3-vqa score` on files: SCPC's CSV, Visual7W, bad input."""

import csv
import json
import string
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beit3_vqa.cli.main import main
from beit3_vqa.data.answers_csv import read_answers
from beit3_vqa.data.predictions import write_predictions
from beit3_vqa.data.types import Prediction
from beit3_vqa.data.visual7w import read_telling
from beit3_vqa.errors import InputError
from beit3_vqa.metrics.vqav2 import read_annotations
from tests.helpers.commands import finetune

KEYS = ["annotations", "question_id", "answers", "answer", "images", "qa_pairs", "qa_id", "split", "type", "question"]
CHOICES = ("red", "blue", "green", "teal")


def choice(name, answer, **more):
    shares = {letter: 0.7 if letter == answer else 0.1 for letter in "ABCD"}
    return Prediction(name, "What colour?", answer, shares, choices=CHOICES, **more)


@pytest.fixture
def predictions(tmp_path):
    return write_predictions([choice("q1", "A"), choice("q2", "B"), choice("q3", "C")], tmp_path / "predictions.json")


def evaluated(predictions, *flags):
    out = predictions.parent / "metrics.json"
    assert main(["score", str(predictions), "--json", str(out), *map(str, flags)]) == 0
    return json.loads(out.read_text())


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_answers_as_letters_and_as_text_with_weights(predictions, tmp_path, capsys):
    answers = write(tmp_path / "answers.csv", "weight,ID,Answer\n3,q3,C\n1,q1,Blue\n4,q2, b \n")
    metrics = evaluated(predictions, "--answers", answers)
    assert metrics["accuracy"] == pytest.approx(200 / 3)
    assert metrics["weighted_accuracy"] == pytest.approx(100 * 7 / 8)
    assert metrics["truths"] == {"B": 2, "C": 1}
    assert "95%, wilson" in capsys.readouterr().out


def test_options_come_from_the_csv_if_predictions_have_none(tmp_path):
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps([{"id": "q", "answer": "D", "probabilities": {"A": 0.3, "D": 0.7}}]))
    answers = write(tmp_path / "a.csv", "ID,A,B,C,D,answer\nq,w,x,y,z,Z\n")
    assert evaluated(path, "--answers", answers)["accuracy"] == 100
    assert evaluated(path, "--answers", write(tmp_path / "b.csv", "ID,answer\nq,d\n"))["accuracy"] == 100
    assert evaluated(path, "--answers", write(tmp_path / "b.csv", "ID,answer\nq,A\n"))["accuracy"] == 0


def test_the_csv_may_have_2_to_26_options(tmp_path):
    """Cells at the end stay empty where a question has fewer."""
    letters, texts = string.ascii_uppercase, tuple(f"option {number}" for number in range(26))
    some = [
        Prediction(f"q{count}", "?", "B", dict.fromkeys(letters[:count], 0.03), choices=texts[:count])
        for count in (2, 12, 26)
    ]
    rows = ["ID,answer," + ",".join(letters)]
    rows += [f"{p.id},option 1,{','.join(p.choices)}{',' * (26 - len(p.choices))}" for p in some]
    predictions = write_predictions(some, tmp_path / "predictions.json")
    assert evaluated(predictions, "--answers", write(tmp_path / "a.csv", "\n".join(rows)))["accuracy"] == 100


@pytest.mark.parametrize("name", ["predictions.json", "predictions.info.json", "a.csv"])
def test_score_does_not_replace_a_file_that_it_reads(predictions, tmp_path, capsys, name):
    answers = write(tmp_path / "a.csv", "ID,answer\nq1,A\nq2,B\nq3,C\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    flags = ["--answers", str(answers), "--json", str(tmp_path / "." / name)]
    assert main(["score", str(predictions), *flags]) == 2
    assert "would overwrite a file that is read" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_open_answers_are_compared_after_normalisation(tmp_path):
    rows = [Prediction("1", "How many?", "two", {"two": 0.6, "3": 0.4}), Prediction("2", "?", "a", {"a": 1.0})]
    path = write_predictions(rows, tmp_path / "predictions.json")
    answers = write(tmp_path / "a.csv", "ID,answer\n1,2\n2,the\n")
    assert evaluated(path, "--answers", answers)["accuracy"] == 50


NFC, NFD = "\uac15\uc544\uc9c0", "\u1100\u1161\u11bc\u110b\u1161\u110c\u1175"


def test_an_answer_in_another_unicode_form_is_right(tmp_path):
    said = [NFC, NFD, "12", f"{NFC}\u200b"]
    rows = [Prediction(str(place), "?", answer, {answer: 0.9}) for place, answer in enumerate(said)]
    path = write_predictions(rows, tmp_path / "predictions.json")
    answers = write(tmp_path / "a.csv", f"ID,answer\n0,{NFD}\n1,{NFC}\n2,\uff11\uff12\n3,{NFC}\n")
    assert evaluated(path, "--answers", answers)["accuracy"] == 100


def test_ids_that_look_alike_are_shown_with_escapes(tmp_path, capsys):
    path = write_predictions([Prediction(NFC, "?", "x", {"x": 1.0})], tmp_path / "predictions.json")
    answers = write(tmp_path / "a.csv", f"ID,answer\n{NFD},x\n")
    assert main(["score", str(path), "--answers", str(answers)]) == 2
    said = capsys.readouterr().err
    assert "look alike, but are other characters: '\\u1100" in said
    assert "and '\\uac15\\uc544\\uc9c0'" in said


def test_score_equals_the_metrics_of_the_evaluation(scpc, trained, tmp_path):
    out = tmp_path / "out"
    resume = ["--eval", "--resume", str(trained / "checkpoint-best.pth"), "--split", "train"]
    assert main(finetune(scpc, out, *resume)) == 0
    before = json.loads((out / "metrics_train.json").read_text())
    (out / "metrics.json").unlink(missing_ok=True)
    for flags in ([], ["--answers", scpc / "train.csv"]):
        if flags:  # the CSV has the validation rows too
            names = {p["id"] for p in json.loads((out / "predictions_train.json").read_text())}
            with (scpc / "train.csv").open(encoding="utf-8") as file:
                rows = [row for row in csv.reader(file) if row[0] in {"ID", *names}]
            with (tmp_path / "answers.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(rows)
            flags = ["--answers", tmp_path / "answers.csv"]
        after = evaluated(out / "predictions_train.json", *flags)
        named = set(before) - {"loss", "baselines"}  # losses aren't kept, nor is what training answered
        assert {name: after[name] for name in named} == {name: before[name] for name in named}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("ID,answer\nq1,A\nq1,B\nq2,A\nq4,A\n", "1 doubled in it, 1 not predicted, 1 predicted, but not in it"),
        ("ID,answer\nq1,A\nq2,B\nq3 ,C\n", "not predicted: 'q3 '"),
        ("ID,answer\nq1,A\nq2,B\nq3,purple\n", "a.csv:4: answer 'purple' is none of the options"),
        ("ID,answer\nq1,A\nq2,\nq3,C\n", "a.csv:3: answer is empty"),
        ("ID,answer,weight\nq1,A,1\nq2,B,-1\nq3,C,1\n", "a.csv:3: weight '-1'"),
        ("ID,answer,weight\nq1,A,1e308\nq2,B,1e308\nq3,C,1\n", "a.csv:2: weight '1e308'"),
        ("ID,answer,A,B,D\nq1,A,red,blue,teal\n", "a.csv:1: a column D but no column C"),
        ("ID,answer\nq1,A,7\n", "a.csv:2: 3 cells"),
        ("ID,ans\nq1,A\n", "columns missing: answer"),
        ("ID,answer\n", "no rows"),
        ("ID,A,B,C,D,answer\nq1,blue,red,green,teal,A\nq2,*,*,*,*,A\nq3,*,*,*,*,A\n", "a.csv:2: its options aren't"),
    ],
)
def test_unusable_answers_are_one_clear_error(predictions, tmp_path, capsys, content, says):
    answers = write(tmp_path / "a.csv", content.replace("*,*,*,*", ",".join(CHOICES)))
    assert main(["score", str(predictions), "--answers", str(answers), "--json", str(tmp_path / "m.json")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "Give them with --answers"),
        (["--answers", "/no/such.csv"], "such.csv"),
        (["--visual7w_results", "r.json"], "needs --visual7w"),
        (["--encoding", "utf-8"], "Give --answers too"),
        (["--visual7w", "/no/such.json"], "such.json"),
        (["--vqav2", "/no/such.json"], "such.json"),
    ],
)
def test_options_that_do_not_go_together_are_one_clear_error(predictions, capsys, flags, says):
    assert main(["score", str(predictions), *flags]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"truth": "B", "score": 1.0}, "has the score 1, but its answer 'A' scores 0 (truth: 'B')"),
        ({"answer": "E"}, "'E' is none of its 4 options"),
        ({"answer": "C"}, "answers 'C', but 'A' has the highest probability"),
    ],
)
def test_a_row_that_contradicts_itself_is_named_and_not_counted(predictions, tmp_path, capsys, changed, says):
    rows = json.loads(predictions.read_text())
    predictions.write_text(json.dumps([rows[0] | {"truth": "A", "score": 1.0} | changed, *rows[1:]]))
    answers = write(tmp_path / "a.csv", "ID,answer\nq1,A\nq2,B\nq3,C\n")
    for flags in ([], ["--answers", str(answers)]):
        assert main(["score", str(predictions), *flags]) == 2
        assert f"predictions.json, row 1 ('q1'): {says}" in capsys.readouterr().err


@given(
    st.one_of(
        st.binary(max_size=200), st.lists(st.sampled_from(["ID", "answer", "A", ",", "\n", '"', "x"])).map("".join)
    )
)
def test_any_file_of_answers_is_read_or_one_clear_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with suppress(InputError):
        assert all(answer.id and answer.answer for answer in read_answers(path))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_any_json_of_a_benchmark_is_read_or_one_clear_error(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any.json"
    for content in (
        value,
        {"annotations": [value]},
        {"images": [{"split": "val", "image_id": 1, "qa_pairs": [value]}]},
    ):
        path.write_text(json.dumps(content), encoding="utf-8")
        for read in (read_annotations, read_telling):
            with suppress(InputError):
                assert read(path) is not None


def telling(path, **changes):
    pairs = [
        {"qa_id": 1, "question": "What?", "answer": "Red", "type": "what", "multiple_choices": ["a", "b", "c"]},
        {"qa_id": 2, "question": "Who?", "answer": "blue.", "type": "who", "multiple_choices": ["a", "b", "c"]},
        {
            "qa_id": 3,
            "question": "Who?",
            "answer": "teal",
            "type": "who",
            "multiple_choices": ["a", "b", "c"],
            **changes,
        },
    ]
    other = [{"qa_id": 9, "question": "Why?", "answer": "x", "type": "why", "multiple_choices": ["a", "b", "c"]}]
    images = [
        {"image_id": 5, "split": "test", "qa_pairs": pairs},
        {"image_id": 6, "split": "val", "qa_pairs": other},
    ]
    return write(path, json.dumps({"images": images}))


def test_visual7w_counts_every_question(tmp_path, capsys):
    dataset = telling(tmp_path / "v7w.json")
    # red is Red, blue isn't "blue.", and question 3 has no answer
    path = write_predictions([choice("1", "A"), choice("2", "B")], tmp_path / "predictions.json")
    found = evaluated(path, "--visual7w", dataset, "--visual7w_results", tmp_path / "results.json")["visual7w"]
    assert (found["split"], found["questions"], found["answered"]) == ("test", 3, 2)
    assert found["accuracy"] == pytest.approx(100 / 3)
    assert {word: part["accuracy"] for word, part in found["by_type"].items()} == {"what": 100, "who": 0}
    assert "only 2 are answered" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text()) == [
        {"qa_id": 1, "question": "What?", "candidates": [{"answer": "red"}]},
        {"qa_id": 2, "question": "Who?", "candidates": [{"answer": "blue"}]},
    ]


@pytest.mark.parametrize(
    ("names", "changes", "says"),
    [
        (("1", "7"), {}, "'7'"),
        (("1", "9"), {}, "2 splits"),
        (("1",), {"qa_id": 2}, "qa_id 2 is there twice"),
        (("1",), {"answer": ""}, "question 3: type, question and answer"),
        (("1",), {"qa_id": None}, "qa_id must be"),
    ],
)
def test_unusable_visual7w_files_are_one_clear_error(tmp_path, capsys, names, changes, says):
    dataset = telling(tmp_path / "v7w.json", **changes)
    path = write_predictions([choice(name, "A") for name in names], tmp_path / "predictions.json")
    assert main(["score", str(path), "--visual7w", str(dataset)]) == 2
    assert says in capsys.readouterr().err


def test_visual7w_refuses_letters_without_options(tmp_path, capsys):
    path = write_predictions([Prediction("1", "q", "A", {"A": 1.0})], tmp_path / "predictions.json")
    assert main(["score", str(path), "--visual7w", str(telling(tmp_path / "v7w.json"))]) == 2
    assert "without saying its options" in capsys.readouterr().err


def test_vqav2_score_from_the_command_line(tmp_path, capsys):
    path = write_predictions([Prediction("7", "q", "yes", {"yes": 1.0})], tmp_path / "predictions.json")
    rows = [{"question_id": 7, "answers": [{"answer": a} for a in ["yes"] * 3 + ["no"] * 7], "answer_type": "yes/no"}]
    annotations = write(tmp_path / "v2.json", json.dumps({"annotations": rows}))
    assert evaluated(path, "--vqav2", annotations)["vqav2"]["accuracy"] == pytest.approx(90)
    assert "vqav2's own score" in capsys.readouterr().out


def test_evaluate_still_runs_score(predictions, tmp_path, capsys):
    answers = write(tmp_path / "a.csv", "ID,answer\nq1,A\nq2,B\nq3,D\n")
    command = [str(predictions), "--answers", str(answers)]
    assert main(["score", *command]) == 0
    score = capsys.readouterr()
    assert main(["evaluate", *command]) == 0
    evaluate = capsys.readouterr()
    assert "66.67" in score.out
    assert (evaluate.out, score.err) == (score.out, "")
    assert evaluate.err == "`beit3-vqa evaluate` is called `beit3-vqa score` now.\n"
    assert main(["evaluate", str(tmp_path / "none.json")]) == main(["score", str(tmp_path / "none.json")]) == 2


@pytest.mark.parametrize("flags", [[], ["--resume", "out/checkpoint-best.pth", "--data_path", "data"], ["--json", "m"]])
def test_evaluate_without_predictions_names_what_evaluates_a_model(flags, capsys):
    assert main(["evaluate", *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "To evaluate a model, use `beit3-vqa finetune --eval" in said
    assert "Did you mean" not in said


def test_only_evaluate_points_to_evaluating_a_model(capsys):
    assert main(["score"]) == 2
    said = capsys.readouterr().err
    assert "required: predictions.json" in said
    assert "finetune" not in said
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    assert "\n    score " in listed
    assert "\n    evaluate" not in listed


ANIMALS = "ID,img_path,Question,A,B,C,D,answer\n" + "".join(
    f"q{n},{n // 2}.png,What is it?,a cat,a dog,a cow,a hen,{answer}\n" for n, answer in enumerate("ABCD")
)


def test_generated_text_is_scored_and_every_row_says_how_it_was_understood(tmp_path, capsys):
    texts = ["The answer is A.", "a dog", "A cow, I think", "I cannot answer"]
    rows = "\n".join(json.dumps({"question_id": f"q{n}", "text": text}) for n, text in enumerate(texts))
    output = write(tmp_path / "out.jsonl", rows)
    found = evaluated(output, "--answers", write(tmp_path / "a.csv", ANIMALS))
    assert found["accuracy"] == 50
    assert found["understood"]["counts"] == {"option's text": 1, "stated": 1, "refused": 1, "not read": 1}
    assert found["understood"]["rows"] == [
        {"id": "q0", "way": "stated", "answer": "A"},
        {"id": "q1", "way": "option's text", "answer": "B"},
        {"id": "q2", "way": "not read", "answer": None},
        {"id": "q3", "way": "refused", "answer": None},
    ]
    assert found["accuracy_by_question_word"] == {"what": {"questions": 4, "accuracy": 50}}
    assert found["accuracy_interval_by_image"]["images"] == 2
    assert found["positions"]["C"] == {"true": 1, "answered": 0, "recall": 0.0, "precision": None}
    assert found["positions"]["(not read)"]["answered"] == 2
    said = capsys.readouterr().out
    assert f"  {'not read':<26}{1:>9}  such as 'q2': 'A cow, I think'" in said
    assert "  2 without an answer count as wrong" in said
    assert "  by 2 images " in said


def test_log_probabilities_are_scored_with_their_calibration(tmp_path):
    rows = "".join(f"q{n},{','.join('-0.1' if i == n else '-5' for i in range(4))}\n" for n in range(4))
    found = evaluated(write(tmp_path / "s.csv", f"id,A,B,C,D\n{rows}"), "--answers", write(tmp_path / "a.csv", ANIMALS))
    assert found["accuracy"] == 100
    assert found["calibration"]["confidence"] > 90


def test_rotations_give_the_circular_accuracy(tmp_path, capsys):
    """The first question is answered by its position, the others by what they show."""
    texts = ["a cat", "a dog", "a cow", "a hen"]
    lines = ["ID,rotation,answer,A,B,C,D"]
    for question, right in enumerate(texts):
        for turn in range(4):
            shown = texts[turn:] + texts[:turn]
            letter = "A" if question == 0 else "ABCD"[shown.index(right)]
            lines.append(f"q{question},{turn},{letter},{','.join(shown)}")
    found = evaluated(write(tmp_path / "s.csv", "\n".join(lines)), "--answers", write(tmp_path / "a.csv", ANIMALS))
    assert (found["questions"], found["accuracy"]) == (4, 100)
    assert found["tta"]["circular"]["accuracy"] == 75
    assert (found["tta"]["passes"], found["tta"]["asked"]) == (4, 16)
    assert "circular: in all rotations" in capsys.readouterr().out


def test_a_submission_is_scored_by_letters_alone(tmp_path):
    """The case of a contest's files: ids in any order, no options anywhere."""
    names, answers = [f"TEST_00{n}" for n in range(8)], "BADCCCAB"
    one = write(tmp_path / "s1.csv", "ID,answer\n" + "".join(f"{i},{a}\n" for i, a in zip(names, answers, strict=True)))
    rows = [f"{i},{a}\n" for i, a in zip(names, answers.lower(), strict=True)]
    truth = write(tmp_path / "ans.csv", "ID,answer\n" + "".join(reversed(rows)) + ",\n,\n")
    found = evaluated(one, "--answers", truth)
    assert (found["questions"], found["accuracy"]) == (8, 100)
    assert found["understood"]["counts"] == {"letter": 8}
    assert {letter: part["answered"] for letter, part in found["positions"].items()} == {"A": 2, "B": 2, "C": 3, "D": 1}


def test_answers_to_some_questions_score_these_with_known_only(tmp_path, predictions, capsys):
    truth = write(tmp_path / "ans.csv", "ID,answer\nq1,A\n")
    submission = write(tmp_path / "s.csv", "ID,answer\nq1,A\nq2,B\nq3,D\n")
    for file in (submission, predictions):
        assert main(["score", str(file), "--answers", str(truth)]) == 2
        assert "2 predicted, but not in it" in capsys.readouterr().err
        assert evaluated(file, "--answers", truth, "--known_only")["questions"] == 1
        assert "passed over 2 predictions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "flags", "says"),
    [
        ("ID,answer\nq0,A\n", ["--answers"], "3 not predicted"),
        ("ID,answer\nq0,A\nq0,B\n", ["--answers"], "s.csv:3: the id 'q0' is at"),
        ("ID,answer\nq0,A\n", [], "Give these with --answers CSV"),
        ("ID,answer\nq0,A\n", ["--known_only"], "--known_only: needs --answers"),
    ],
)
def test_submissions_that_cannot_be_scored_are_one_clear_error(tmp_path, capsys, content, flags, says):
    answers = write(tmp_path / "a.csv", ANIMALS)
    given = [str(answers)] if flags == ["--answers"] else []
    assert main(["score", str(write(tmp_path / "s.csv", content)), *flags, *given]) == 2
    assert says in capsys.readouterr().err


def test_columns_by_hand_are_for_tables(predictions, capsys):
    assert main(["score", str(predictions), "--columns", "id=x"]) == 2
    assert "is a predictions.json" in capsys.readouterr().err


@pytest.mark.parametrize("header", ["question_id\tlabel", "qid;정답", "sep=|\nID|Answer", "ID,answer,label"])
def test_known_answers_may_be_any_table(tmp_path, header):
    mark = next(mark for mark in "\t;|," if mark in header)
    rows = [mark.join([name, "A", "B"][: 3 if "label" in header and mark == "," else 2]) for name in ("q1", "q2")]
    found = read_answers(write(tmp_path / "a.csv", "\n".join([header, *rows])))
    assert [(row.id, row.answer) for row in found] == [("q1", "A"), ("q2", "A")]


def test_rows_of_commas_in_the_answers_are_passed_over(tmp_path):
    shares = {"A": 0.9, "B": 0.1}
    rows = [Prediction(f"문제{n}", "무엇?", "A", shares, choices=("가", "나")) for n in range(3)]
    answers = write(tmp_path / "a.csv", "ID,answer\n문제0,A\n,\n문제1,B\n문제2,A\n,\n,\n")
    path = write_predictions(rows, tmp_path / "predictions.json")
    assert evaluated(path, "--answers", answers)["accuracy"] == pytest.approx(200 / 3)
