"""`beit3-vqa score`: the metrics of a predictions.json, from files alone."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from beit3_vqa.cli.flags import command_with
from beit3_vqa.runtime.fields import Options, option


@dataclass(frozen=True)
class ScoreOptions(Options):
    """The predictions to score, and the answers to compare them with."""

    predictions: Path = option(
        MISSING, "a file that `finetune --eval` wrote", positional=True, metavar="predictions.json"
    )
    answers: Path | None = option(
        None, "known answers, as ID,answer[,weight]; default: the truths in predictions.json", metavar="CSV"
    )
    encoding: str = option("", "encoding of the --answers file; default: UTF-8, or Korean CP949", metavar="NAME")
    visual7w: Path | None = option(None, "dataset_v7w_telling.json: Visual7W's own scoring", metavar="JSON")
    visual7w_results: Path | None = option(None, "write the result file of Visual7W's toolkit here", metavar="FILE")
    vqav2: Path | None = option(None, "official annotations: VQAv2's ten-annotator score", metavar="JSON")
    json: Path | None = option(None, "also write the metrics to this file", metavar="FILE")


def run(options: ScoreOptions) -> int:
    """Run the command and return its exit code."""
    from beit3_vqa.data.answers_csv import read_answers, with_answers
    from beit3_vqa.data.predictions import info_file, read_predictions, write_metrics
    from beit3_vqa.data.tables import check_encoding
    from beit3_vqa.data.visual7w import read_telling
    from beit3_vqa.errors import InputError
    from beit3_vqa.metrics import full_metrics, metrics_table
    from beit3_vqa.metrics.summary import share_table
    from beit3_vqa.metrics.visual7w import visual7w_score, write_results
    from beit3_vqa.metrics.vqav2 import read_annotations, vqav2_score
    from beit3_vqa.runtime.files import refuse_to_replace

    if options.visual7w_results and not options.visual7w:
        raise InputError("--visual7w_results: needs --visual7w dataset_v7w_telling.json, which has the questions' ids.")
    if options.encoding and not options.answers:
        raise InputError("--encoding is the encoding of the --answers file. Give --answers too.")
    check_encoding(options.encoding)
    given = (options.predictions, options.answers, options.visual7w, options.vqav2)
    inputs = [path for path in given if path] + [info_file(options.predictions)]
    for flag in ("visual7w_results", "json"):
        if getattr(options, flag):
            refuse_to_replace(f"--{flag}", getattr(options, flag), inputs)
    predictions = read_predictions(options.predictions)
    if options.answers:
        predictions = with_answers(predictions, read_answers(options.answers, options.encoding), options.answers)
    metrics = full_metrics(predictions)
    benchmarks: dict[str, dict[str, Any]] = {}
    if options.visual7w:
        questions = read_telling(options.visual7w)
        benchmarks["visual7w"] = visual7w_score(predictions, questions, options.visual7w)
    if options.vqav2:
        benchmarks["vqav2"] = vqav2_score(predictions, read_annotations(options.vqav2), options.vqav2)
    if not metrics and not benchmarks:
        raise InputError(f"{options.predictions}: holds no answers to compare with. Give them with --answers CSV.")
    if metrics:
        print(metrics_table(metrics))
    for name, score in benchmarks.items():
        print(f"{chr(10) if metrics else ''}{share_table(name, score)}")
    if options.visual7w_results:
        print(f"wrote {write_results(predictions, questions, options.visual7w_results)}")
    if options.json:
        print(f"wrote {write_metrics(metrics | benchmarks, options.json)}")
    return 0


add = command_with(ScoreOptions, "score", "compute the metrics of a predictions.json, without the model", run)
