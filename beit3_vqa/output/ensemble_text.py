"""What is known of an ensemble, for people: lines of text."""

from collections.abc import Sequence

from beit3_vqa.output.ensemble import Comparison, Step
from beit3_vqa.output.mixture import Floats


def comparison_text(comparison: Comparison, names: Sequence[str], title: str, vote: str) -> str:
    """Accuracies in percent, the gain with its interval, and for the weighted vote the equal weights' results."""
    lines = [f"{title}: accuracy on {comparison.questions:,} questions with known answers"]
    for number, (name, accuracy) in enumerate(zip(names, comparison.members, strict=True), start=1):
        lines.append(f"  {number:>3}  {accuracy:6.2f}  {name}")
    gain, loss = comparison.gain, comparison.log_loss
    shown = "" if loss is None else f", log loss {loss:.4f}"
    lines.append(f"       {comparison.ensemble:6.2f}  the ensemble, {vote} vote{shown}")
    if comparison.equal is not None:
        lines.append(f"       {comparison.equal[0]:6.2f}  with equal weights, log loss {comparison.equal[1]:.4f}")
        if loss is not None and loss >= comparison.equal[1]:
            lines.append("       the weights don't pay on questions that they haven't seen: prefer --vote soft")
    lines.append(
        f"  gain over the best member ({comparison.best + 1}, best on these questions): {gain.mean:+.2f} points, "
        f"95% interval {gain.low:+.2f} to {gain.high:+.2f}"
    )
    return "\n".join(lines)


def agreement_text(shares: Floats) -> str:
    """The matrix of equal answers in percent, members by their numbers."""
    numbers = range(1, len(shares) + 1)
    lines = ["the same answer, % of questions", "       " + "".join(f"{number:>7}" for number in numbers)]
    lines += [
        f"  {number:>3}  " + "".join(f"{100 * share:7.1f}" for share in row)
        for number, row in zip(numbers, shares.tolist(), strict=True)
    ]
    return "\n".join(lines)


def steps_text(steps: Sequence[Step], taken: int, names: Sequence[str]) -> str:
    """The forward selection, step by step, and how far it was followed."""
    lines = ["greedy selection on validation questions: accuracy, gain of the step, parameters so far"]
    for number, step in enumerate(steps, start=1):
        name = names[step.member] + ("" if number <= taken else "  (not taken)")
        lines.append(f"  {number:>3}  {step.accuracy:6.2f}  {step.gain:+6.2f}  {step.parameters:>13,}  + {name}")
    lines.append("  chosen on these questions, so that their accuracy flatters the choice")
    return "\n".join(lines)


def weights_text(weights: Sequence[float], names: Sequence[str], questions: int) -> str:
    """The weights, as they are used."""
    lines = [f"weights, fitted on {questions:,} validation questions"]
    return "\n".join(lines + [f"  {weight:6.4f}  {name}" for weight, name in zip(weights, names, strict=True)])
