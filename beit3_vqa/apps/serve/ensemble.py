"""The models that answer: one, or several whose probabilities are averaged (a soft vote)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from beit3_vqa.data.types import AttentionMap
from beit3_vqa.engine.predictor import Predictor, PreparedQuestion
from beit3_vqa.errors import InputError
from beit3_vqa.metrics.vote import soft


@dataclass(frozen=True)
class Question:
    """A question, made ready for each member, in the ensemble's order.

    Attributes:
        asked: the question for each member.
        attention: whether attention maps are wanted.
    """

    asked: tuple[PreparedQuestion, ...]
    attention: bool = False

    @property
    def kind(self) -> tuple[int, bool]:
        """Return the number of options and `attention`: the same for questions that are answered together."""
        return len(self.asked[0].example.choices), self.attention


@dataclass(frozen=True)
class Answer:
    """The ensemble's answer to a question.

    Attributes:
        answer: the likeliest answer: a letter for multiple choice, else text.
        probabilities: answer -> probability, in the order of the options; the likeliest few first when open-ended.
        attention: a map for each member; empty if none was wanted.
    """

    answer: str
    probabilities: dict[str, float]
    attention: tuple[AttentionMap, ...] = ()


class Ensemble:
    """One or several loaded models.

    Args:
        predictors: at least one.

    Raises:
        InputError: if no question could be answered by all of them.
    """

    def __init__(self, predictors: Sequence[Predictor]):
        self.predictors = tuple(predictors)
        ranges = [predictor.option_counts for predictor in self.predictors]
        if len(ranges) > 1 and not all(ranges):
            # Each keeps the likeliest few of its vocabulary, which can't be averaged.
            raise InputError(
                "--checkpoint: several models vote on multiple-choice questions only; give one that is open-ended."
            )
        fewest, most = max(r.start for r in ranges), min(r.stop for r in ranges)
        if fewest >= most and all(ranges):
            counts = ", ".join(f"{r[0]} to {r[-1]}" if len(r) > 1 else f"{r[0]}" for r in ranges)
            raise InputError(f"--checkpoint: the models choose among different numbers of options ({counts}).")
        self.option_counts = range(fewest, most)

    def prepare(self, image: Path, question: str, choices: Sequence[str], *, attention: bool) -> Question:
        """Check a question and make it ready; InputError if it can't be answered or the image can't be read."""
        if len(set(choices)) < len(choices):  # a page that shows two of the same is a mistake of whoever typed them
            raise InputError(f"the options must differ: {', '.join(map(repr, choices))}.")
        asked = tuple(predictor.prepare(image, question, choices) for predictor in self.predictors)
        return Question(asked, attention)

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer questions of one kind, all in one forward pass of each model."""
        attention = questions[0].attention
        each = [
            predictor.predict_with_attention([question.asked[place] for question in questions])
            if attention
            else (predictor.predict_many([question.asked[place] for question in questions]), [])
            for place, predictor in enumerate(self.predictors)
        ]
        answers = []
        for row in range(len(questions)):
            answer, means = soft([predictions[row] for predictions, _ in each])
            maps = tuple(maps[row] for _, maps in each) if attention else ()
            answers.append(Answer(answer, means, maps))
        return answers
