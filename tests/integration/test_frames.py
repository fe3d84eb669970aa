"""DataFrames in and out: prepare, fit, predict_frame and evaluate_frame, and `predict --table`, which does the same."""

import io
import json
import random
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import beit3_vqa
from beit3_vqa.cli.main import main
from beit3_vqa.errors import InputError
from tests.helpers.commands import CLIP
from tests.helpers.photographs import SUBJECTS


@pytest.fixture(scope="module")
def predictor(trained):
    return beit3_vqa.load(trained, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def test_frame(scpc):
    """The test questions in another order, under an index of texts that isn't sorted."""
    frame = pd.read_csv(scpc / "test.csv", dtype=str, keep_default_na=False).sample(frac=1, random_state=3)
    return frame.set_index(pd.Index([f"row {letter}" for letter in "mbdcaefghijkl"], name="key"))


def evaluated(out, tmp_path, data, *flags):
    """The predictions of --eval by id, and its metrics."""
    command = ["finetune", "--eval", "--resume", str(out / "checkpoint-best.pth"), "--data_path", str(data)]
    command += ["--output_dir", str(tmp_path), "--device", "cpu", "--precision", "fp32", "--num_workers", "0", *flags]
    assert main(command) == 0
    suffix = "_val" if "val" in flags else ""
    predictions = json.loads((tmp_path / f"predictions{suffix}.json").read_text(encoding="utf-8"))
    metrics = tmp_path / f"metrics{suffix}.json"
    return {p["id"]: p for p in predictions}, json.loads(metrics.read_text()) if metrics.exists() else {}


def check_equal(answers, expected, ids):
    """Each row of a frame has the answer and the probabilities that evaluation gave the question of that id."""
    assert len(answers) == len(expected)
    for name, (_, row) in zip(ids, answers.iterrows(), strict=True):
        known = expected[name]
        assert row["answer"] == known["answer"]
        if known.get("choices"):
            ours = {letter: row[f"p_{letter}"] for letter in known["probabilities"]}
            beyond = [c for c in answers.columns if c.startswith("p_") and c[2:] not in ours]
            assert row[beyond].isna().all()
        else:
            places = ["", *(f"_{n}" for n in range(2, len(known["probabilities"]) + 1))]
            ours = {row[f"answer{n}"]: row[f"probability{n}"] for n in places}
        assert ours == pytest.approx(known["probabilities"], abs=1e-6)
        assert row["probability"] == ours[row["answer"]]


def test_a_frame_is_answered_as_the_prepared_folder(scpc, trained, predictor, test_frame, tmp_path, capsys):
    expected, _ = evaluated(trained, tmp_path, scpc / "data", "--task", "vqacustom")
    before = test_frame.copy()
    capsys.readouterr()
    answers = predictor.predict_frame(test_frame, scpc / "images")
    assert capsys.readouterr().out == ""
    pd.testing.assert_frame_equal(test_frame, before)
    assert list(answers.columns) == [*before.columns, "answer", "probability", "p_A", "p_B", "p_C", "p_D"]
    pd.testing.assert_index_equal(answers.index, before.index)
    pd.testing.assert_frame_equal(answers[before.columns], before)
    check_equal(answers, expected, before["ID"])
    again = predictor.predict_frame(answers, scpc / "images", batch_size=5, num_workers=2)
    assert list(again.columns) == list(answers.columns)
    assert again["p_A"].to_list() == pytest.approx(answers["p_A"].to_list(), abs=1e-6)


def close(ours, known):
    """Return whether two pieces of JSON are equal, their numbers up to 1e-5."""
    if isinstance(known, dict):
        return ours.keys() == known.keys() and all(close(ours[name], known[name]) for name in known)
    if isinstance(known, list):
        return len(ours) == len(known) and all(map(close, ours, known))
    return ours == (pytest.approx(known, rel=1e-5) if isinstance(known, float) else known)


def test_evaluate_frame_gives_the_metrics_of_evaluation(scpc, trained, predictor, tmp_path):
    expected, metrics = evaluated(trained, tmp_path, scpc / "data", "--task", "vqacustom", "--split", "val")
    train = pd.read_csv(scpc / "train.csv", dtype=str, keep_default_na=False).set_index("ID", drop=False)
    scores = predictor.evaluate_frame(train.loc[list(expected)], scpc / "images")
    # Evaluation counts the training answers for its baselines, and a frame has none.
    assert scores.pop("baselines") != metrics.pop("baselines")
    assert close(json.loads(json.dumps(scores)), metrics)
    without = train.iloc[:3].assign(ID=["T0", "T1", "T2"], answer=["A", None, "E"]).set_index("ID", drop=False)
    with pytest.raises(InputError, match=r"(?s)row 'T1'.*answer is empty") as told:
        predictor.evaluate_frame(without, scpc / "images")
    assert "row 'T2'" in str(told.value)


def ragged(images, options):
    """Questions with two to four options, or none: train and test."""
    rng, names = random.Random(0), sorted(path.name for path in images.iterdir())[:6]
    rows = []
    for number in range(24):
        right = SUBJECTS[number % len(names)]
        row = {"key": f"k{number}", "file name": names[number % len(names)], "text": "What is it?"}
        if options:
            others = [subject for subject in dict.fromkeys(SUBJECTS) if subject != right]
            choices = [right, *rng.sample(others, [3, 1, 2][number % 3])]
            rng.shuffle(choices)
            row |= {f"opt{n + 1}": choices[n] if n < len(choices) else None for n in range(4)}
        rows.append({**row, "gt": right})
    frame = pd.DataFrame(rows)
    return frame, frame.iloc[::-1].drop(columns="gt").reset_index(drop=True)


KINDS = {
    "beit3": {"prompt_template": "{question} Choices: {options}"},
    "vqarank": {"task": "vqarank"},
    "clip": {"model": f"{CLIP.name}_lora", "lora_rank": 4},
    "open": {},
}


@pytest.mark.parametrize("kind", ["beit3", *(pytest.param(kind, marks=pytest.mark.slow) for kind in [*KINDS][1:])])
def test_prepare_fit_and_predict_agree_with_evaluation(scpc, clip_folder, tmp_path, kind):
    images, flags = scpc / "images", {"model": "beit3_tiny_patch8_32", "vocab_size": 200, **KINDS[kind]}
    if kind == "clip":
        flags["pretrained"] = clip_folder
        del flags["vocab_size"]
    train, test = ragged(images, options=kind != "open")
    columns = {"id": "key", "image": "file name", "question": "text", "answer": "gt"}
    if kind != "open":
        columns["options"] = ("opt1", "opt4")
    data = beit3_vqa.prepare(
        train,
        test=test.assign(gt=None),
        image_root=images,
        data_path=tmp_path / "data",
        columns=columns,
        val_ratio=0.3,
        train_tokenizer=200,
    )
    assert data.data_path == tmp_path / "data"
    assert data.rows["test"] == 24
    assert data.rows["train"] + data.rows["val"] == 24
    assert sum(data.answers["train"].values()) == data.rows["train"]
    assert str(data) == data.text()

    run = beit3_vqa.fit(data, **flags, epochs=1, batch_size=8, output_dir=tmp_path / "out", device="cpu", num_workers=0)
    assert run.checkpoint == tmp_path / "out" / "checkpoint-best.pth"
    assert (run.best_epoch, run.epochs, run.output_dir) == (0, 1, tmp_path / "out")
    assert run.metrics["accuracy"] == run.history[0]["val_accuracy"]
    assert str(run.checkpoint) in str(run)

    task = ["--task", flags.get("task", "vqacustom")]
    expected, _ = evaluated(tmp_path / "out", tmp_path / "eval", data.data_path, *task)
    predictor = beit3_vqa.load(tmp_path / "out", device="cpu", precision="fp32")
    asked = {meaning: name for meaning, name in columns.items() if meaning not in ("id", "answer")}
    answers = predictor.predict_frame(test, images, columns=asked, batch_size=7)
    check_equal(answers, expected, test["key"])

    test.to_excel(tmp_path / "test.xlsx", index=False)
    said = "image=file name,question=text" + (",options=opt1:opt4" if kind != "open" else "")
    command = ["predict", "--checkpoint", str(tmp_path / "out"), "--table", str(tmp_path / "test.xlsx"), "--device"]
    command += ["cpu", "--precision", "fp32", "--image_root", str(images), "--columns", said]
    assert main([*command, "--output", str(tmp_path / "answers.csv")]) == 0
    written = pd.read_csv(tmp_path / "answers.csv")
    assert list(written.columns) == list(answers.columns)
    check_equal(written, expected, written["key"])


def test_frames_of_any_kind_are_answered(scpc, predictor, test_frame):
    images = scpc / "images"
    plain = predictor.predict_frame(test_frame, images)
    doubled = test_frame.set_index(pd.Index([7] * len(test_frame)))
    assert list(predictor.predict_frame(doubled, images).index) == [7] * len(test_frame)
    kinds = test_frame.astype({"A": "category", "B": "string[pyarrow]", "Question": "string"})
    paths = kinds.assign(img_path=[images.absolute() / name for name in kinds["img_path"]])
    answers = predictor.predict_frame(paths, images.absolute())
    assert answers["p_C"].to_list() == pytest.approx(plain["p_C"].to_list(), abs=1e-6)
    numbers = test_frame.assign(A=range(13), B=np.arange(13) + 0.5, C=100, D=pd.array([None, *range(200, 212)]))
    with pytest.raises(InputError, match=r"row 'row m': the model chooses among 4 options; 3 were given"):
        predictor.predict_frame(numbers, images)
    answers = predictor.predict_frame(numbers.iloc[1:], images)
    asked = predictor.predict(images / numbers["img_path"].iloc[1], numbers["Question"].iloc[1], [1, 1.5, 100, 200])
    assert answers["p_B"].iloc[0] == pytest.approx(asked.probabilities["B"], abs=1e-6)
    lists = test_frame.drop(columns=list("ABCD")).assign(options=[np.array(["p", "q", "r", "s"])] * 13)
    assert predictor.predict_frame(lists, images)["p_D"].between(0, 1).all()

    empty = predictor.predict_frame(test_frame.iloc[:0], images)
    assert list(empty.columns) == list(plain.columns)
    assert len(empty) == 0
    with pytest.raises(InputError, match="no rows to evaluate"):
        predictor.evaluate_frame(test_frame.iloc[:0], images)
    with pytest.raises(InputError, match="a pandas DataFrame is needed"):
        predictor.predict_frame(str(scpc / "test.csv"), images)


def test_an_absent_image_is_one_of_the_bad_ones_that_may_be(scpc, predictor, test_frame):
    frame = test_frame.copy()
    frame.loc["row d", "img_path"] = "gone.jpg"
    with pytest.raises(InputError, match=r"row 'row d': image 'gone\.jpg' doesn't exist"):
        predictor.predict_frame(frame, scpc / "images")
    answers = predictor.predict_frame(frame, scpc / "images", skip_bad_images=1)
    assert list(answers.index[answers["problem"] != ""]) == ["row d"]
    frame.loc["row c", "img_path"] = "gone too.jpg"
    with pytest.raises(InputError, match="row 'row d': image"):
        predictor.predict_frame(frame, scpc / "images", skip_bad_images=1)


def test_every_bad_row_is_named_by_its_index_at_once(scpc, predictor, test_frame, tmp_path):
    shutil.copytree(scpc / "images", tmp_path / "images")
    broken = test_frame["img_path"].iloc[4]
    content = (tmp_path / "images" / broken).read_bytes()
    (tmp_path / "images" / broken).write_bytes(content[: len(content) // 2])
    frame = test_frame.copy()
    with pytest.raises(InputError, match="images that can't be read") as told:
        predictor.predict_frame(frame, tmp_path / "images")
    users = frame.index[frame["img_path"] == broken]
    assert all(f"row {label!r}: image" in str(told.value) for label in users)
    answers = predictor.predict_frame(frame, tmp_path / "images", skip_bad_images=1)
    assert list(answers.index[answers["problem"] != ""]) == list(users)

    frame.loc["row b", "Question"] = None
    frame.loc["row d", "img_path"] = "gone.jpg"
    frame.loc["row c", "B"] = float("nan")
    frame.loc["row a"] = None
    with pytest.raises(InputError) as told:
        predictor.predict_frame(frame, tmp_path / "images")
    for part in (
        "row 'row b': ",
        "row 'row d': image 'gone.jpg'",
        "row 'row c': option B",
        "row 'row a': has no value",
    ):
        assert part in str(told.value)
    with pytest.raises(InputError, match="nowhere"):
        predictor.predict_frame(test_frame, tmp_path / "nowhere")


def test_table_command_writes_whole_files_and_replaces_no_input(scpc, trained, tmp_path, capsys):
    table = tmp_path / "test.csv"
    shutil.copy(scpc / "test.csv", table)
    command = ["predict", "--checkpoint", str(trained), "--device", "cpu", "--precision", "fp32"]
    asked = [*command, "--table", str(table), "--image_root", str(scpc / "images"), "--output"]
    before = table.read_bytes()
    assert main([*asked, str(table)]) == 2
    assert "would overwrite a file that is read" in capsys.readouterr().err
    assert main([*asked, str(trained / "checkpoint-best.pth")]) == 2
    image = scpc / "images" / pd.read_csv(table)["img_path"][0]
    assert main([*asked, str(image)]) == 2
    assert main([*asked, str(tmp_path / "no" / "answers.csv")]) == 2
    assert table.read_bytes() == before
    table.write_text(table.read_text().replace(image.name, "gone.jpg", 1))
    assert main([*asked, str(tmp_path / "answers.csv")]) == 2
    assert f"{table}:2: image 'gone.jpg' doesn't exist" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.csv"]


def test_one_question_is_asked_of_every_image_in_a_folder(scpc, predictor, trained, tmp_path, capsys):
    (tmp_path / "images" / "more").mkdir(parents=True)
    names = sorted(path.name for path in (scpc / "images").iterdir())[:3]
    for name, place in zip(names, ("b.jpg", "more/c.JPG", "a.jpg"), strict=True):
        shutil.copy(scpc / "images" / name, tmp_path / "images" / place)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    command = ["predict", "--checkpoint", str(trained), "--device", "cpu", "--precision", "fp32"]
    command += ["--image", str(tmp_path / "images"), "--question", "What?", "--choices", "p", "q", "r", "r"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["a.jpg", "b.jpg", "more/c.JPG"]
    asked = predictor.predict(tmp_path / "images" / "a.jpg", "What?", list("pqrr"))
    assert lines[0].split()[2:] == [asked.answer, "pqrr"["ABCD".index(asked.answer)]]
    assert main([*command, "--output", str(tmp_path / "answers.csv")]) == 0
    written = pd.read_csv(tmp_path / "answers.csv")
    assert list(written["image"]) == ["a.jpg", "b.jpg", "more/c.JPG"]
    assert written["p_C"][0] == pytest.approx(asked.probabilities["C"], abs=1e-6)


def test_images_and_options_of_any_kind_give_one_answer(scpc, predictor):
    path = scpc / "images" / "0_chelsea.jpg"
    options = ["a cat", "a dog", "a cup", "a cup"]  # two may be equal: the answer is a letter
    expected = predictor.predict(path, "What is it?", options)
    assert expected.answer in "ABCD"
    pixels = Image.open(path).convert("RGB")
    row = pd.Series(options, index=list("ABCD"))
    with Image.open(path) as opened:  # not decoded yet
        assert predictor.predict(opened, "What is it?", options).probabilities == expected.probabilities
    for image, choices in (
        (str(path), tuple(options)),
        (path.read_bytes(), row),
        (pixels, np.array(options)),
        (pixels, row.astype("category")),
        (np.asarray(pixels), [*options, None, float("nan")]),
    ):
        assert predictor.predict(image, "What is it?", choices).probabilities == expected.probabilities
    grey = np.asarray(pixels.convert("L"))
    assert predictor.predict(grey, "What?", options) == predictor.predict(np.dstack([grey] * 3), "What?", options)
    numbers = predictor.predict(path, "How many?", [1, 2.5, np.int64(3), True])
    assert numbers.choices == ("1", "2.5", "3", "true")


def test_an_image_file_that_was_replaced_is_read_again(scpc, predictor, tmp_path):
    frame = pd.DataFrame({"image": ["now.jpg"], "question": ["What?"], **{letter: [letter * 2] for letter in "ABCD"}})
    seen = []
    for name in ("0_chelsea.jpg", "0_coffee.jpg"):
        shutil.copy(scpc / "images" / name, tmp_path / "now.jpg")
        asked = predictor.predict(tmp_path / "now.jpg", "What?", ["AA", "BB", "CC", "DD"])
        answers = predictor.predict_frame(frame, tmp_path)
        assert answers["p_A"][0] == pytest.approx(asked.probabilities["A"], abs=1e-6)
        seen.append(asked.probabilities["A"])
    assert seen[0] != seen[1]


@pytest.mark.parametrize(
    ("image", "question", "choices", "said"),
    [
        (None, "What?", "abcd", "the options are 'abcd': give a list"),
        (None, "What?", ["a", None, "c", "d"], "option B is missing"),
        (None, "What?", ["a", pd.NA, "c", "d"], "option B is missing"),
        (None, "What?", ["a", {}, "c", "d"], "option B is {}"),
        (None, "What?", ["a", "", "c", "d"], "of the options none may be empty"),
        (None, "What?", 5, "the options are 5"),
        (None, "What?", {"a"}, "the options are {'a'}: give a list"),
        (None, float("nan"), list("abcd"), "the question is missing"),
        (None, " ", list("abcd"), "the question is empty"),
        (np.zeros((3, 8, 8), np.uint8), "What?", list("abcd"), "array (3, 8, 8) of uint8"),
        (np.zeros((8, 8, 3)), "What?", list("abcd"), "array (8, 8, 3) of float64"),
        (np.zeros((0, 8), np.uint8), "What?", list("abcd"), "8 x 0 pixels"),
        (np.zeros((1, 70_000), np.uint8), "What?", list("abcd"), "a side of more than"),
        (b"no image", "What?", list("abcd"), "the image is no image"),
        (Image.new("1", (8_000, 8_000)), "What?", list("abcd"), "8000 x 8000 pixels"),
        (3, "What?", list("abcd"), "the image is 3: give a path"),
    ],
)
def test_what_is_no_question_is_refused_in_a_sentence(scpc, predictor, image, question, choices, said):
    image = scpc / "images" / "0_chelsea.jpg" if image is None else image
    with pytest.raises(InputError) as told:
        predictor.predict(image, question, choices)
    assert said in str(told.value)


def test_an_image_that_pillow_has_only_opened_has_the_limits_of_files(scpc, predictor):
    content = io.BytesIO()
    Image.new("1", (8_000, 8_000)).save(content, "PNG")
    opened = Image.open(content)
    with pytest.raises(InputError, match=r"the image has 8000 x 8000 pixels, more than 50,000,000"):
        predictor.predict(opened, "What?", list("abcd"))
    half = (scpc / "images" / "0_chelsea.jpg").read_bytes()[:-500]
    for image in (half, Image.open(io.BytesIO(half))):
        with pytest.raises(InputError, match="the image is truncated, damaged"):
            predictor.predict(image, "What?", list("abcd"))


def test_load_takes_a_folder_and_print_says_what_it_is(trained, predictor, tmp_path):
    shown = str(predictor)
    for part in ("beit3_tiny_patch8_32", "4 options", str(trained / "checkpoint-best.pth"), "cpu, fp32", "vqacustom"):
        assert part in shown
    for name in ("checkpoint-0.pth", "checkpoint-0.json", "checkpoint-1.pth", "checkpoint-1.json", "tokenizer.spm"):
        shutil.copy(trained / name, tmp_path)
    newest = beit3_vqa.load(tmp_path, device="cpu")
    assert newest.checkpoint == str(tmp_path / "checkpoint-1.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is a folder without a checkpoint"):
        beit3_vqa.load(tmp_path / "empty")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"epoch": 5}, "fit has no keyword 'epoch'. Did you mean 'epochs'?"),
        ({"epochs": "five"}, "fit: epochs can't be 'five'; expected int"),
        ({"epochs": 0}, "--epochs 0: must be at least 1"),
        ({"data_path": "x"}, "data_path is the first argument"),
        ({"eval": True}, "fit trains"),
        ({}, "--output_dir"),
    ],
)
def test_fit_names_the_keyword_that_is_wrong(scpc, flags, said):
    with pytest.raises(InputError) as told:
        beit3_vqa.fit(scpc / "data", **flags)
    assert said in str(told.value)


def test_prepare_names_the_keyword_that_is_wrong(tmp_path):
    frame = pd.DataFrame({"image": ["a.png"], "question": ["?"], "answer": ["x"]})
    places = {"image_root": tmp_path, "data_path": tmp_path / "data"}
    with pytest.raises(InputError, match=r"prepare has no keyword 'val_ration'\. Did you mean 'val_ratio'"):
        beit3_vqa.prepare(frame, **places, val_ration=0.1)
    with pytest.raises(InputError, match="prepare: train is 5"):
        beit3_vqa.prepare(5, **places)
    with pytest.raises(InputError, match="columns: image is 5"):
        beit3_vqa.prepare(frame, **places, columns={"image": 5})
    with pytest.raises(InputError, match=r"a\.png' doesn't exist"):
        beit3_vqa.prepare(frame, **places)


def test_flags_of_predict_that_contradict_are_refused(tmp_path, capsys):
    for flags, said in (
        (["--table", "t.csv", "--image", "x"], "leave --image"),
        (["--table", "t.csv"], "--table needs --image_root"),
        ([], "give --image and --question"),
        (["--image", "x", "--question", "?", "--sheet", "s"], "--sheet: belongs to --table"),
        (["--image", "x", "--question", "?", "--output", "o"], "for a --table, or a folder"),
    ):
        assert main(["predict", "--checkpoint", "c.pth", *flags]) == 2
        assert said in capsys.readouterr().err
