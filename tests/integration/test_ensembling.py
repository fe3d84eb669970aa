"""`beit3-vqa ensemble` by the command line: from files of predictions, and from checkpoints of both families."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from beit3_vqa.cli.main import main
from beit3_vqa.config.resolve import GivenOptions
from beit3_vqa.data.predictions import info_file, read_info, read_predictions, write_info, write_predictions
from beit3_vqa.data.types import PredictionsInfo
from beit3_vqa.engine.build import plan_evaluation
from beit3_vqa.engine.checkpoint.manifest import get_sha256
from beit3_vqa.models.base import TaskShape
from beit3_vqa.models.beit3.family import BEiT3Family
from beit3_vqa.models.clip.family import CLIPFamily
from beit3_vqa.models.names import clip_config_values, parse_clip_name
from tests.helpers.commands import finetune_clip
from tests.helpers.ensembles import simulated
from tests.helpers.options import build_config

LARGE = 676_582_404  # beit3_large_patch16_480 with four answers
FOUR_OPTIONS = TaskShape("vqacustom", 4, True)


def write_members(folder, skills, *, parameters=LARGE, seed=0, count=40, sha=None):
    """A predictions.json, its info and its predictions_val.json for each member, in folders m0, m1, ..."""
    questions, val = simulated(count, skills, seed), simulated(60, skills, seed + 1, name="val q")
    paths = []
    for number in range(len(skills)):
        (folder / f"m{number}").mkdir()
        for name, some in (("predictions.json", questions), ("predictions_val.json", val)):
            path = write_predictions([q.answers[number] for q in some], folder / f"m{number}" / name)
            given = PredictionsInfo("vqacustom", "beit3_large", parameters, sha256=sha or f"{number}", split="test")
            write_info(given, path)
        paths.append(str(folder / f"m{number}" / "predictions.json"))
    return paths


def without_truth(path):
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{k: v for k, v in row.items() if k not in ("truth", "score")} for row in rows]))


def test_predictions_that_are_not_what_their_info_is_of_have_no_vote(tmp_path, capsys):
    """What is left by an evaluation that was killed while it wrote."""
    paths = write_members(tmp_path, [1.0] * 2)
    out = tmp_path / "e" / "submission.csv"
    for name, votes in (("predictions.json", "soft"), ("predictions_val.json", "weighted")):
        path = tmp_path / "m1" / name
        info = read_info(path)
        write_info(dataclasses.replace(info, predictions_sha256="0" * 64), path)
        assert main(["ensemble", *paths, "--vote", votes, "--output", str(out)]) == 2
        assert f"{path} doesn't match" in capsys.readouterr().err
        assert not out.exists()
        write_info(info, path)


@pytest.mark.parametrize(
    ("model", "least"),
    [
        ("beit3_large_patch16_480", LARGE - 1024 * 64_010),
        ("beit3_base_patch16_480_vqav2", 223_307_524 - 768 * 64_010),
        ("ensemble of 2 (soft vote): beit3_base_patch16_480, beit3_large_patch16_480", LARGE - 1024 * 64_010),
        ("clip_vit_large_patch14_lora", 434_104_577 - 6_488_064 - 768 * (49_408 + 77)),
    ],
)
def test_a_model_has_no_fewer_parameters_than_its_name_says(tmp_path, capsys, model, least):
    paths = write_members(tmp_path, [1.0])
    path = tmp_path / "m0" / "predictions.json"
    for parameters, code in ((1, 2), (round(0.98 * least), 2), (least, 0)):
        write_info(dataclasses.replace(read_info(path), model=model, parameters=parameters), path)
        command = ["ensemble", *paths, "--vote", "soft", "--output", str(tmp_path / "e" / "submission.csv")]
        assert main(command) == code
        report = ["report", str(tmp_path / "m0"), "--output", str(tmp_path / "r.html"), "--attention", "0"]
        assert main(report) == code
        assert capsys.readouterr().err.count(f"says {parameters:,} parameters of '{model[:20]}") == (2 if code else 0)


def test_four_large_models_are_within_the_rules_and_five_are_not(tmp_path, capsys):
    paths = write_members(tmp_path, [1.0] * 5)
    out = tmp_path / "e" / "submission.csv"
    assert main(["ensemble", *paths[:4], "--vote", "hard", "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert "2,706,329,616  in all, of 3,000,000,000" in said
    info = read_info(tmp_path / "e" / "predictions.json")
    assert (info.parameters, info.model, info.sha256) == (
        2_706_329_616,
        "ensemble of 4 (hard vote): 4 x beit3_large",
        "",
    )
    out = tmp_path / "five" / "submission.csv"
    assert main(["ensemble", *paths, "--output", str(out)]) == 2
    assert "3,382,912,020 parameters together, 382,912,020 more than --max_params" in capsys.readouterr().err
    assert not out.parent.exists()
    assert main(["ensemble", *paths, "--output", str(out), "--max_params", "3382912020"]) == 0  # the limit itself


def test_a_budget_too_small_for_any_model_is_refused(tmp_path, capsys):
    paths = write_members(tmp_path, [1.0] * 2)
    arguments = ["ensemble", *paths, "--greedy", "--max_params", "1e8", "--output", str(tmp_path / "submission.csv")]
    assert main(arguments) == 2
    assert "676,582,404 parameters each, or more" in capsys.readouterr().err


def test_the_same_weights_count_once(tmp_path, capsys):
    paths = write_members(tmp_path, [1.0] * 5, sha="the same")
    assert main(["ensemble", *paths, "--output", str(tmp_path / "e" / "submission.csv")]) == 0
    said = capsys.readouterr().out
    assert "(the weights of 1, counted once)" in said
    assert "676,582,404  in all" in said
    for path in paths:  # the same path and name of a checkpoint prove nothing
        info = info_file(tmp_path / path)
        info.write_text(json.dumps({**json.loads(info.read_text()), "sha256": "", "checkpoint": "out/best.pth"}))
    assert main(["ensemble", *paths, "--output", str(tmp_path / "e" / "submission.csv")]) == 2


def test_parameters_that_no_file_says_are_asked_for(tmp_path, capsys):
    paths = write_members(tmp_path, [1.0] * 3)
    info_file(tmp_path / "m1" / "predictions.json").unlink()
    arguments = ["ensemble", *paths, "--output", str(tmp_path / "e" / "submission.csv")]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert f"--params {paths[1]}=N" in said
    assert paths[0] not in said
    assert main([*arguments, "--params", f"{paths[1]}=434,104,577"]) == 0
    assert f"{2 * LARGE + 434104577:,}  in all" in capsys.readouterr().out
    for wrong, says in (
        (f"{paths[1]}=many", "write FILE=N"),
        ("5", "write FILE=N"),
        (f"{paths[1]}x=5", "Did you mean"),
        (f"{paths[0]}=5", "says 676,582,404"),
    ):
        assert main([*arguments, "--params", f"{paths[1]}=5", "--params", wrong]) == 2
        assert says in capsys.readouterr().err


def test_a_soft_vote_reports_members_and_accuracy(tmp_path, capsys):
    paths = write_members(tmp_path, [1.0, 1.5, 0.5])
    out = tmp_path / "e" / "submission.csv"
    assert main(["ensemble", *paths, "--output", str(out)]) == 0
    said = capsys.readouterr().out
    members = [read_predictions(tmp_path / path) for path in paths]
    for path, predictions in zip(paths, members, strict=True):
        assert f"{100 * np.mean([p.score for p in predictions]):6.2f}  {path}" in said
    means = np.mean([[[p.probabilities[a] for a in "ABCD"] for p in predictions] for predictions in members], axis=0)
    answers = ["ABCD"[k] for k in means.argmax(axis=1)]
    with out.open(newline="") as file:
        assert list(csv.reader(file)) == [["ID", "answer"], *[[f"q{n}", a] for n, a in enumerate(answers)]]
    joined = read_predictions(tmp_path / "e" / "predictions.json")
    assert [list(p.probabilities.values()) for p in joined] == [pytest.approx(row) for row in means.tolist()]
    assert f"{100 * np.mean([p.score for p in joined]):6.2f}  the ensemble, soft vote, log loss" in said
    assert "95% interval" in said
    alike = np.mean([one.answer == two.answer for one, two in zip(members[0], members[1], strict=True)])
    assert f"{100 * alike:7.1f}" in said.split("the same answer, % of questions")[1]
    # An ensemble is a member like any other, with all the parameters it is made of.
    again = tmp_path / "f" / "submission.csv"
    assert main(["ensemble", str(tmp_path / "e" / "predictions.json"), "--output", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()
    assert read_info(tmp_path / "f" / "predictions.json").parameters == 3 * LARGE


def test_where_the_answers_are_unknown_validation_says_what_it_is_worth(tmp_path, capsys):
    paths = write_members(tmp_path, [1.0, 1.0])
    for path in paths:
        without_truth(tmp_path / path)
    assert main(["ensemble", *paths, "--vote", "hard", "--output", str(tmp_path / "e" / "submission.csv")]) == 0
    assert "validation: accuracy on 60 questions" in capsys.readouterr().out
    assert read_predictions(tmp_path / "e" / "predictions.json")[0].score is None


def test_weights_are_fitted_on_validation_and_reported_with_and_without(tmp_path, capsys):
    paths = write_members(tmp_path, [2.0, 0.0, 2.0])
    arguments = ["ensemble", *paths, "--vote", "weighted", "--output", str(tmp_path / "e" / "submission.csv")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    weights = {line.split()[1]: float(line.split()[0]) for line in said.splitlines() if line.startswith("  0.")}
    assert weights[paths[1]] < 0.1
    assert sum(weights.values()) == pytest.approx(1, abs=2e-4)
    assert "validation, each question by weights fitted without it: accuracy on 60 questions" in said
    assert said.count("with equal weights, log loss") == 2
    # Given in order, they are the same as those beside the members; in another order they are other checkpoints'.
    val = [path.replace("predictions.json", "predictions_val.json") for path in paths]
    assert main([*arguments, "--val", *val]) == 0
    assert capsys.readouterr().out == said
    assert main([*arguments, "--val", *reversed(val)]) == 2
    assert "comes from another checkpoint" in capsys.readouterr().err
    info = read_info(Path(val[0]))
    write_info(dataclasses.replace(info, tta="cyclic"), Path(val[0]))
    assert main(arguments) == 2
    assert "was made with --temperature 1 --tta cyclic" in capsys.readouterr().err
    write_info(info, Path(val[0]))
    assert main([*arguments, "--val", val[0]]) == 2
    assert "1 file for 3 members" in capsys.readouterr().err
    (tmp_path / "m2" / "predictions_val.json").unlink()
    assert main(arguments) == 2
    assert f"of {paths[2]}: " in capsys.readouterr().err


def test_what_was_fitted_on_the_questions_is_not_praised_for_them(tmp_path, capsys):
    paths = write_members(tmp_path, [1.0, 1.0])
    val = [path.replace("predictions.json", "predictions_val.json") for path in paths]
    assert main(["ensemble", *val, "--vote", "weighted", "--output", str(tmp_path / "e" / "submission_val.csv")]) == 0
    said = capsys.readouterr().out
    assert "these are validation questions; the ensemble's accuracy on them is above" in said
    assert said.count(": accuracy on") == 1
    assert (tmp_path / "e" / "predictions_val.json").is_file()


def test_greedy_keeps_the_budget_and_leaves_the_useless_out(tmp_path, capsys):
    paths = write_members(tmp_path, [1.2, 0.0, 1.2, 0.0, 1.2, 1.2])
    out = tmp_path / "e" / "submission.csv"
    assert main(["ensemble", *paths, "--greedy", "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert "greedy selection" in said
    info = read_info(tmp_path / "e" / "predictions.json")
    assert info.parameters <= 3e9
    taken = [line.split(" + ")[1] for line in said.splitlines() if " + " in line and "not taken" not in line]
    assert info.parameters == len(taken) * LARGE
    assert 1 < len(taken) <= 4
    assert "not tried, since they don't fit into --max_params beside the others: " in said
    assert not {paths[1], paths[3]} & set(taken)


def test_ids_that_do_not_match_are_listed(tmp_path, capsys):
    paths = write_members(tmp_path, [1.0, 1.0])
    rows = json.loads((tmp_path / paths[1]).read_text())
    (tmp_path / paths[1]).write_text(json.dumps([*rows[2:], {**rows[0], "id": "extra"}]))
    out = tmp_path / "e" / "submission.csv"
    assert main(["ensemble", *paths, "--output", str(out)]) == 2
    said = capsys.readouterr().err
    assert "lacks 2 ids: 'q0', 'q1'" in said
    assert "has beyond it 1 id: 'extra'" in said
    (tmp_path / paths[1]).write_text(json.dumps([*rows, rows[3]]))
    assert main(["ensemble", *paths, "--output", str(out)]) == 2
    assert "the id 'q3' is in row 4 too" in capsys.readouterr().err
    assert not out.exists()


def test_folds_with_validation_questions_of_their_own_can_vote(tmp_path, capsys):
    """Of what lies beside the members, and nobody named, nothing is needed for a soft vote."""
    paths = write_members(tmp_path, [1.0, 1.0])
    val = tmp_path / "m1" / "predictions_val.json"
    val.write_text(val.read_text().replace("val q", "other q"))
    arguments = ["ensemble", *paths, "--output", str(tmp_path / "e" / "submission.csv")]
    assert main(arguments) == 0
    assert "validation predictions beside the members aren't used: " in capsys.readouterr().out
    val.write_text("{")
    assert main(arguments) == 0
    assert main([*arguments, "--greedy"]) == 2
    assert main([*arguments, "--val", str(tmp_path / "m0" / "predictions_val.json"), str(val)]) == 2


def test_ensemble_refuses_torchrun(tmp_path, monkeypatch, capsys):
    paths = write_members(tmp_path, [1.0])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["ensemble", *paths, "--output", str(tmp_path / "e" / "submission.csv")]) == 2
    assert "without torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["m0/predictions.json", "m0/../m0/predictions.json"], "given twice"),
        (["m0/predictions.jsn"], "Did you mean 'predictions.json'"),
        (["m0"], "has no checkpoint-best.pth"),
        (["m0/predictions.json", "--vote", "hart"], "Did you mean 'hard'"),
        (["m0/predictions.json", "--max_params", "nan"], "--max_params"),
        (["m0/predictions.json", "--max_params", "-1"], "--max_params"),
        (["m0/predictions.json", "--seed", "-1"], "--seed"),
        (["m0/predictions.json", "--output", "e/submission.json"], "ends in .csv"),
        (["m0/predictions.json", "--output", "m0/submission.csv"], "wasn't written by an ensemble"),
        (["m0/predictions.json", "--output", "m1/submission.csv"], "wasn't written by an ensemble"),
        (["m0/predictions.json", "--params", "m0/predictions.json=0"], "write FILE=N"),
        (["m0/predictions.json", "--output", "train.csv"], "isn't a submission"),
        (["checkpoint.pth"], "--data_path"),
        (["m0/predictions.json", "checkpoint.pth", "--data_path", "data"], "checkpoint.pth"),
    ],
)
def test_members_that_cannot_be_joined_are_refused(tmp_path, monkeypatch, capsys, arguments, says):
    write_members(tmp_path, [1.0, 1.0])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint.pth").write_text("no checkpoint")
    (tmp_path / "train.csv").write_text("ID,answers\n1,A\n")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert main(["ensemble", "--output", "e/submission.csv", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def write_submission(path, answers, start=0):
    rows = "".join(f"TEST_00{n},{answer}\n" for n, answer in enumerate(answers, start))
    path.write_text(f"ID,answer\n{rows}")
    return str(path)


def test_submissions_vote(tmp_path, capsys):
    paths = [write_submission(tmp_path / f"s{n}.csv", answers) for n, answers in enumerate(("BADC", "BBDA", "CBAD"))]
    out = tmp_path / "e" / "submission.csv"
    hard = ["ensemble", *paths, "--vote", "hard", "--output", str(out)]
    assert main(hard) == 2
    assert f"--params {paths[0]}=N" in capsys.readouterr().err
    assert main([*hard, "--params", "223307524,676582404,676582404"]) == 0
    assert "1,576,472,332  in all" in capsys.readouterr().out
    # the last question has three answers: the first member's is taken
    assert out.read_text() == "ID,answer\nTEST_000,B\nTEST_001,B\nTEST_002,D\nTEST_003,C\n"
    shares = read_predictions(out.with_name("predictions.json"))[0].probabilities
    assert shares == pytest.approx({"B": 2 / 3, "C": 1 / 3})
    assert main([*hard, "--params", "676582404,676582404,2000000000"]) == 2
    assert "353,164,808 more than --max_params" in capsys.readouterr().err


def test_a_sample_gives_the_votes_its_columns_and_order(tmp_path, capsys):
    path = write_submission(tmp_path / "s.csv", "BA")
    sample = tmp_path / "sample.csv"
    sample.write_text("question_id,label\nTEST_001,?\nTEST_000,?\n")
    out = tmp_path / "e" / "submission.csv"
    command = ["ensemble", path, "--vote", "hard", "--params", "1000", "--output", str(out)]
    for _ in range(2):  # the second time it takes the place of its own file
        assert main([*command, "--submission_like", str(sample)]) == 0
        assert out.read_text() == "question_id,label\nTEST_001,A\nTEST_000,B\n"
    sample.write_text("question_id,label\nTEST_001,?\n")
    assert main([*command, "--submission_like", str(sample)]) == 2
    assert "its ids aren't those of the questions" in capsys.readouterr().err


def test_a_submission_votes_with_predictions_if_the_letters_fit(tmp_path, capsys):
    (path,) = write_members(tmp_path, [1.0], count=3)
    known = read_predictions(tmp_path / "m0" / "predictions.json")
    other = tmp_path / "other.csv"
    other.write_text("ID,answer\n" + "".join(f"{p.id},{'abcd'['ABCD'.index(p.answer) - 1]}\n" for p in known))
    out = tmp_path / "e" / "submission.csv"
    command = ["ensemble", str(other), path, "--vote", "hard", "--output", str(out), "--params", f"{other}=1000"]
    assert main(command) == 0
    # one against one: the probabilities of the member that has them decide
    assert [line.split(",")[1] for line in out.read_text().splitlines()[1:]] == [p.answer for p in known]
    other.write_text("ID,answer\n" + "".join(f"{p.id},E\n" for p in known))
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"row '{known[0].id}': {other}:2 answers 'E', which is none of 'A, B, C, D'" in said


@pytest.mark.parametrize(
    ("content", "flags", "says"),
    [
        ("ID,answer\nTEST_000,B\nTEST_009,A\n", [], "has beyond it 1 id: 'TEST_009' (other.csv:3)"),
        ("ID,answer\nTEST_000,B\nTEST_000,A\n", [], "other.csv:3: the id 'TEST_000' is at other.csv:2 too"),
        ("ID,answer\nTEST_000,B\nTEST_001,\n", [], "other.csv:3: the answer of 'TEST_001' is empty"),
        ("ID,A,B\nTEST_000,-1,-2\nTEST_001,-1,-2\n", [], "has numbers for the options"),
        ("ID,answer\nTEST_000,B\nTEST_001,A\n", ["--vote", "soft"], "which only --vote hard can count"),
        ("ID,answer\nTEST_000,B\nTEST_001,A\n", ["--greedy"], "has no validation predictions"),
        ("ID,answer\nTEST_000,B\nTEST_001,A\n", ["--params", "1000,2000,3000"], "for each of the 2 members"),
        ("ID,answer\nTEST_000,B\nTEST_001,A\n", ["--params", "223,524"], "without other commas"),
        ("ID,answer\nTEST_000,B\nTEST_001,A\n", ["--output", "s.csv"], "would overwrite a file that is read"),
    ],
)
def test_submissions_that_cannot_vote_are_one_clear_error(tmp_path, monkeypatch, capsys, content, flags, says):
    monkeypatch.chdir(tmp_path)
    write_submission(tmp_path / "s.csv", "BA")
    (tmp_path / "other.csv").write_text(content)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    params = [] if "--params" in flags else ["--params", "1000,2000"]
    command = ["ensemble", "s.csv", "other.csv", "--vote", "hard", "--output", "e.csv", *params, *flags]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "checkpoint" not in said
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_published_sizes_are_counted_without_a_weight(tmp_path):
    def count(family, **values):
        return family(build_config(values), FOUR_OPTIONS).count_parameters()

    assert count(BEiT3Family, model="beit3_large_patch16_480") == LARGE
    assert count(BEiT3Family, model="beit3_base_patch16_480") == 223_307_524
    name = "clip_vit_large_patch14"
    transformers.CLIPConfig(**clip_config_values(parse_clip_name(name))).save_pretrained(tmp_path)
    assert count(CLIPFamily, model=f"{name}_lora", pretrained=str(tmp_path)) == 434_104_577


@pytest.fixture(scope="module")
def trained_clip(scpc, clip_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained_clip") / "out"
    assert main(finetune_clip(scpc, clip_folder, out, "--epochs", "1", "--lr", "1e-2")) == 0
    return out


def test_checkpoints_of_both_families_vote_together(scpc, trained, trained_clip, tmp_path, capsys):
    out = tmp_path / "e" / "submission.csv"
    evaluation = ["--data_path", str(scpc / "data"), "--device", "cpu", "--num_workers", "0", "--precision", "fp32"]
    arguments = ["ensemble", str(trained), str(trained_clip / "checkpoint-0.pth"), "--vote", "weighted", *evaluation]
    capsys.readouterr()
    assert main([*arguments, "--max_params", "1e6", "--output", str(out)]) == 2
    said = capsys.readouterr()
    assert "evaluating" not in said.out  # nothing has run
    assert not out.parent.exists()
    assert main([*arguments, "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.index("in all, of 3,000,000,000") < said.index("evaluating")
    folders = sorted((tmp_path / "e" / "submission_members").iterdir())
    assert [folder.name for folder in folders] == ["1-out-checkpoint-best", "2-out-checkpoint-0"]
    # What was counted before is what the evaluations then loaded, parameter by parameter.
    infos = [read_info(folder / "predictions.json") for folder in folders]
    assert infos[0].parameters > 1e6
    assert f"{infos[0].parameters + infos[1].parameters:,}  in all" in said
    assert [info.sha256 for info in infos] == [
        get_sha256(path) for path in (trained / "checkpoint-best.pth", trained_clip / "checkpoint-0.pth")
    ]
    assert read_info(tmp_path / "e" / "predictions.json").data_path == str(scpc / "data")
    with out.open(newline="") as file:
        ids = [row["ID"] for row in csv.DictReader(file)]
    assert ids == [f"test_{number:03}" for number in range(13)]
    # The results of checkpoints can take their place.
    again = tmp_path / "again" / "submission.csv"
    members = [str(folder / "predictions.json") for folder in folders]
    assert main(["ensemble", *members, "--vote", "weighted", "--output", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()
    assert (tmp_path / "again" / "predictions.json").read_bytes() == (tmp_path / "e" / "predictions.json").read_bytes()


def test_checkpoints_are_asked_in_every_order(scpc, trained, tmp_path, capsys):
    out = tmp_path / "e" / "submission.csv"
    evaluation = ["--data_path", str(scpc / "data"), "--device", "cpu", "--num_workers", "0", "--precision", "fp32"]
    alone = ["finetune", "--task", "vqacustom", "--eval", "--resume", str(trained / "checkpoint-best.pth")]
    assert main([*alone, *evaluation, "--tta", "cyclic", "--output_dir", str(tmp_path / "alone")]) == 0
    assert main(["ensemble", str(trained), *evaluation, "--tta", "cyclic", "--output", str(out)]) == 0
    assert out.read_bytes() == (tmp_path / "alone" / "submission.csv").read_bytes()
    # With and without rotations it is one model, whose parameters count once.
    assert main([*alone, *evaluation, "--output_dir", str(tmp_path / "plain")]) == 0
    members = [str(tmp_path / folder / "predictions.json") for folder in ("alone", "plain")]
    capsys.readouterr()
    assert main(["ensemble", *members, "--output", str(tmp_path / "both" / "submission.csv")]) == 0
    assert "counted once" in capsys.readouterr().out
    assert read_info(tmp_path / "both" / "predictions.json").parameters == read_info(tmp_path / members[0]).parameters


@pytest.mark.parametrize("legacy", [False, True])
def test_counting_a_checkpoint_leaves_its_tensors_in_the_file(scpc, trained, tmp_path, legacy):
    path = tmp_path / "checkpoint-best.pth"
    content = torch.load(trained / "checkpoint-best.pth", weights_only=True)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    given = {"eval": True, "resume": str(path), "data_path": str(scpc / "data")}
    assert plan_evaluation(GivenOptions(given))[1] == sum(v.numel() for v in content["model"].values())
