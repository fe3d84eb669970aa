"""Options scored one by one: their order changes nothing."""

import json
import random
import shutil

import pytest
import torch

import beit3_vqa
from beit3_vqa.cli.main import main
from beit3_vqa.config.config import RunConfig
from beit3_vqa.config.options import DEFAULT_PROMPT_TEMPLATE, OPTION_PROMPT_TEMPLATE
from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.predictions import read_info
from beit3_vqa.data.prompt import OptionTemplate, PromptTemplate
from beit3_vqa.data.tokenizer import Tokenizer
from beit3_vqa.data.transforms import EvalTransform
from beit3_vqa.data.types import Batch, Example
from beit3_vqa.engine.checkpoint.io import read_checkpoint
from beit3_vqa.errors import InputError
from beit3_vqa.models.beit3.processor import BEiT3Processor
from beit3_vqa.tasks.vqa_rank import VQARank
from tests.helpers.commands import finetune
from tests.helpers.options import build_config
from tests.helpers.photographs import SUBJECTS


def ranking(*command: str) -> list[str]:
    """A command line for this task in the place of vqacustom."""
    return ["vqarank" if word == "vqacustom" else word for word in command]


@pytest.fixture(scope="module")
def ranked(scpc, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranked") / "out"
    assert main(ranking(*finetune(scpc, out, "--epochs", "1"))) == 0
    return out


def test_ranking_model_has_one_output(ranked):
    weights = read_checkpoint(ranked / "checkpoint-best.pth", "x")["model"]
    assert weights["head.3.weight"].shape == (1, 256)


def test_ranking_does_not_depend_on_the_order_of_options(scpc, ranked):
    model = beit3_vqa.load(ranked / "checkpoint-best.pth", device="cpu", precision="fp32")
    image = next((scpc / "images").iterdir())
    options = list(SUBJECTS[:4])
    first = model.predict(image, "What is it?", options)
    by_text = dict(zip(options, first.probabilities.values(), strict=True))
    assert len({round(p, 6) for p in by_text.values()}) == 4
    random.Random(3).shuffle(options)
    second = model.predict(image, "What is it?", options)
    for text, probability in zip(options, second.probabilities.values(), strict=True):
        assert probability == pytest.approx(by_text[text], abs=1e-6)
    assert options["ABCD".index(second.answer)] == max(by_text, key=by_text.get)


def test_evaluation_equals_asking_one_by_one(scpc, ranked, tmp_path):
    best = str(ranked / "checkpoint-best.pth")
    assert main(ranking(*finetune(scpc, tmp_path, "--eval", "--resume", best, "--batch_size", "3"))) == 0
    model = beit3_vqa.load(best, device="cpu", precision="fp32")
    rows = [json.loads(line) for line in (scpc / "data" / "vqacustom.test.jsonl").read_text().splitlines()]
    written = json.loads((tmp_path / "predictions.json").read_text())
    assert len(written) == len(rows)
    for row, expected in list(zip(rows, written, strict=True))[:3]:
        asked = model.predict(scpc / "images" / row["image_path"], row["question"], row["choices"])
        assert asked.probabilities == pytest.approx(expected["probabilities"], abs=1e-5)


def test_ranking_model_votes_with_a_model_of_four_outputs(scpc, ranked, trained, tmp_path):
    """Each checkpoint says itself which task it is of."""
    flags = ["--data_path", str(scpc / "data"), "--device", "cpu", "--num_workers", "0", "--precision", "fp32"]
    out = tmp_path / "e" / "submission.csv"
    assert main(["ensemble", str(ranked), str(trained), *flags, "--output", str(out)]) == 0
    folders = sorted((tmp_path / "e" / "submission_members").iterdir())
    infos = [read_info(folder / "predictions.json") for folder in folders]
    assert [info.task for info in infos] == ["vqarank", "vqacustom"]
    assert read_info(tmp_path / "e" / "predictions.json").parameters == sum(info.parameters for info in infos)


def test_the_loss_is_cross_entropy_over_the_scores_of_a_question():
    task = VQARank(AnswerTable(list("ABCD")), RunConfig())
    scores = torch.randn(8, 1)
    examples = tuple(Example(str(i), "x", "q", tuple("wxyz"), "ABCD"[k], ((k, 1.0),)) for i, k in enumerate((2, 0)))
    expected = torch.nn.functional.cross_entropy(scores.view(2, 4), torch.tensor([2, 0]))
    torch.testing.assert_close(task.loss(scores, Batch({}, examples, task.targets(examples))), expected)


def test_a_long_question_is_cut_and_never_the_option(scpc):
    tokenizer = Tokenizer(scpc / "data" / "tokenizer.spm")
    made = BEiT3Processor(tokenizer, 24, PromptTemplate(DEFAULT_PROMPT_TEMPLATE), EvalTransform(32))
    text = OptionTemplate(OPTION_PROMPT_TEMPLATE)
    ids = made.fitted("What is in the picture? " * 9, lambda question: text(question, "galaxies"))
    assert len(ids) <= 24
    ending = tokenizer.encode(" Answer: galaxies")
    assert ids[-1 - len(ending[1:]) : -1] == ending[1:]
    with pytest.raises(InputError, match="without its question"):
        made.fitted("What?", lambda question: text(question, "galaxies " * 20))


def texts_read(checkpoint, example) -> list[str]:
    """The text of each option, as the model behind a checkpoint reads it."""
    components = beit3_vqa.load(checkpoint, device="cpu", precision="fp32").components
    ids = components.task.tensors(example, None, components.processor)["texts"]
    return [components.processor.tokenizer.decode(text[1:-1]) for text in ids]


def test_the_template_of_an_option_is_kept_with_the_checkpoint(scpc, tmp_path):
    assert main(ranking(*finetune(scpc, tmp_path, "--epochs", "1", "--prompt_template", "{question} is {choice}"))) == 0
    image = str(next((scpc / "images").iterdir()))
    asked = Example("1", image, "what is it", tuple(SUBJECTS[:4]))
    best = tmp_path / "checkpoint-best.pth"
    assert texts_read(best, asked) == [f"what is it is {subject}" for subject in SUBJECTS[:4]]
    card = tmp_path / "exported"
    assert main(["export", "--checkpoint", str(best), "--output_dir", str(card)]) == 0
    assert "- Prompt: `{question} is {choice}`" in (card / "README.md").read_text(encoding="utf-8")


def test_a_template_of_all_options_at_once_has_no_effect_on_ranking(scpc, ranked, tmp_path, capsys):
    """Version 0.1.0 saved one in every checkpoint, and read one option at a time all the same."""
    image = str(next((scpc / "images").iterdir()))
    asked = Example("1", image, "what is it", tuple(SUBJECTS[:4]))
    read = texts_read(ranked / "checkpoint-best.pth", asked)  # its tokenizer has no Q
    assert [text.partition("uestion: ")[2] for text in read] == [f"what is it Answer: {s}" for s in SUBJECTS[:4]]
    content = torch.load(ranked / "checkpoint-best.pth", weights_only=True)
    content["args"]["prompt_template"] = DEFAULT_PROMPT_TEMPLATE
    torch.save(content, tmp_path / "old.pth")
    shutil.copy(ranked / "tokenizer.spm", tmp_path)
    assert texts_read(tmp_path / "old.pth", asked) == read
    capsys.readouterr()
    template = ["--prompt_template", "{question} Choices: {options}", "--dry_run"]
    assert main(ranking(*finetune(scpc, tmp_path / "new", "--epochs", "1", *template))) == 0
    assert "--prompt_template has no effect on --task vqarank without {choice}" in capsys.readouterr().out


def test_ranking_refuses_open_ended_data(tmp_path):
    AnswerTable(["red", "blue"]).write(tmp_path / "answer2label.txt")
    with pytest.raises(InputError, match="no options to rank"):
        VQARank.from_folder(build_config({"data_path": str(tmp_path)}))


def test_ranking_refuses_upstreams_rows_of_question_and_options_in_one(scpc, tmp_path, capsys):
    for name in ("answer2label.txt", "tokenizer.spm"):
        (tmp_path / name).write_bytes((scpc / "data" / name).read_bytes())
    image = next((scpc / "images").iterdir()).name
    row = {"image_path": image, "text_segment": [5, 6, 7], "labels": [1], "scores": [1.0], "qid": 8}
    (tmp_path / "vqa.train.jsonl").write_text(json.dumps(row) + "\n")
    command = ranking(*finetune(scpc, tmp_path / "out", "--epochs", "1", "--image_root", str(scpc / "images")))
    command[command.index("--data_path") + 1] = str(tmp_path)
    assert main(command) == 2
    assert "row 8" in capsys.readouterr().err


def test_options_that_are_too_long_are_named_before_training(scpc, tmp_path, capsys):
    shutil.copytree(scpc / "data", tmp_path / "data")
    index = tmp_path / "data" / "vqacustom.train.jsonl"
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    rows[2]["choices"][1] = "galaxies " * 90
    index.write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = ["--image_root", str(scpc / "images")]
    command = ranking(*finetune(tmp_path, tmp_path / "out", "--epochs", "1", *images))
    assert main(command) == 2
    said = capsys.readouterr()
    assert f"row {rows[2]['id']}, 'galaxies" in said.err
    assert "training:" not in said.out


def test_a_checkpoint_that_is_evaluated_as_another_task_says_which_it_is_of(scpc, ranked, trained, capsys):
    as_letters = finetune(scpc, ranked, "--eval", "--resume", str(ranked / "checkpoint-best.pth"))
    assert main(as_letters) == 2
    assert "was trained with --task vqarank; give that in place of --task vqacustom" in capsys.readouterr().err
    assert main(ranking(*finetune(scpc, ranked, "--eval", "--resume", str(trained / "checkpoint-best.pth")))) == 2
    assert "was trained with --task vqacustom" in capsys.readouterr().err
