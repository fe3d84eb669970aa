"""`beit3-vqa score`: the metrics of a predictions.json, or of anybody's answers in a table, from files alone."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from beit3_vqa.cli.flags import command_with
from beit3_vqa.runtime.fields import Options, option

if TYPE_CHECKING:
    from beit3_vqa.data.answers_csv import KnownAnswer
    from beit3_vqa.data.types import Prediction
    from beit3_vqa.metrics.types import BenchmarkScore


@dataclass(frozen=True)
class ScoreOptions(Options):
    """The predictions to score, and the answers to compare them with."""

    predictions: Path = option(
        MISSING,
        "a file that `finetune --eval` wrote; with --answers also a submission, JSON lines of generated text, or a "
        "table with a number for each option",
        positional=True,
        metavar="predictions.json",
    )
    answers: Path | None = option(
        None, "known answers, as ID,answer[,weight]; default: the truths in predictions.json", metavar="CSV"
    )
    columns: str = option(
        "", "columns of a table of answers, if their names don't say it", metavar="id=NAME,answer=NAME"
    )
    known_only: bool = option(False, "pass over predictions whose answer isn't in --answers, such as a private part")
    encoding: str = option("", "encoding of the --answers file; default: UTF-8, or Korean CP949", metavar="NAME")
    visual7w: Path | None = option(None, "dataset_v7w_telling.json: Visual7W's own scoring", metavar="JSON")
    visual7w_results: Path | None = option(None, "write the result file of Visual7W's toolkit here", metavar="FILE")
    vqav2: Path | None = option(None, "official annotations: VQAv2's ten-annotator score", metavar="JSON")
    json: Path | None = option(None, "also write the metrics to this file", metavar="FILE")


def run(options: ScoreOptions) -> int:
    """Run the command and return its exit code."""
    from beit3_vqa.data.answers_csv import read_answers, with_answers
    from beit3_vqa.data.given_answers import is_given_answers
    from beit3_vqa.data.predictions import info_file, read_predictions, write_metrics
    from beit3_vqa.data.tables import check_encoding
    from beit3_vqa.data.visual7w import read_telling
    from beit3_vqa.errors import InputError
    from beit3_vqa.metrics.intervals import clustered_interval
    from beit3_vqa.metrics.summary import full_metrics, metrics_table, share_table
    from beit3_vqa.metrics.visual7w import visual7w_score, write_results
    from beit3_vqa.metrics.vqav2 import read_annotations, vqav2_score
    from beit3_vqa.runtime.files import refuse_to_replace

    if options.visual7w_results and not options.visual7w:
        raise InputError("--visual7w_results: needs --visual7w dataset_v7w_telling.json, which has the questions' ids.")
    if options.known_only and not options.answers:
        raise InputError("--known_only: needs --answers CSV, which says what is known.")
    if options.encoding and not options.answers:
        raise InputError("--encoding is the encoding of the --answers file. Give --answers too.")
    check_encoding(options.encoding)
    is_table = is_given_answers(options.predictions)
    if options.columns and not is_table:
        raise InputError(f"--columns: {options.predictions} is a predictions.json, whose fields are known.")
    if is_table and not options.answers:
        raise InputError(f"{options.predictions}: has answers, but not the right ones. Give these with --answers CSV.")
    given = (options.predictions, options.answers, options.visual7w, options.vqav2)
    inputs = [path for path in given if path] + [info_file(options.predictions)]
    for flag in ("visual7w_results", "json"):
        if getattr(options, flag):
            refuse_to_replace(f"--{flag}", getattr(options, flag), inputs)
    predictions = [] if is_table else read_predictions(options.predictions)
    known = read_answers(options.answers, options.encoding) if options.answers else []
    found: dict[str, object] = {}
    if is_table:
        predictions, found = _understood(options, known)
    elif options.answers:
        ids = {answer.id for answer in known}
        kept = [p for p in predictions if p.id in ids or not options.known_only]
        _tell_passed_over(len(predictions) - len(kept))
        predictions = with_answers(kept, known, options.answers)
    metrics: dict[str, object] = {**full_metrics(predictions)}
    metrics |= {name: value for name, value in found.items() if name not in metrics}
    if any(answer.image for answer in known):
        metrics["accuracy_interval_by_image"] = clustered_interval(predictions)
    benchmarks: dict[str, BenchmarkScore] = {}
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


def _tell_passed_over(count: int) -> None:
    from beit3_vqa.errors import plural

    if count:
        print(f"passed over {plural(count, 'prediction')} of which the answer isn't known")


def _understood(options: ScoreOptions, known: "Sequence[KnownAnswer]") -> "tuple[list[Prediction], dict[str, object]]":
    """Read somebody's answers; print how they were understood; return them with their scores, and metrics beyond."""
    from beit3_vqa.data.answers_csv import with_answers
    from beit3_vqa.data.given_answers import count_ways, group_rotations, read_given, understand, ways_table
    from beit3_vqa.data.rows import LETTERS
    from beit3_vqa.metrics.accuracy import positions
    from beit3_vqa.metrics.robustness import order_metrics

    assert options.answers is not None
    given = read_given(options.predictions, said=options.columns)
    letters_alone = not any(answer.choices for answer in known) and all(len(answer.answer) == 1 for answer in known)
    if letters_alone:
        known = [replace(answer, answer=answer.answer.upper()) for answer in known]
    rows = understand(given, known, options.predictions)
    if options.known_only:
        ids = {answer.id for answer in known}
        kept = [row for row in rows if row.given.id in ids]
        _tell_passed_over(len(rows) - len(kept))
        rows = kept
    scored = with_answers([row.prediction for row in rows], known, options.answers)
    groups = group_rotations(rows)
    counts = count_ways(rows)
    print(f"{ways_table(rows, counts)}\n")
    found: dict[str, object] = {
        "understood": {
            "counts": counts,
            "rows": [
                {"id": row.given.id, "way": row.reading.way, "answer": row.reading.answer or None}
                | ({} if row.given.rotation is None else {"rotation": row.given.rotation})
                for row in rows
            ],
        }
    }
    if len(rows) > len(groups):
        # An answer without probabilities has one vote in the average.
        votes = [replace(p, probabilities=p.probabilities or {p.answer: 1.0}) for p in scored]
        answers = [[votes[place] for place in group] for group in groups]
        found["tta"] = order_metrics(answers, list(map(len, answers)), "given")
    plain = [scored[group[0]] for group in groups]
    if letters_alone:  # whose options nobody tells; their letters stand for them
        found["positions"] = positions([replace(p, choices=p.choices or tuple(LETTERS)) for p in plain])
    return plain, found


add = command_with(
    ScoreOptions, "score", "compute the metrics of predictions or of anybody's answers, without the model", run
)
