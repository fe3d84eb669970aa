"""Tables of two, three, five and differing numbers of options go the whole way, from prepare to report."""

import csv
import json
import random
import shutil

import pytest

import beit3_vqa
from beit3_vqa.cli.main import main
from beit3_vqa.errors import InputError
from tests.helpers.commands import finetune, finetune_clip
from tests.helpers.photographs import SUBJECTS

WIDTHS = {"two": [2], "three": [3], "five": [5], "ragged": [4, 2, 3]}


def write_table(folder, images, widths, rows=24):
    """train.csv and test.csv, whose rows have in turn as many options as `widths` says."""
    rng, names = random.Random(0), sorted(path.name for path in images.iterdir())[:6]
    header = ["id", "image", "question", *(f"option_{n}" for n in range(1, max(widths) + 1)), "answer"]
    for split in ("train", "test"):
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            for number in range(rows):
                name = names[number % len(names)]
                right, count = SUBJECTS[number % len(names)], widths[number % len(widths)]
                others = [subject for subject in dict.fromkeys(SUBJECTS) if subject != right]
                options = [right, *rng.sample(others, count - 1)]
                rng.shuffle(options)
                cells = options + [""] * (max(widths) - count)
                writer.writerow([f"{split}{number}", name, "What is it?", *cells, right])


@pytest.fixture
def prepared(scpc, tmp_path, request):
    write_table(tmp_path, scpc / "images", WIDTHS[request.param])
    command = ["prepare", "table", "--train", str(tmp_path / "train.csv"), "--test", str(tmp_path / "test.csv")]
    command += ["--image_root", str(scpc / "images"), "--data_path", str(tmp_path / "data"), "--val_ratio", "0.3"]
    assert main([*command, "--train_tokenizer", "200"]) == 0
    return tmp_path


def evaluated(folder, out, task="vqacustom"):
    """The predictions of a run on the test rows, each option asked in each place."""
    command = [
        "finetune",
        "--eval",
        "--task",
        task,
        "--resume",
        str(out / "checkpoint-best.pth"),
        "--data_path",
        str(folder / "data"),
    ]
    sample = folder / "sample.csv"
    rows = (folder / "test.csv").read_text(encoding="utf-8").splitlines()[:0:-1]
    sample.write_text("\n".join(["id,answer", *(f"{row.partition(',')[0]},?" for row in rows)]), encoding="utf-8")
    command += ["--submission_like", str(sample), "--tta", "cyclic"]
    assert main([*command, "--output_dir", str(out), "--device", "cpu", "--num_workers", "0"]) == 0
    submission = (out / "submission.csv").read_text(encoding="utf-8").splitlines()
    assert [line.partition(",")[0] for line in submission] == ["id", *(row.partition(",")[0] for row in rows)]
    return json.loads((out / "predictions.json").read_text(encoding="utf-8"))


def check(folder, predictions):
    with (folder / "test.csv").open(encoding="utf-8") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    for one in predictions:
        options = [text for name, text in rows[one["id"]].items() if name.startswith("option") and text]
        assert one["choices"] == options
        assert list(one["probabilities"]) == list("ABCDE"[: len(options)])
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert options["ABCDE".index(one["truth"])] == rows[one["id"]]["answer"]


@pytest.mark.parametrize(
    "prepared", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("two", "three"))) for n in WIDTHS], indirect=True
)
def test_a_table_of_any_width_is_trained_evaluated_shown_and_asked(prepared, request, capsys):
    widths = WIDTHS[request.node.callspec.params["prepared"]]
    out = prepared / "out"
    # The default names four options; with four and fewer in one file the template must be for any number.
    template = ["--prompt_template", "{question} Choices: {options}"] if widths == [4, 2, 3] else []
    assert main(finetune(prepared, out, "--epochs", "1", "--label_smoothing", "0.1", *template)) == 0
    predictions = evaluated(prepared, out)
    check(prepared, predictions)
    said = capsys.readouterr().out
    chance = 100 * sum(1 / width for width in widths) / len(widths)
    assert f"chance {chance:.2f}" in said
    assert main(["report", str(out), "--output", str(prepared / "report.html"), "--device", "cpu"]) == 0
    shutil.copytree(out, prepared / "other")
    together = str(prepared / "both" / "submission.csv")
    members = [str(folder / "predictions.json") for folder in (out, prepared / "other")]
    assert main(["ensemble", *members, "--output", together]) == 0
    check(prepared, json.loads((prepared / "both" / "predictions.json").read_text(encoding="utf-8")))

    model = beit3_vqa.load(out / "checkpoint-best.pth", device="cpu", precision="fp32")
    assert model.option_counts == range(2, max(widths) + 1)
    image = next((request.getfixturevalue("scpc") / "images").iterdir())
    answer = model.predict(image, "What is it?", ["a cat", "a cup"])
    assert list(answer.probabilities) == ["A", "B"]
    with pytest.raises(InputError, match="options; 6 were given"):
        model.predict(image, "What is it?", list("pqrstu"))


@pytest.mark.parametrize("prepared", ["ragged"], indirect=True)
def test_ranking_and_clip_take_rows_of_any_width(prepared, clip_folder):
    rank = [
        "vqarank" if word == "vqacustom" else word for word in finetune(prepared, prepared / "rank", "--epochs", "1")
    ]
    assert main(rank) == 0
    check(prepared, evaluated(prepared, prepared / "rank", "vqarank"))
    assert main(finetune_clip(prepared, clip_folder, prepared / "clip", "--epochs", "1")) == 0
    check(prepared, evaluated(prepared, prepared / "clip"))


@pytest.mark.parametrize("prepared", ["ragged"], indirect=True)
def test_a_template_for_four_options_refuses_fewer(prepared, capsys):
    assert main(finetune(prepared, prepared / "out", "--epochs", "1")) == 2
    assert "is for 4 options, and a question has 3. {options} stands for all" in capsys.readouterr().err
