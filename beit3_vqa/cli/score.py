"""`beit3-vqa score`: the metrics of a predictions.json, from files alone."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any, build: bool) -> None:
    """Adds the command to the parser; its options only if it is to be built."""
    parser = commands.add_parser("score", help="the metrics of a predictions.json, from files alone")
    if build:
        parser.set_defaults(function=run)
        add_options(parser)


def add_options(parser: Any) -> None:
    """Adds the flags of a command that reads a predictions.json."""
    parser.add_argument("predictions", type=Path, metavar="predictions.json", help="as --eval writes it")
    parser.add_argument(
        "--answers", type=Path, metavar="CSV", help="ID,answer[,weight]; default: the truths in the file"
    )
    parser.add_argument("--encoding", default="", metavar="NAME", help="of that CSV; default: UTF-8, or Korean CP949")
    parser.add_argument(
        "--visual7w", type=Path, metavar="JSON", help="dataset_v7w_telling.json: Visual7W's own scoring"
    )
    parser.add_argument("--visual7w_results", type=Path, metavar="FILE", help="write the toolkit's result file there")
    parser.add_argument("--vqav2", type=Path, metavar="JSON", help="official annotations: VQAv2's ten-annotator score")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there too")


def run(parsed: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
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

    if parsed.visual7w_results and not parsed.visual7w:
        raise InputError("--visual7w_results: needs --visual7w dataset_v7w_telling.json, which has the questions' ids.")
    if parsed.encoding and not parsed.answers:
        raise InputError("--encoding: is of --answers CSV, which isn't given.")
    check_encoding(parsed.encoding)
    given = (parsed.predictions, parsed.answers, parsed.visual7w, parsed.vqav2)
    inputs = [path for path in given if path] + [info_file(parsed.predictions)]
    for flag in ("visual7w_results", "json"):
        if getattr(parsed, flag):
            refuse_to_replace(f"--{flag}", getattr(parsed, flag), inputs)
    predictions = read_predictions(parsed.predictions)
    if parsed.answers:
        predictions = with_answers(predictions, read_answers(parsed.answers, parsed.encoding), parsed.answers)
    metrics = full_metrics(predictions)
    benchmarks: dict[str, dict[str, Any]] = {}
    if parsed.visual7w:
        questions = read_telling(parsed.visual7w)
        benchmarks["visual7w"] = visual7w_score(predictions, questions, parsed.visual7w)
    if parsed.vqav2:
        benchmarks["vqav2"] = vqav2_score(predictions, read_annotations(parsed.vqav2), parsed.vqav2)
    if not metrics and not benchmarks:
        raise InputError(f"{parsed.predictions}: holds no answers to compare with. Give them with --answers CSV.")
    if metrics:
        print(metrics_table(metrics))
    for name, score in benchmarks.items():
        print(f"{chr(10) if metrics else ''}{share_table(name, score)}")
    if parsed.visual7w_results:
        print(f"wrote {write_results(predictions, questions, parsed.visual7w_results)}")
    if parsed.json:
        print(f"wrote {write_metrics(metrics | benchmarks, parsed.json)}")
    return 0
