"""--eval with other orders, without images, and at a temperature; on the small data set, with both families."""

import csv
import json
import shutil

import pytest

import beit3_vqa
from beit3_vqa.cli.main import main
from beit3_vqa.data import images
from beit3_vqa.data.images import open_image
from beit3_vqa.data.predictions import read_info, read_predictions
from beit3_vqa.engine.checkpoint.manifest import get_sha256, verify
from beit3_vqa.engine.evaluator import evaluate_fully
from beit3_vqa.metrics.accuracy import accuracy_metrics
from beit3_vqa.metrics.calibration import HIGHEST, mean_nll
from tests.helpers.commands import finetune, finetune_clip


def evaluate(scpc, run, out, *flags):
    resume = ["--eval", "--resume", str(run / "checkpoint-best.pth"), "--split", "val"]
    return main(finetune(scpc, out, *resume, *flags))


def metrics_of(out):
    return json.loads((out / "metrics_val.json").read_text())


@pytest.fixture(scope="module")
def plain(scpc, trained, tmp_path_factory):
    """The output folder of an evaluation without anything more."""
    out = tmp_path_factory.mktemp("plain")
    assert evaluate(scpc, trained, out) == 0
    return out


def test_evaluation_reports_all_metrics(plain):
    metrics = metrics_of(plain)
    assert {"accuracy_interval", "calibration", "accuracy_at_coverage", "positions", "confusion"} <= set(metrics)
    assert metrics["baselines"]["most_frequent_answer"]["counted_in"] == "the training answers"
    short = accuracy_metrics(read_predictions(plain / "predictions_val.json"))
    assert {name: metrics[name] for name in short} == short


def test_training_keeps_to_the_short_metrics(trained):
    line = json.loads((trained / "log.txt").read_text().splitlines()[0])
    named = {name for name in line if name.startswith("val_")}
    assert named == {
        "val_questions", "val_accuracy", "val_loss", "val_accuracy_by_question_word", "val_answers", "val_truths",
    }  # fmt: skip


@pytest.mark.parametrize(("mode", "passes"), [("cyclic", 4), ("all", 24)])
def test_other_orders_are_those_of_the_data_reordered(scpc, trained, plain, tmp_path, capsys, mode, passes):
    workers = ["--num_workers", "2" if mode == "all" else "0"]
    assert evaluate(scpc, trained, tmp_path / "tta", "--tta", mode, "--eval_batch_size", "5", *workers) == 0
    metrics = metrics_of(tmp_path / "tta")
    said = capsys.readouterr().out
    assert "circular: in all rotations" in said
    assert "trained on" not in said
    found = metrics["tta"]
    assert (found["mode"], found["passes"], found["asked"]) == (mode, passes, passes * metrics["questions"])
    assert found["plain"]["accuracy"] == metrics_of(plain)["accuracy"]
    assert found["averaged"]["accuracy"] == metrics["accuracy"]
    assert found["circular"]["accuracy"] <= found["plain"]["accuracy"]
    if mode == "all":
        assert found["every_order"]["accuracy"] <= found["circular"]["accuracy"]
        return
    # In another way: the rotations written into the index, each evaluated as it stands.
    data = tmp_path / "data"
    shares, right = {}, {}
    for shift in range(4):
        shutil.copytree(scpc / "data", data)
        rows = [json.loads(line) for line in (data / "vqacustom.val.jsonl").read_text().splitlines()]
        for row in rows:
            row["choices"] = row["choices"][shift:] + row["choices"][:shift]
            row["answer"] = "ABCD"[("ABCD".index(row["answer"]) - shift) % 4]
        (data / "vqacustom.val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = tmp_path / f"shift{shift}"
        at = ["--data_path", str(data), "--image_root", str(scpc / "images")]
        assert evaluate(scpc, trained, out, *at) == 0
        for p in read_predictions(out / "predictions_val.json"):
            right.setdefault(p.id, []).append(p.score)
            by_text = shares.setdefault(p.id, {})
            for letter, share in p.probabilities.items():
                text = p.choices["ABCD".index(letter)]
                by_text[text] = by_text.get(text, 0) + share / 4
        shutil.rmtree(data)
    for p in read_predictions(tmp_path / "tta" / "predictions_val.json"):
        expected = [shares[p.id][text] for text in p.choices]
        assert list(p.probabilities.values()) == pytest.approx(expected, abs=1e-5)
    circular = 100 * sum(min(scores) for scores in right.values()) / len(right)
    assert found["circular"]["accuracy"] == pytest.approx(circular)


@pytest.mark.parametrize("equal", [False, True])
def test_clip_answers_the_same_in_every_order(scpc, clip_folder, tmp_path, equal):
    """Nor tells options of the same text apart, whichever of them is the annotated one."""
    assert main(finetune_clip(scpc, clip_folder, tmp_path / "out", "--epochs", "1")) == 0
    resume = ["--eval", "--resume", str(tmp_path / "out" / "checkpoint-best.pth"), "--split", "val"]
    if equal:
        shutil.copytree(scpc / "data", tmp_path / "data")
        rows = [json.loads(line) for line in (tmp_path / "data" / "vqacustom.val.jsonl").read_text().splitlines()]
        for row in rows:
            row["choices"][3] = row["choices"][1] = row["choices"]["ABCD".index(row["answer"])]
        (tmp_path / "data" / "vqacustom.val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        resume += ["--data_path", str(tmp_path / "data"), "--image_root", str(scpc / "images")]
    for out, flags in (("plain", []), ("tta", ["--tta", "cyclic", "--blind"])):
        assert main(finetune_clip(scpc, clip_folder, tmp_path / out, *resume, *flags)) == 0
    metrics = metrics_of(tmp_path / "tta")
    assert metrics["tta"]["circular"] == metrics["tta"]["plain"] == metrics["tta"]["averaged"]
    for one, two in zip(
        *(read_predictions(tmp_path / o / "predictions_val.json") for o in ("plain", "tta")), strict=True
    ):
        assert one.probabilities == pytest.approx(two.probabilities, abs=1e-5)
    assert metrics["blind"]["accuracy"] <= 100


def test_blind_is_every_image_grey(scpc, trained, plain, tmp_path, capsys):
    from PIL import Image

    assert evaluate(scpc, trained, tmp_path / "blind", "--blind") == 0
    assert "gain from seeing the image" in capsys.readouterr().out
    out = tmp_path / "blind"
    assert (out / "predictions_val.json").read_text() == (plain / "predictions_val.json").read_text()
    blind = read_predictions(out / "predictions_val_blind.json")
    assert all("--blind" in (p.problem or "") for p in blind)
    images = tmp_path / "images"
    shutil.copytree(scpc / "images", images)
    for path in images.iterdir():
        Image.new("RGB", (50, 40), (128, 128, 128)).save(path.with_suffix(".png"))
        path.write_bytes(path.with_suffix(".png").read_bytes())
    assert evaluate(scpc, trained, tmp_path / "grey", "--image_root", str(images)) == 0
    for one, two in zip(blind, read_predictions(tmp_path / "grey" / "predictions_val.json"), strict=True):
        assert one.probabilities == pytest.approx(two.probabilities, abs=1e-5)
    found, seeing = metrics_of(out)["blind"], metrics_of(out)["accuracy"]
    assert found["accuracy"] == metrics_of(tmp_path / "grey")["accuracy"]
    assert found["gap"]["accuracy"] == pytest.approx(seeing - found["accuracy"])
    assert found["gap"]["low"] <= found["gap"]["accuracy"] <= found["gap"]["high"]


def test_a_fitted_temperature_is_kept_and_used(scpc, trained, plain, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    best = run / "checkpoint-best.pth"
    before = json.loads(best.with_suffix(".json").read_text())
    assert evaluate(scpc, run, tmp_path / "fit", "--temperature", "fit") == 0
    fitted = metrics_of(tmp_path / "fit")["temperature"]
    kept = json.loads(best.with_suffix(".json").read_text())
    assert kept["temperature"] == fitted["temperature"] != 1
    assert {name: kept[name] for name in before} == before
    assert verify(best) == ""
    rows = read_predictions(plain / "predictions_val.json")
    assert fitted["nll_before"] == mean_nll(rows) > fitted["nll_after"]
    tried = [fitted["temperature"] * factor for factor in (0.8, 0.95, 1, 1.05, 1.2)]
    assert fitted["nll_after"] == min(mean_nll(rows, t) for t in tried if t <= HIGHEST)

    assert evaluate(scpc, run, tmp_path / "later") == 0
    assert f"temperature {fitted['temperature']:g}, kept" in capsys.readouterr().out
    later = read_predictions(tmp_path / "later" / "predictions_val.json")
    assert later == read_predictions(tmp_path / "fit" / "predictions_val.json")
    assert [p.answer for p in later] == [p.answer for p in rows]
    assert later[0].probabilities != rows[0].probabilities
    row = later[0]
    answer = beit3_vqa.load(best, device="cpu", precision="fp32").predict(
        scpc / "images" / row.image, row.question, row.choices
    )
    assert answer.probabilities == pytest.approx(row.probabilities, abs=1e-5)

    assert evaluate(scpc, run, tmp_path / "one", "--temperature", "1") == 0
    assert (tmp_path / "one" / "predictions_val.json").read_text() == (plain / "predictions_val.json").read_text()
    assert evaluate(scpc, run, tmp_path / "hot", "--temperature", "1000") == 0
    hot = read_predictions(tmp_path / "hot" / "predictions_val.json")
    assert [p.answer for p in hot] == [p.answer for p in rows]
    assert all(share == pytest.approx(0.25, abs=0.01) for p in hot for share in p.probabilities.values())
    assert metrics_of(tmp_path / "hot")["loss"] == metrics_of(plain)["loss"]


def test_a_checkpoint_that_is_replaced_meanwhile_does_not_lend_its_name(scpc, trained, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    best = run / "checkpoint-best.pth"
    evaluated = get_sha256(best)

    def replacing(*arguments, **more):
        for suffix in (".pth", ".json"):
            shutil.copy(trained / f"checkpoint-0{suffix}", best.with_suffix(suffix))
        return evaluate_fully(*arguments, **more)

    monkeypatch.setattr("beit3_vqa.engine.api.evaluate_fully", replacing)
    assert evaluate(scpc, run, tmp_path / "out") == 0
    assert read_info(tmp_path / "out" / "predictions_val.json").sha256 == evaluated != get_sha256(best)
    shutil.copytree(trained, run, dirs_exist_ok=True)
    assert evaluate(scpc, run, tmp_path / "fit", "--temperature", "fit") == 2
    assert "was replaced while it was evaluated" in capsys.readouterr().err
    assert "temperature" not in json.loads(best.with_suffix(".json").read_text())


def test_without_answers_there_is_nothing_to_score(scpc, trained, tmp_path, capsys):
    resume = ["--eval", "--resume", str(trained / "checkpoint-best.pth"), "--tta", "cyclic", "--blind"]
    assert main(finetune(scpc, tmp_path / "out", *resume)) == 0
    said = capsys.readouterr().out
    assert "are answered the same" in said
    assert "nothing to score" in said
    assert not (tmp_path / "out" / "metrics.json").exists()
    with (scpc / "test.csv").open(encoding="utf-8") as file:
        ids = [row["ID"] for row in csv.DictReader(file)]
    for name in ("predictions.json", "predictions_blind.json"):
        assert [p.id for p in read_predictions(tmp_path / "out" / name)] == ids


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--tta", "cyclic"], "--tta: belongs to --eval"),
        (["--blind"], "--blind: belongs to --eval"),
        (["--temperature", "2"], "--temperature: belongs to --eval"),
        (
            ["--eval", "--temperature", "fit"],
            "works on --split val only; fitted on test it would make test results look better",
        ),
        (["--eval", "--temperature", "warm"], "must be fit, or a number"),
        (["--eval", "--temperature", "nan"], "must be fit, or a number"),
        (["--eval", "--temperature", "0"], "must be fit, or a number"),
        (["--eval", "--tta", "cyclical"], "Did you mean 'cyclic'"),
    ],
)
def test_evaluation_options_that_do_not_go_together_are_refused(scpc, trained, tmp_path, capsys, flags, says):
    resume = ["--resume", str(trained / "checkpoint-best.pth")]
    assert main(finetune(scpc, tmp_path / "out", *resume, *flags)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_temperature_needs_a_place_to_be_kept(scpc, trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    manifest = tmp_path / "run" / "checkpoint-best.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "temperature": "warm"}))
    assert evaluate(scpc, tmp_path / "run", tmp_path / "out") == 2
    assert "temperature 'warm' must be a number" in capsys.readouterr().err
    manifest.unlink()
    assert evaluate(scpc, tmp_path / "run", tmp_path / "out", "--temperature", "fit") == 2
    assert "can't be kept there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_image_is_decoded_once_for_all_orders_of_a_batch(scpc, trained, tmp_path, monkeypatch):
    from beit3_vqa.data import images as image_cache

    opened = []
    open_image = image_cache.open_image
    monkeypatch.setattr(image_cache, "open_image", lambda path, **how: opened.append(path) or open_image(path, **how))
    for out, flags in (("plain", []), ("tta", ["--tta", "cyclic"])):
        opened.append("")
        assert evaluate(scpc, trained, tmp_path / out, *flags) == 0
    begin = opened.index("", 1)
    assert opened[1:begin] == opened[begin + 1 :] != []


def test_bad_images_are_grey_in_every_order(scpc, trained, tmp_path):
    shutil.copytree(scpc / "images", tmp_path / "images")
    rows = [json.loads(line) for line in (scpc / "data" / "vqacustom.val.jsonl").read_text().splitlines()]
    (tmp_path / "images" / rows[0]["image_path"]).write_bytes(b"no image")
    flags = ["--tta", "cyclic", "--skip_bad_images", "1", "--image_root", str(tmp_path / "images")]
    assert evaluate(scpc, trained, tmp_path / "out", *flags) == 0
    found = read_predictions(tmp_path / "out" / "predictions_val.json")
    assert [bool(p.problem) for p in found] == [row["image_path"] == rows[0]["image_path"] for row in rows]


@pytest.mark.parametrize("flags", [[], ["--tta", "cyclic"]])
def test_an_image_asked_about_in_many_places_of_a_table_is_decoded_once(scpc, trained, tmp_path, monkeypatch, flags):
    with (scpc / "train.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    rows.sort(key=lambda row: row[1])
    predictions, decoded = {}, []
    for name, ordered in {"together": rows, "scattered": rows[::2] + rows[1::2]}.items():
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *ordered])
        prepare = ["prepare", "choices", "--train", str(tmp_path / f"{name}.csv"), "--val_ratio", "0"]
        prepare += ["--image_root", str(scpc / "images"), "--data_path", str(tmp_path / name)]
        assert main(prepare) == 0
    # Of one image: what is asked about it elsewhere would be decoded again.
    monkeypatch.setattr(images.ImageCache, "__init__", small_cache(images.ImageCache.__init__))
    monkeypatch.setattr(images, "open_image", lambda path, **how: decoded.append(path) or open_image(path, **how))
    for name in ("together", "scattered"):
        decoded.clear()
        command = ["--eval", "--task", "vqacustom", "--resume", str(trained / "checkpoint-best.pth"), *flags]
        command += ["--data_path", str(tmp_path / name), "--output_dir", str(tmp_path / f"{name}_out")]
        command += ["--device", "cpu", "--precision", "fp32", "--num_workers", "0", "--split", "train"]
        assert main(["finetune", *command]) == 0
        predictions[name] = read_predictions(tmp_path / f"{name}_out" / "predictions_train.json")
        assert len(decoded) == len(set(decoded)) == len({row[1] for row in rows})
    assert [p.id for p in predictions["scattered"]] == [row[0] for row in rows[::2] + rows[1::2]]
    by_id = {p.id: p.probabilities for p in predictions["together"]}
    for prediction in predictions["scattered"]:
        assert prediction.probabilities == pytest.approx(by_id[prediction.id], abs=1e-5)


def small_cache(init):
    return lambda self, max_bytes=0, at_least=None: init(self, 48 * 2**10, at_least)


def test_rows_that_the_model_was_trained_on_are_told(scpc, trained, tmp_path, capsys):
    shutil.copytree(scpc / "data", tmp_path / "data")
    shutil.copyfile(tmp_path / "data" / "vqacustom.train.jsonl", tmp_path / "data" / "vqacustom.val.jsonl")
    there = ["--data_path", str(tmp_path / "data"), "--image_root", str(scpc / "images")]
    assert evaluate(scpc, trained, tmp_path / "out", *there) == 0
    assert "val: the model was trained on 30 of the 30 rows, so the score flatters" in capsys.readouterr().out
