"""What an ensemble gains over its members, how alike they are, and which of them are worth having; paired tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from beit3_vqa.apps.ensemble.vote import Question, vote_one
from beit3_vqa.apps.ensemble.weights import Floats, cross_fit_weights, log_loss
from beit3_vqa.data.types import Prediction
from beit3_vqa.errors import plural
from beit3_vqa.metrics.intervals import unvarying_interval
from beit3_vqa.metrics.vote import equal_weights

RESAMPLES = 10_000
_AT_ONCE = 1_000_000  # numbers drawn in one go


@dataclass(frozen=True)
class Gain:
    """Percentage points by which the ensemble beats a member, with a 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Accuracy of the members and of their ensemble on questions with known answers.

    Attributes:
        questions: number of questions.
        members: accuracy of each member, in percent.
        ensemble: accuracy of the ensemble, in percent.
        best: index of the best member, the first of equal ones.
        gain: gain of the ensemble over the best member.
        log_loss: log loss of the ensemble, in nats; None for the hard vote, whose shares are votes, not probabilities.
        equal: accuracy and log loss with equal weights; None if the vote isn't weighted.
    """

    questions: int
    members: tuple[float, ...]
    ensemble: float
    best: int
    gain: Gain
    log_loss: float | None = None
    equal: tuple[float, float] | None = None


@dataclass(frozen=True)
class Step:
    """A member that the forward selection added, and the ensemble that this made.

    Attributes:
        member: index of the member.
        accuracy: accuracy of the ensemble, in percent.
        gain: change of the accuracy from the step before, in percentage points.
        parameters: parameters of the ensemble.
    """

    member: int
    accuracy: float
    gain: float
    parameters: int


def vote_all(questions: Sequence[Question], vote: str, weights: Floats | None = None) -> list[Prediction]:
    """Return the ensemble's prediction for each of N questions.

    Args:
        questions: as the M members answered them.
        vote: a name of `metrics.vote.VOTES`.
        weights: (M,) for all questions, or (N, M); None: equal ones.
    """
    members = len(questions[0].answers)
    if weights is None:
        return [vote_one(question, vote, equal_weights(members)) for question in questions]
    rows = np.broadcast_to(weights, (len(questions), members)).tolist()
    return [vote_one(question, vote, row) for question, row in zip(questions, rows, strict=True)]


def truth_probabilities(questions: Sequence[Question]) -> Floats:
    """Return the probability that each member gave the truth, (N, M)."""
    return np.array([question.truth_probabilities() for question in questions])


def get_groups(questions: Sequence[Question]) -> list[str]:
    """Return a group for each question: its image, or a group of its own if the image isn't known."""
    return [question.image or f"\0{number}" for number, question in enumerate(questions)]


def compare(questions: Sequence[Question], vote: str, weights: Floats | None, seed: int) -> Comparison:
    """Compare the members with their ensemble on N questions with known answers, at least one.

    Args:
        questions: all with a `label`.
        vote: a name of `metrics.vote.VOTES`.
        weights: for the weighted vote alone: (M,), fitted on other questions, or (N, M), each row fitted without its
            question.
        seed: seed of the bootstrap.
    """
    indices = range(len(questions[0].answers))
    own = np.array([[question.score(p.answer) for p in question.answers] for question in questions])
    scores = _scores(vote_all(questions, vote, weights))
    accuracies = own.mean(axis=0)
    best = max(indices, key=lambda m: accuracies[m])
    of_truth = truth_probabilities(questions)
    equal = np.array(equal_weights(len(indices)))
    return Comparison(
        questions=len(questions),
        members=tuple(float(100 * accuracy) for accuracy in accuracies),
        ensemble=float(100 * scores.mean()),
        best=best,
        gain=paired_bootstrap(scores - own[:, best], get_groups(questions), seed),
        log_loss=None if vote == "hard" else log_loss(of_truth, equal if weights is None else weights),
        equal=None
        if weights is None
        else (float(100 * _scores(vote_all(questions, "soft")).mean()), log_loss(of_truth, equal)),
    )


def _scores(predictions: Sequence[Prediction]) -> Floats:
    return np.array([p.score or 0.0 for p in predictions])


def paired_bootstrap(differences: Floats, groups: Sequence[str], seed: int) -> Gain:
    """Return the mean of paired differences and its 95% bootstrap interval, in percentage points.

    Whole groups are drawn, since questions about one image are right or wrong together (Efron and Tibshirani 1993,
    An introduction to the bootstrap, chapters 13 and 8.6). A single group says nothing: -100 to 100. Groups that are
    all alike would draw the same again and again: see `unvarying_interval`.

    Args:
        differences: the difference for each of N questions, in [-1, 1].
        groups: the group of each question.
        seed: seed of the draws.
    """
    sums: dict[str, tuple[float, int]] = {}
    for group, difference in zip(groups, differences.tolist(), strict=True):
        total, size = sums.get(group, (0.0, 0))
        sums[group] = (total + difference, size + 1)
    if len(sums) < 2:  # nothing is known of how groups differ
        return Gain(float(100 * differences.mean()), -100.0, 100.0)
    # Equal groups are alike: what matters is how often each kind is drawn, and there are few kinds.
    kinds, counts = np.unique(np.array(list(sums.values())), axis=0, return_counts=True)
    if len(kinds) == 1:
        low, high = unvarying_interval(float(differences.mean()), len(sums), -1.0, 1.0)
        return Gain(float(100 * differences.mean()), 100 * low, 100 * high)
    rng = np.random.default_rng(seed)
    drawn = []
    at_once = max(1, _AT_ONCE // len(kinds))
    for begin in range(0, RESAMPLES, at_once):
        times = rng.multinomial(counts.sum(), counts / counts.sum(), size=min(at_once, RESAMPLES - begin))
        drawn.append((times @ kinds[:, 0]) / (times @ kinds[:, 1]))
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    return Gain(float(100 * differences.mean()), float(100 * low), float(100 * high))


def paired_p(differences: Floats, groups: Sequence[str], seed: int) -> float:
    """Return the two-sided p of a permutation test that paired differences have the mean 0.

    If the two were alike, each group's difference could as well be its opposite: signs are drawn for whole groups, and
    p is how often the sum is as far from 0 as it was (Fisher 1935, The design of experiments, section 21).

    Args:
        differences: the difference for each of N questions.
        groups: the group of each question, such as its image.
        seed: seed of the draws.
    """
    sums: dict[str, float] = {}
    for group, difference in zip(groups, differences.tolist(), strict=True):
        sums[group] = sums.get(group, 0.0) + difference
    moved = np.array([value for value in sums.values() if value])
    if not len(moved):
        return 1.0
    rng = np.random.default_rng(seed)
    farther, at_once = 0, max(1, _AT_ONCE // len(moved))
    for begin in range(0, RESAMPLES, at_once):
        signs = rng.integers(0, 2, size=(min(at_once, RESAMPLES - begin), len(moved))) * 2 - 1
        # Less a rounding error: sums that are equal but for it are as far.
        farther += int((np.abs(signs @ moved) >= abs(moved.sum()) - 1e-9).sum())
    return (1 + farther) / (1 + RESAMPLES)


def agreement(questions: Sequence[Question]) -> Floats:
    """Return the share of the questions that each two members answer alike, (M, M)."""
    answers = np.array([[p.answer for p in question.answers] for question in questions], dtype=object)
    return np.array([(answers == answers[:, [m]]).mean(axis=0) for m in range(answers.shape[1])])


def forward_selection(
    questions: Sequence[Question], vote: str, count_parameters: Callable[[Sequence[int]], int], most: float, seed: int
) -> list[Step]:
    """Add the member that helps most, again and again, while the parameters allow another.

    Accuracy decides, and between equal accuracies the log loss of the mean probabilities. A member that lowers the
    accuracy is added too, since a hard vote of two says little and of three much; `best_prefix` says how many steps to
    take.

    Args:
        questions: all with a `label`.
        vote: a name of `metrics.vote.VOTES`; the weighted vote is judged by weights fitted without the question.
        count_parameters: indices of members -> their parameters together.
        most: limit on the parameters of the ensemble.
        seed: seed of the folds.
    """
    of_truth = truth_probabilities(questions)
    groups = get_groups(questions)

    def judged(subset: Sequence[int]) -> tuple[float, float]:
        some = [question.of(subset) for question in questions]
        weights = cross_fit_weights(of_truth[:, subset], groups, seed) if vote == "weighted" else None
        used = np.array(equal_weights(len(subset))) if weights is None else weights
        return float(100 * _scores(vote_all(some, vote, weights)).mean()), -log_loss(of_truth[:, subset], used)

    chosen: list[int] = []
    steps: list[Step] = []
    while True:
        left = [m for m in range(of_truth.shape[1]) if m not in chosen and count_parameters([*chosen, m]) <= most]
        if not left:
            return steps
        values = {m: judged([*chosen, m]) for m in left}
        added = max(left, key=lambda m: values[m])
        chosen.append(added)
        accuracy = values[added][0]
        gain = accuracy - (steps[-1].accuracy if steps else 0.0)
        steps.append(Step(added, accuracy, gain, count_parameters(chosen)))


def best_prefix(steps: Sequence[Step]) -> list[Step]:
    """Return the steps up to the first that reaches the highest accuracy."""
    best = max(range(len(steps)), key=lambda index: (steps[index].accuracy, -index))
    return list(steps[: best + 1])


def comparison_text(comparison: Comparison, names: Sequence[str], title: str, vote: str) -> str:
    """Write out the accuracies, the gain with its interval, and for the weighted vote the results of equal weights."""
    lines = [f"{title}: accuracy on {plural(comparison.questions, 'question')} with known answers"]
    for number, (name, accuracy) in enumerate(zip(names, comparison.members, strict=True), start=1):
        lines.append(f"  {number:>3}  {accuracy:6.2f}  {name}")
    gain, loss = comparison.gain, comparison.log_loss
    shown = "" if loss is None else f", log loss {loss:.4f}"
    lines.append(f"       {comparison.ensemble:6.2f}  the ensemble, {vote} vote{shown}")
    if comparison.equal is not None:
        lines.append(f"       {comparison.equal[0]:6.2f}  with equal weights, log loss {comparison.equal[1]:.4f}")
        if loss is not None and loss >= comparison.equal[1]:
            lines.append("       on unseen questions the weights are no better than equal ones: prefer --vote soft")
    lines.append(
        f"  gain over the best member ({comparison.best + 1}, best on these questions): {gain.mean:+.2f} points, "
        f"95% interval {gain.low:+.2f} to {gain.high:+.2f}"
    )
    return "\n".join(lines)


def agreement_text(shares: Floats) -> str:
    """Write out the matrix of equal answers, (M, M), in percent; the members stand there by their numbers."""
    numbers = range(1, len(shares) + 1)
    lines = ["the same answer, % of questions", "       " + "".join(f"{number:>7}" for number in numbers)]
    lines += [
        f"  {number:>3}  " + "".join(f"{100 * share:7.1f}" for share in row)
        for number, row in zip(numbers, shares.tolist(), strict=True)
    ]
    return "\n".join(lines)


def steps_text(steps: Sequence[Step], taken: int, names: Sequence[str]) -> str:
    """Write out the steps of the forward selection, of which the first `taken` were followed."""
    lines = ["greedy selection on validation questions: accuracy, gain of the step, parameters so far"]
    for number, step in enumerate(steps, start=1):
        name = names[step.member] + ("" if number <= taken else "  (not taken)")
        lines.append(f"  {number:>3}  {step.accuracy:6.2f}  {step.gain:+6.2f}  {step.parameters:>13,}  + {name}")
    lines.append("  the members were chosen on these questions, so this accuracy is flattering")
    return "\n".join(lines)


def weights_text(weights: Sequence[float], names: Sequence[str], questions: int) -> str:
    """Write out the weights of the members, and on how many questions they were fitted."""
    lines = [f"weights, fitted on {questions:,} validation questions"]
    return "\n".join(lines + [f"  {weight:6.4f}  {name}" for weight, name in zip(weights, names, strict=True)])
