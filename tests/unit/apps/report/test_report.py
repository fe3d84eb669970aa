"""What a report is made of: what is read, what it refuses, what goes into the page."""

import base64
import dataclasses
import hashlib
import io
import json
import re
import shutil
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from beit3_vqa.apps.report import run as reporting
from beit3_vqa.apps.report.collect import read_runs
from beit3_vqa.apps.report.content import page_data
from beit3_vqa.apps.report.curves import MAX_POINTS, read_curves
from beit3_vqa.apps.report.page import page_json
from beit3_vqa.apps.report.run import WRONG_SHARE, worth_a_look
from beit3_vqa.apps.report.scalars import CELL, confusion_image
from beit3_vqa.apps.report.thumbnails import STEPS, make_thumbnails
from beit3_vqa.cli.main import main
from beit3_vqa.data.predictions import read_info, read_predictions, write_info, write_predictions
from beit3_vqa.data.types import Example, Prediction
from beit3_vqa.engine.predictor import PreparedQuestion
from beit3_vqa.metrics.intervals import accuracy_interval
from beit3_vqa.metrics.label_errors import find_label_errors
from beit3_vqa.metrics.summary import full_metrics
from tests.helpers.runs import some_predictions, write_run

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def elements(text: str, kind: str) -> list[str]:
    return re.findall(rf"<{kind}>(.*?)</{kind}>", text, flags=re.S)


def data_of(page) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, flags=re.S)[1])


@settings(max_examples=50, deadline=None)
@given(JSON)
def test_json_in_the_page_comes_back_and_cannot_leave_its_element(value):
    text = page_json(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


def test_the_policy_names_just_the_pages_own_script_and_style(page):
    text = page.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    for kind in ("script", "style"):
        (content,) = elements(text, kind)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    rest = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search(r"https?://|src=|@import|url\(", rest)


def test_the_page_holds_what_was_predicted(page, evaluated):
    data = data_of(page)
    predictions = read_predictions(evaluated / "predictions.json")
    assert data["questions"]["id"][:30] == [p.id for p in predictions]
    answers = data["runs"][0]["answers"]
    assert answers["answer"] == [p.answer for p in predictions] + [None] * 60
    assert answers["probabilities"][3] == [round(q, 4) for q in predictions[3].probabilities.values()]
    metrics = data["runs"][0]["metrics"]
    assert metrics["accuracy"] == full_metrics(predictions)["accuracy"]
    assert metrics["accuracy_interval"] == accuracy_interval(predictions)
    assert len(data["runs"][0]["attention"]) == 30
    assert data["runs"][1]["attention"] is None  # its checkpoint isn't known
    steps, epochs = (data["runs"][0]["curves"][name] for name in ("steps", "epochs"))
    lines = [json.loads(line) for line in (evaluated / "log.txt").read_text().splitlines()]
    assert [point[1] for point in epochs["score"]] == [pytest.approx(line["val_accuracy"], rel=1e-5) for line in lines]
    assert steps["lr"][-1][1] == pytest.approx(lines[-1]["train_lr"], rel=1e-4)


def test_attention_is_the_models_own_answer(evaluated, tmp_path, capsys):
    """Every map comes with an answer; they are the ones of predictions.json, unless the checkpoint is another."""
    assert (
        main(["report", str(evaluated), "--output", str(tmp_path / "r.html"), "--attention", "7", "--device", "cpu"])
        == 0
    )
    assert "otherwise" not in capsys.readouterr().out
    maps = data_of(tmp_path / "r.html")["runs"][0]["attention"]
    assert len(maps) == 7
    for found in maps.values():
        assert (found["rows"], found["columns"]) == (4, 4)
        assert len(base64.b64decode(found["patches"])) == 16
        assert 0 < found["image"] + found["words"] < 1
    copy = tmp_path / "copy"
    shutil.copytree(evaluated, copy)
    rows = json.loads((copy / "predictions.json").read_text())
    for row in rows:
        row["answer"] = "ABCD"[("ABCD".index(row["answer"]) + 1) % 4]
        *shares, last = row["probabilities"].values()
        row["probabilities"] = dict(zip("ABCD", [last, *shares], strict=True))
        row["score"] = float(row["answer"] == row["truth"])
    (copy / "predictions.json").write_text(json.dumps(rows))
    command = ["report", str(copy), "--output", str(tmp_path / "r.html"), "--attention", "7", "--device", "cpu"]
    assert main(command) == 2  # the info knows the SHA-256 of the predictions that it is of
    assert "doesn't match" in capsys.readouterr().err
    info = read_info(copy / "predictions.json")
    checksum = hashlib.sha256((copy / "predictions.json").read_bytes()).hexdigest()
    write_info(dataclasses.replace(info, predictions_sha256=checksum), copy / "predictions.json")
    assert main(command) == 2
    assert "another run" in capsys.readouterr().err
    command[command.index("--output") + 1] = str(tmp_path / "copy.html")
    assert main(command) == 0
    assert "7 of 7 answers differ from the predictions file" in capsys.readouterr().out


def test_report_is_written_without_checkpoint_or_pictures(evaluated, tmp_path, capsys):
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(evaluated / "predictions.json", copy)
    info = json.loads((evaluated / "predictions.info.json").read_text())
    for changed, said in (
        ({"checkpoint": "/no/such.pth"}, "no such file"),
        ({"image_root": "/no/such"}, "aren't known"),
    ):
        (copy / "predictions.info.json").write_text(json.dumps(info | changed))
        assert main(["report", str(copy), "--output", str(tmp_path / "r.html")]) == 0
        assert said in capsys.readouterr().out
        assert data_of(tmp_path / "r.html")["runs"][0]["attention"] is None


def test_wrong_and_confident_answers_get_attention_maps_first():
    predictions = some_predictions(["a.jpg"], 400, 3)
    chosen = worth_a_look(predictions, 40)
    assert len({p.id for p in chosen}) == 40
    wrong = [p for p in chosen if not p.score]
    assert len(wrong) == WRONG_SHARE * 40
    others = [p for p in predictions if not p.score and p not in chosen]
    assert min(p.probabilities[p.answer] for p in wrong) >= max(p.probabilities[p.answer] for p in others)
    right = [p for p in predictions if p.score]
    assert len(worth_a_look(right, 40)) == 40
    assert len(worth_a_look(predictions, 1000)) == 400
    assert worth_a_look(predictions, 0) == []


def test_attention_of_different_numbers_of_options_is_computed_apart(tmp_path):
    class Model:
        def prepare(self, path, question, choices):
            return PreparedQuestion(Example("0", str(path), question, tuple(choices)), {}, (1, 1))

        def predict_with_attention(self, asked):
            assert len({len(one.example.choices) for one in asked}) == 1
            return [Prediction("0", "", "A", {}) for _ in asked], [len(one.example.choices) for one in asked]

    counts = {str(number): number % 3 + 2 for number in range(40)}
    chosen = [(Prediction(name, "?", "A", {}, choices=("x",) * n), tmp_path) for name, n in counts.items()]
    assert reporting._maps(Model(), chosen, "run") == counts


def test_curves_of_a_killed_run_skip_damaged_lines(tmp_path):
    lines = [
        '{"epoch": 0, "train_loss": NaN, "val_accuracy": 50, "val_questions": 9}',
        "[1]",
        '{"epoch": "x"}',
        f'{{"epoch": 1, "train_loss": 1{"0" * 400}}}',
        f'{{"epoch": 1{"0" * 400}, "train_loss": 1}}',
        '{"epoch": 0, "train_loss": NaN, "val_accuracy": 50, "val_questions": 9}',
        '{"epo',
    ]
    (tmp_path / "log.txt").write_text("\n".join(lines))
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1.x").write_bytes(b"\x18\0\0\0damaged")
    curves = read_curves(tmp_path)
    assert curves == {
        "steps": {},
        "epochs": {"train_loss": [(0, None), (1, None), (0, None)], "score": [(0, 50.0), (0, 50.0)]},
        "score_name": "accuracy",
    }


@pytest.mark.parametrize("content", [b"{", b"[]", b"", b"\xff", b"[" * 100_000, None])
def test_a_config_that_cannot_be_read_counts_as_none(tmp_path, content):
    (tmp_path / "log.txt").write_text('{"epoch": 0, "train_loss": 1.0}\n')
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2 * 10**12) if content is None else file.write(content)  # sparse, and never read
    (run,) = read_runs([tmp_path])
    assert run.config == {}
    (tmp_path / "config.json").write_text('\ufeff{"optim": {"lr": 1}}', encoding="utf-8")
    assert read_runs([tmp_path])[0].config == {"optim": {"lr": 1}}


def test_long_curves_are_thinned_and_what_was_overtaken_is_hidden(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "tensorboard")) as writer:
        for step in range(1, 3001):
            writer.add_scalar("train/loss", 1.0, step)
    with SummaryWriter(str(tmp_path / "tensorboard"), purge_step=2001) as writer:
        for step in range(2001, 2501):
            writer.add_scalar("train/loss", 2.0, step)
    points = read_curves(tmp_path)["steps"]["loss"]
    assert len(points) <= MAX_POINTS
    assert points[-1] == (2500, 2.0)
    assert {value for step, value in points if step <= 1996} == {1.0}


def test_pictures_fit_the_budget(tmp_path):
    paths = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        Image.effect_noise((150, 100), 80).convert("RGB").save(path)
        paths.append(path)
    (tmp_path / "3.png").write_bytes(b"no image")
    paths[5] = None
    large = make_thumbnails(paths, 10_000_000)
    assert [place for place, picture in enumerate(large) if not picture] == [3, 5]
    assert Image.open(io.BytesIO(base64.b64decode(large[0]))).size == (150, 100)  # never enlarged
    for budget in (20_000, 6_000):
        found = make_thumbnails(paths, budget)
        assert sum(map(len, found)) <= budget
        assert sum(map(bool, found)) == 6
    least = make_thumbnails(paths, 900)
    assert 0 < sum(map(bool, least)) < 6
    assert sum(map(len, least)) <= 900
    assert STEPS[0][0] > STEPS[-1][0]
    assert not any(make_thumbnails(paths, 0))


def facts_of(page) -> dict:
    return dict(data_of(page)["runs"][0]["facts"])


def test_the_split_whose_answers_are_known_is_shown(tmp_path, capsys):
    run, output = tmp_path / "run", tmp_path / "r.html"
    predictions = some_predictions(["x"], 8, 0)
    unknown = [dataclasses.replace(p, truth=None, score=None) for p in predictions]
    command = ["report", str(run), "--output", str(output)]

    def shown(test, *flags) -> tuple[dict, str]:
        write_run(run, test, tmp_path)
        write_predictions(predictions, run / "predictions_val.json")
        write_info(dataclasses.replace(read_info(run / "predictions.json"), split="val"), run / "predictions_val.json")
        assert main([*command, *flags]) == 0
        return facts_of(output), capsys.readouterr().out

    facts, said = shown(unknown)
    assert facts["Split"] == "val"
    assert facts["Why this one"] == "the answers of test aren't known"
    assert facts["Other split"] == "test: --split test shows it"
    assert "run: shows the split val, since the answers of test aren't known; --split test shows the other" in said
    assert data_of(output)["runs"][0]["metrics"]["questions"] == 8
    facts, said = shown(unknown, "--split", "test")
    assert facts["Split"] == "test"
    assert data_of(output)["runs"][0]["metrics"] is None
    assert "shows the split test; --split val shows the other" in said
    assert f"{output}: replaced the report of the split val; another --output keeps both" in said
    _, said = shown(unknown, "--split", "test")
    assert "replaced" not in said
    facts, _ = shown(predictions)
    assert facts["Split"] == "test"
    assert "Why this one" not in facts
    (run / "predictions_val.json").unlink()
    assert main(command) == 0
    assert "Other split" not in facts_of(output)


def test_only_a_report_of_the_same_runs_is_replaced(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("one", 1), ("two", 2)):
        write_run(tmp_path / name, some_predictions(["x"], 5, seed), tmp_path)
    assert main(["report", "one"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("wrote report.html, ")  # as its page says
    assert str(tmp_path) not in (tmp_path / "report.html").read_text()  # whom it is sent to learns no path from it
    assert main(["report", str(tmp_path / "one")]) == 0  # the same, named otherwise
    before = (tmp_path / "report.html").read_bytes()
    assert main(["report", "two"]) == 2
    said = capsys.readouterr().err
    assert "--output report.html: the file that is there is the report of another run" in said
    assert "--output report-two.html" in said
    assert (tmp_path / "report.html").read_bytes() == before
    assert main(["report", "two", "--output", "report-two.html"]) == 0
    assert main(["report", "one", "two"]) == 2
    assert main(["report", "one", "two", "--output", "both.html"]) == 0
    assert main(["report", "two", "one", "--output", "both.html"]) == 0
    (tmp_path / "one" / "config.json").write_text("{}")
    assert main(["report", "one"]) == 0
    shutil.copytree("one", "copy")
    assert main(["report", "copy"]) == 2
    (tmp_path / "one").rename("renamed")
    assert main(["report", "renamed"]) == 0
    (tmp_path / "renamed" / "config.json").write_text('{"epochs": 9}')  # trained on
    assert main(["report", "renamed"]) == 0
    (tmp_path / "renamed").rename("one")
    of_paths_alone = re.sub(r'(runs" content="\w{64}) [^"]*', r"\1", (tmp_path / "both.html").read_text())
    (tmp_path / "both.html").write_text(of_paths_alone)  # as earlier versions wrote it
    capsys.readouterr()
    assert main(["report", "one", "two", "--output", "both.html"]) == 0
    assert "replaced" not in capsys.readouterr().out
    for content in (b"", b"my notes", b"<!doctype html><title>one: report</title>"):
        (tmp_path / "mine.html").write_bytes(content)
        assert main(["report", "one", "--output", "mine.html"]) == 2
        assert "isn't a report that says" in capsys.readouterr().err
        assert (tmp_path / "mine.html").read_bytes() == content


def test_the_likeliest_answers_accuracy_is_the_evaluations_if_it_is_of_these_predictions(tmp_path):
    run, output = tmp_path / "run", tmp_path / "r.html"
    predictions = some_predictions(["x"], 20, 0, hostile=False)
    write_run(run, predictions, tmp_path)
    metrics = full_metrics(predictions)
    own = metrics["baselines"]["most_frequent_answer"]
    trained = full_metrics(predictions, {"a": 3})["baselines"]["most_frequent_answer"] | {"accuracy": 43.75}

    def shown(content) -> dict:
        (run / "metrics.json").write_text(json.dumps(content))
        assert main(["report", str(run), "--output", str(output)]) == 0
        found = data_of(output)["runs"][0]["metrics"]["likeliest"]
        assert facts_of(output)["Likeliest"] == f"{found['accuracy']:.1f}%, if always chosen"
        return found

    told = metrics | {"baselines": {"most_frequent_answer": trained}}
    assert shown(told) == trained
    assert trained["counted_in"] == "the training answers"
    for wrong in (
        told | {"accuracy": metrics["accuracy"] + 1},  # an earlier evaluation's
        told | {"baselines": {"most_frequent_answer": {"accuracy": "9"}}},
        told | {"baselines": {"most_frequent_answer": {"accuracy": 1e9}}},
        told | {"baselines": [1]},
        [told],
    ):
        assert shown(wrong) == own


def test_names_tell_runs_apart(tmp_path):
    for name in ("a/out", "b/out"):
        (tmp_path / name).mkdir(parents=True)
        write_run(tmp_path / name, some_predictions(["x"], 3, 0), tmp_path)
    assert [run.name for run in read_runs([tmp_path / "a/out", tmp_path / "b/out"])] == ["a/out", "b/out"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{run}", "{run}"], "named twice"),
        (["{run}/../runs"], "Did you mean 'run'"),
        (["{empty}"], "nothing to show"),
        (["{run}", "--split", "val"], "has no predictions_val.json"),
        (["{run}", "--split", "vla"], "--split vla: must be one of test, val. Did you mean 'val'?"),
        (["{run}", "--output", "{empty}"], "is a folder"),
        (["{run}", "--output", "{empty}/no/such.html"], "make it first"),
        (["{run}", "--output", "{run}/predictions.json"], "would overwrite a file that is read"),
        (["{run}/predictions.json", "--output", "{run}/predictions.json"], "would overwrite a file that is read"),
        (["{none}"], "holds no predictions"),
        (["{run}", "--attention", "-1"], "--attention -1"),
        (["{run}", "{other}"], "row q1: run and other"),
        (["{run}/predictions.info.json"], "isn't a list"),
        (["{run}"] * 9, "up to 8 runs"),
    ],
)
def test_what_cannot_be_reported_is_one_clear_error(arguments, says, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "run", some_predictions(["x"], 3, 0), tmp_path)
    write_run(tmp_path / "other", some_predictions(["x"], 3, 0)[:1] + some_predictions(["x"], 9, 0)[5:], tmp_path)
    text = (tmp_path / "other" / "predictions.json").read_text().replace('"q5"', '"q1"')
    (tmp_path / "other" / "predictions.json").write_text(text)
    (tmp_path / "none.json").write_text("[]")
    places = {name: str(tmp_path / name) for name in ("run", "other", "empty")} | {"none": str(tmp_path / "none.json")}
    assert main(["report", *(word.format(**places) for word in arguments)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert says in said


def test_without_jinja2_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "run", some_predictions(["x"], 3, 0), tmp_path)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "r.html")]) == 2
    assert 'pip install "beit3_vqa[report]"' in capsys.readouterr().err


def test_metrics_are_written_for_tensorboard(page, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    run = page.parent / "first"
    arguments = ["report", str(run), "--output", str(tmp_path / "r.html"), "--tensorboard", str(tmp_path / "tb")]
    (tmp_path / "tb" / "first").mkdir(parents=True)
    with SummaryWriter(str(tmp_path / "tb" / "first")) as writer:  # a training's, whose --log_dir it is
        writer.add_scalar("train/loss", 1.0, 1)
    for _ in range(2):  # written again, it replaces
        assert main(arguments) == 0
    events = EventAccumulator(str(tmp_path / "tb" / "first")).Reload()
    metrics = full_metrics(read_predictions(run / "predictions.json"))

    def values(tag):
        return [(event.step, pytest.approx(event.value, rel=1e-5)) for event in events.Scalars(tag)]

    assert values("train/loss") == [(1, 1.0)]
    assert values("report/accuracy") == [(0, metrics["accuracy"])]
    coverage = {point["coverage"]: point["accuracy"] for point in metrics["accuracy_at_coverage"]}
    assert dict(values("report/accuracy_at_coverage")) == coverage
    words = metrics["accuracy_by_question_word"]
    assert values("report_accuracy_by_question_word/where") == [(0, words["where"]["accuracy"])]
    assert values("report_positions_answered/A") == [(0, metrics["positions"]["A"]["answered"])]
    (matrix,) = events.Images("report/confusion")
    side = CELL * len(metrics["confusion"])
    assert Image.open(io.BytesIO(matrix.encoded_image_string)).size == (side, side)


def test_training_writes_accuracy_by_question_word(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (trained / "log.txt").read_text().splitlines()]
    for name in ("accuracy", "loss"):
        assert [e.value for e in events.Scalars(f"val/{name}")] == [
            pytest.approx(line[f"val_{name}"]) for line in lines
        ]
    for word, group in lines[-1]["val_accuracy_by_question_word"].items():
        assert events.Scalars(f"val/accuracy_by_question_word/{word}")[-1].value == pytest.approx(group["accuracy"])


def test_confusion_image_is_darker_for_larger_shares():
    image = confusion_image({"A": {"A": 3, "B": 1}, "B": {"A": 0, "B": 0}})
    assert image.shape == (3, 2 * CELL, 2 * CELL)
    right, wrong, none = image[:, 0, 0], image[:, 0, -1], image[:, -1, 0]
    assert right.sum() < wrong.sum() < none.sum() == 3 * 255


@pytest.mark.parametrize("as_file", [True, False])
def test_likely_label_errors_of_out_of_fold_predictions_are_ranked(scpc, images, tmp_path, as_file):
    predictions = some_predictions(images, 60, 1)
    file = write_run(tmp_path / "out", predictions, scpc / "images", split="train")
    (tmp_path / "out" / "label_errors.csv").touch()
    ranked = [error.prediction.id for error in find_label_errors(predictions)]
    assert len(ranked) > 3
    (run,) = read_runs([file if as_file else tmp_path / "out"])
    assert run.label_errors == ranked
    data, _ = page_data([run])
    rank_of = {data["questions"]["id"][row]: rank for row, rank in data["runs"][0]["label_errors"].items()}
    assert rank_of == {name: rank for rank, name in enumerate(ranked, start=1)}
    assert ("Likely label errors", f"{len(ranked)}") in data["runs"][0]["facts"]


@pytest.mark.parametrize("info", [{"split": "val"}, {"split": "train", "checkpoint": "c.pth"}, {"split": "train"}])
def test_a_model_that_may_have_seen_the_rows_accuses_none(scpc, images, tmp_path, info):
    file = write_run(tmp_path / "out", some_predictions(images, 60, 1), scpc / "images", **info)
    if len(info) > 1 or info["split"] != "train":  # else there is no table beside the predictions
        (tmp_path / "out" / "label_errors.csv").touch()
    (run,) = read_runs([file])
    assert run.label_errors == []
    assert page_data([run])[0]["runs"][0]["label_errors"] is None


@pytest.mark.parametrize("other", [{"image": "y.png"}, {"truth": "B"}, {"question": "Who?"}])
def test_runs_on_other_questions_images_or_truths_share_no_report(tmp_path, capsys, other):
    row = {"id": "1", "question": "What?", "answer": "A", "probabilities": {"A": 0.6, "B": 0.4}, "choices": ["x", "y"]}
    row |= {"image": "x.png", "truth": "A", "score": 1.0}
    for name, content in (("a", row), ("b", row | other | {"score": 0.0 if "truth" in other else 1.0})):
        (tmp_path / f"{name}.json").write_text(json.dumps([content]))
    paths = [str(tmp_path / f"{name}.json") for name in "ab"]
    assert main(["report", *paths, "--output", str(tmp_path / "r.html")]) == 2
    assert "the same ids stand for other" in capsys.readouterr().err
