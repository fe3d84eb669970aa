"""The votes of an ensemble: one prediction of M."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from beit3_vqa.data.types import Prediction
from beit3_vqa.errors import InputError, plural, short
from beit3_vqa.metrics.vote import VOTES
from beit3_vqa.runtime.files import look_alikes, one_form

Origins = Mapping[str, Mapping[str, str]]  # name of a submission -> id -> where it is
SHOWN_IDS = 5  # for each kind of problem and member, in a message
SUM_TOLERANCE = 0.01  # how far from 1 the probabilities of a question's options may sum


@dataclass(frozen=True)
class Question:
    """One question, as all members answered it.

    Attributes:
        answers: a prediction of each of the M members, in their order.
        label: the truth, spelt as in the probabilities if one of them has it; None if it isn't known.
    """

    answers: tuple[Prediction, ...]
    label: str | None = None

    @property
    def text(self) -> str:
        """Return the question as text, empty if no member knows it."""
        return next((p.question for p in self.answers if p.question), "")

    @property
    def image(self) -> str:
        """Return the image as the index names it, empty if no member knows it."""
        return next((p.image for p in self.answers if p.image), "")

    def score(self, answer: str) -> float:
        """Return what an answer scores, in [0, 1]: what a member's file gives it, else 1 if it is the truth."""
        told = next((p.answer_scores for p in self.answers if p.answer_scores is not None), None)
        if told is not None:
            return told.get(answer, 0.0)
        known = (p.score for p in self.answers if p.answer == answer and p.score is not None)
        return next(known, float(answer == self.label))

    def truth_probabilities(self) -> list[float]:
        """Return each member's probability of the truth; 0 if it isn't among the answers that the member kept."""
        return [p.probabilities.get(self.label, 0.0) if self.label is not None else 0.0 for p in self.answers]

    def of(self, members: Sequence[int]) -> "Question":
        """Return the question as some of the members answered it, by their indices."""
        return Question(tuple(self.answers[m] for m in members), self.label)


def align_predictions(
    names: Sequence[str],
    members: Sequence[Sequence[Prediction]],
    key: Callable[[str], str] = str,
    origins: Origins = MappingProxyType({}),
) -> list[Question]:
    """Join the members' predictions by id, in the first member's order.

    Args:
        names: names of the members, for messages.
        members: predictions of each member, ids unique.
        key: two spellings of an answer are the same answer if their keys are equal; the first spelling is taken.
        origins: for each member that is a submission, where its ids are; it needs no probabilities.

    Raises:
        InputError: if the members answer other questions than the first, or disagree on a question's text, options or
            truth. The message counts every such id and lists the first of each kind.
    """
    by_id = [{p.id: p for p in predictions} for predictions in members]
    _check_ids(names, by_id, origins)
    key = lru_cache(maxsize=1_000_000)(key)
    spelling: dict[str, str] = {}
    questions, problems = [], []
    for first in members[0]:
        answers = tuple(_respelt(predictions[first.id], key, spelling) for predictions in by_id)
        problems += [f"row {short(first.id)}: {problem}" for problem in _disagreements(names, answers, origins)]
        questions.append(Question(answers, _label(answers, key)))
    if problems:
        raise InputError.of_problems(
            "the members don't answer the same questions:", problems, "Evaluate them on the same prepared folder."
        )
    return questions


def _check_ids(names: Sequence[str], by_id: Sequence[dict[str, Prediction]], origins: Origins) -> None:
    """Raise InputError if a member has other ids than the first, or the first has none."""
    first, problems = by_id[0], []
    for name, ids in zip(names[1:], by_id[1:], strict=True):
        for what, those in (("lacks", first.keys() - ids.keys()), ("has beyond it", ids.keys() - first.keys())):
            if those:
                places = origins.get(name, {})
                listed = [short(i) + (f" ({places[i]})" if i in places else "") for i in sorted(those)[:SHOWN_IDS]]
                more = f", and {len(those) - SHOWN_IDS} more" if len(those) > SHOWN_IDS else ""
                problems.append(f"{name} {what} {plural(len(those), 'id')}: {', '.join(listed)}{more}")
        alike = look_alikes(sorted(first.keys() - ids.keys()), sorted(ids.keys() - first.keys()))
        if alike:
            problems.append(f"ids of {name} look alike, but are other characters: {'; '.join(alike[:SHOWN_IDS])}")
    if problems:
        disjoint = any(not first.keys() & ids.keys() for ids in by_id[1:])
        advice = " Validation questions of different folds are different ones: --vote soft or hard needs none."
        raise InputError.of_problems(
            "every member must answer the same questions; "
            f"compared with {names[0]} ({plural(len(first), 'question')}):",
            problems,
            "Evaluate the members on the same split of the same prepared folder." + (advice if disjoint else ""),
        )
    if not first:
        raise InputError(f"{names[0]} holds no predictions.")


def _respelt(prediction: Prediction, key: Callable[[str], str], spelling: dict[str, str]) -> Prediction:
    """Return the prediction with each answer spelt as it was first met, so that the members vote for the same one."""
    answers = (*prediction.probabilities, prediction.answer)
    named = {answer: spelling.setdefault(key(answer), answer) for answer in answers}
    scores: dict[str, float] = {}
    for answer, score in (prediction.answer_scores or {}).items():
        name = spelling.setdefault(key(answer), answer)
        scores[name] = max(score, scores.get(name, 0.0))
    if len(set(named.values())) < len(named):
        return prediction
    shares = {named[answer]: share for answer, share in prediction.probabilities.items()}
    return dataclasses.replace(
        prediction,
        answer=named[prediction.answer],
        probabilities=shares,
        answer_scores=scores or prediction.answer_scores,
    )


def _disagreements(names: Sequence[str], answers: Sequence[Prediction], origins: Origins) -> list[str]:
    """List what the members disagree on in a row: question, options, truth, or what the probabilities are of."""
    problems = []
    for field in ("question", "choices", "truth"):
        known = [(name, value) for name, p in zip(names, answers, strict=True) if (value := getattr(p, field))]
        problems += [
            f"its {field} is {short(value)} in {name}, {short(known[0][1])} in {known[0][0]}"
            for name, value in known[1:]
            if _form(value) != _form(known[0][1])
        ]
    has_options = any(p.choices for p in answers)
    named = [(name, p) for name, p in zip(names, answers, strict=True) if name not in origins]
    first_name, first = named[0] if named else (names[0], answers[0])
    for name, p in zip(names, answers, strict=True):
        if name in origins and has_options and p.answer not in first.probabilities:
            listed = ", ".join(sorted(first.probabilities))
            problems.append(f"{origins[name][p.id]} answers {short(p.answer)}, which is none of {short(listed)}")
    for name, p in named:
        total = sum(p.probabilities.values())
        if not p.probabilities:
            problems.append(f"{name} has no probabilities")
        elif has_options and p.probabilities.keys() != first.probabilities.keys():
            there, here = (", ".join(sorted(q.probabilities)) for q in (p, first))
            problems.append(f"{name} has probabilities of {short(there)}, {first_name} of {short(here)}")
        elif total > 1 + SUM_TOLERANCE or (has_options and total < 1 - SUM_TOLERANCE):
            problems.append(f"its probabilities in {name} sum to {total:.3f}, not to 1")
    return problems


def _form(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    return one_form(value) if isinstance(value, str) else tuple(map(one_form, value))


def _label(answers: Sequence[Prediction], key: Callable[[str], str]) -> str | None:
    """Return the truth, spelt as in the probabilities if one of them has it; None if no member knows it."""
    truth = next((p.truth for p in answers if p.truth is not None), None)
    if truth is None or any(truth in p.probabilities for p in answers):
        return truth
    spelt = (answer for p in answers for answer in p.probabilities if key(answer) == key(truth))
    return next(spelt, truth)


def vote_one(question: Question, vote: str, weights: Sequence[float]) -> Prediction:
    """Let the members vote on a question.

    Args:
        question: as the M members answered it.
        vote: a name of `metrics.vote.VOTES`.
        weights: (M,), summing to 1; equal ones for all but the weighted vote.
    """
    answer, shares = VOTES[vote](question.answers, weights)
    first, known = question.answers[0], next((p for p in question.answers if p.choices), None)
    if known is None:  # open-ended: most likely first
        shares = dict(sorted(shares.items(), key=lambda item: -item[1]))
    return dataclasses.replace(
        first,
        question=question.text,
        answer=answer,
        probabilities={name: min(1.0, share) for name, share in shares.items()},
        truth=next((p.truth for p in question.answers if p.truth is not None), None),
        score=None if question.label is None else question.score(answer),
        weight=next((p.weight for p in question.answers if p.weight is not None), None),
        problem=next((p.problem for p in question.answers if p.problem), None),
        loss=None,
        choices=known.choices if known else (),
        image=question.image,
        answer_scores=next((p.answer_scores for p in question.answers if p.answer_scores is not None), None),
    )


def absent_answers(questions: Sequence[Question]) -> int:
    """Count the questions for which some member's predictions lack an answer that another's hold; not submissions."""
    held = ({frozenset(p.probabilities) for p in question.answers if p.probabilities} for question in questions)
    return sum(len(answers) > 1 for answers in held)
