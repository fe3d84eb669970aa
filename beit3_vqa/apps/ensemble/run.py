"""An ensemble from its members' names to its submission: the budget first, then the votes, and what they are worth."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from beit3_vqa.apps.ensemble.compare import (
    agreement,
    agreement_text,
    best_prefix,
    compare,
    comparison_text,
    forward_selection,
    get_groups,
    steps_text,
    truth_probabilities,
    vote_all,
    weights_text,
)
from beit3_vqa.apps.ensemble.members import (
    Member,
    find_members,
    is_submission,
    load_answers,
    load_validation,
    total_parameters,
)
from beit3_vqa.apps.ensemble.options import EnsembleOptions
from beit3_vqa.apps.ensemble.vote import Question, absent_answers, align_predictions
from beit3_vqa.apps.ensemble.weights import Floats, cross_fit_weights, fit_weights
from beit3_vqa.data.answers import answer_key
from beit3_vqa.data.predictions import HEADER, publish_results, read_info, write_predictions, write_submission
from beit3_vqa.data.submission import Sample, read_sample
from beit3_vqa.data.types import Prediction, PredictionsInfo
from beit3_vqa.errors import MAX_VALUE, InputError, first_line, plural
from beit3_vqa.runtime.distributed import refuse_several
from beit3_vqa.runtime.files import make_folder, real_path, staged

_KIND = "ensemble of "  # how the model of an ensemble's predictions is called


def ensemble(options: EnsembleOptions, evaluation: Mapping[str, object]) -> list[Prediction]:
    """Join members to one submission, print what that gains, and write it.

    Args:
        options: what to join, and how.
        evaluation: options of `--eval` by flat name, for the members that are checkpoints.

    Returns:
        the ensemble's predictions, one for each question.

    Raises:
        InputError: if there are more parameters than allowed, which is found before any model is loaded, if the
            members don't answer the same questions, or if something else can't be used.
    """
    refuse_several("ensemble works on one device: start it without torchrun.")
    return join(options, evaluation)


def join(options: EnsembleOptions, evaluation: Mapping[str, object]) -> list[Prediction]:
    """Join files of predictions as `ensemble` does, in a process that may be one of several."""
    results = _results_file(options)
    _check_submissions(options)
    sample = read_sample(options.submission_like) if options.submission_like else None
    members = find_members(options.members, options.params, evaluation, _members_folder(options.output))
    _refuse_to_replace(results, options, members, sample)
    _check_budget(members, options)
    make_folder(options.output.parent)
    val = _validation(members, options)
    if options.greedy:
        assert val is not None
        chosen = _choose(val, members, options)
        members, val = [members[m] for m in chosen], [question.of(chosen) for question in val]
    names = [member.name for member in members]
    answered = [load_answers(member, str(evaluation.get("split", "test"))) for member in members]
    origins = {name: a.origins for name, a in zip(names, answered, strict=True) if a.origins is not None}
    questions = align_predictions(names, [a.predictions for a in answered], answer_key, origins)
    weights = _report(questions, val, names, options)
    predictions = vote_all(questions, options.vote, weights)
    info = _info(members, [a.info for a in answered], options)
    folder = results.parent
    with staged(folder) as place:
        write = sample.write if sample else write_submission
        submission = write(predictions, place / options.output.name)
        written = publish_results(info, write_predictions(predictions, place / results.name), [submission], folder)
    print("\n".join(f"wrote {path}" for path in written))
    return predictions


def _results_file(options: EnsembleOptions) -> Path:
    """Return `predictions_val.json` for `submission_val.csv`, `x_predictions.json` for `x.csv`; check --output."""
    if options.output.suffix != ".csv" or options.output.is_dir():
        raise InputError(f"--output {options.output}: give the name of a file that ends in .csv.")
    stem = options.output.stem
    named = stem.replace("submission", "predictions", 1) if stem.startswith("submission") else f"{stem}_predictions"
    return options.output.with_name(f"{named}.json")


def _check_submissions(options: EnsembleOptions) -> None:
    """Raise InputError if an option needs more of a member than a submission holds."""
    name = next((name for name in options.members if is_submission(Path(name))), None)
    if name is None:
        return
    if options.vote != "hard":
        raise InputError(
            f"{name} has answers without probabilities, which only --vote hard can count: give that, or its "
            "predictions.json in its place."
        )
    if options.greedy or options.val:
        flag = "--greedy" if options.greedy else "--val"
        raise InputError(f"{flag}: {name} is a submission, which has no validation predictions. Leave one of them out.")


def _members_folder(output: Path) -> Path:
    return output.with_name(f"{output.stem}_members")


def _refuse_to_replace(
    results: Path, options: EnsembleOptions, members: Sequence[Member], sample: Sample | None
) -> None:
    """Raise InputError if a file would be replaced that no ensemble wrote, or that is read."""
    inputs = {real_path(path) for path in [*(member.path for member in members), *map(Path, options.val)]}
    if real_path(options.output) in inputs | ({real_path(sample.path)} if sample else set()):
        raise InputError(f"--output {options.output}: would overwrite a file that is read; give another name.")
    info = read_info(results) if real_path(results) not in inputs else None
    if real_path(results) in inputs or (results.exists() and (info is None or not info.model.startswith(_KIND))):
        raise InputError(
            f"--output {options.output}: {results} already exists, and wasn't written by an ensemble. Write to a "
            "folder of its own, such as --output ensemble/submission.csv."
        )
    if options.output.is_file():
        headers = {HEADER.encode(), *({",".join(sample.header).encode()} if sample else ())}
        with options.output.open("rb") as file:
            if file.readline(max(map(len, headers)) + 2).rstrip(b"\r\n") not in headers:
                raise InputError(f"--output {options.output}: already exists, and isn't a submission; give another.")


def _check_budget(members: Sequence[Member], options: EnsembleOptions) -> None:
    """Print the parameters of all models; raise InputError if they are too many (with --greedy: if each alone is)."""
    print("parameters")
    number_of: dict[str, int] = {}
    for number, member in enumerate(members, start=1):
        same = number_of.setdefault(member.weights, number)
        note = f"  (the weights of {same}, counted once)" if same != number else ""
        print(f"  {number:>3}  {member.parameters:>14,}  {member.name}{note}")
    total = total_parameters(members)
    print(f"       {total:>14,}  in all, of {options.max_params:,.0f}", flush=True)
    least = min(member.parameters for member in members) if options.greedy else total
    if least > options.max_params:
        raise InputError(
            f"the members have {least:,} parameters {'each, or more' if options.greedy else 'together'}, "
            f"{least - options.max_params:,.0f} more than --max_params {options.max_params:,.0f} allows. Every model "
            "counts, even if the models are loaded one after the other. Leave members out, or let --greedy choose."
        )


def _validation(members: Sequence[Member], options: EnsembleOptions) -> list[Question] | None:
    """Return the validation questions with known answers; None if there are none, and none are needed."""
    if any(member.is_submission for member in members):
        return None
    needed = options.vote == "weighted" or options.greedy
    names = [f"validation predictions of {member.name}" for member in members]
    try:
        found = load_validation(members, options.val, needed=needed or bool(options.val))
        together = [] if found is None else align_predictions(names, found, answer_key)
    except InputError as error:
        if needed or options.val:
            raise
        # Nobody named them: they lie beside the members, and folds have questions of their own.
        print(f"the validation predictions beside the members aren't used: {first_line(error).rstrip(':')}")
        return None
    questions = [question for question in together if question.label is not None]
    if needed and not questions:
        raise InputError("the validation predictions hold no known answers: evaluate on a split that has them.")
    return questions or None


def _choose(val: Sequence[Question], members: Sequence[Member], options: EnsembleOptions) -> list[int]:
    """Return the indices of the members that the forward selection takes, in its order; print its steps."""

    def count_parameters(subset: Sequence[int]) -> int:
        return total_parameters(members[m] for m in subset)

    steps = forward_selection(val, options.vote, count_parameters, options.max_params, options.seed)
    taken = best_prefix(steps)
    print(steps_text(steps, len(taken), [member.name for member in members]))
    tried = {step.member for step in steps}
    too_large = [member.name for number, member in enumerate(members) if number not in tried]
    if too_large:
        print(f"not tried, since they don't fit into --max_params beside the others: {', '.join(too_large)}")
    return [step.member for step in taken]


def _report(
    questions: Sequence[Question], val: Sequence[Question] | None, names: Sequence[str], options: EnsembleOptions
) -> Floats | None:
    """Print what the ensemble gains; return the weights (M,) of the weighted vote, None for the other votes."""
    weights = None
    known = [question for question in questions if question.label is not None]
    fitted_on: set[tuple[str, str, str]] = set()
    if val is not None:
        held_out = None
        if options.vote == "weighted":
            of_truth = truth_probabilities(val)
            weights, held_out = fit_weights(of_truth), cross_fit_weights(of_truth, get_groups(val), options.seed)
            print(weights_text(weights.tolist(), names, len(val)))
        if options.vote == "weighted" or options.greedy:
            fitted_on = set(map(_identity, val))
        if fitted_on or not known:
            title = "validation, each question by weights fitted without it" if weights is not None else "validation"
            print(comparison_text(compare(val, options.vote, held_out, options.seed), names, title, options.vote))
    if known and fitted_on & set(map(_identity, known)):
        print("these are validation questions; the ensemble's accuracy on them is above")
    elif known:
        compared = compare(known, options.vote, weights, options.seed)
        print(comparison_text(compared, names, f"{plural(len(questions), 'question')}", options.vote))
    print(agreement_text(agreement(questions)))
    absent = absent_answers(questions)
    if absent:
        print(
            f"{plural(absent, 'question')} with answers that not every member's predictions hold; there they count as 0"
        )
    return weights


def _identity(question: Question) -> tuple[str, str, str]:
    """Return what tells a question from those of other splits, whose ids may begin at 0 too."""
    return question.answers[0].id, question.text, question.image


def _info(
    members: Sequence[Member], infos: Sequence[PredictionsInfo | None], options: EnsembleOptions
) -> PredictionsInfo:
    """Describe the ensemble as the .info.json of a model's predictions does."""
    known = [info for info in infos if info is not None]
    models = Counter(info.model[:MAX_VALUE] for info in known)
    listed = ", ".join(f"{count} x {model}" if count > 1 else model for model, count in models.items())
    first = known[0] if known else PredictionsInfo(task="", model="", parameters=0)
    return replace(
        first,
        model=f"{_KIND}{len(members)} ({options.vote} vote){': ' if listed else ''}{listed}",
        parameters=total_parameters(members),
        checkpoint="",
        sha256="",
        temperature=1.0,
        tta="none",
    )
